"""Expected n-grams: against sums written out, and against kernel ridge by least squares."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from showtell.decoding import expected as module
from showtell.decoding.expected import ExpectedNgrams
from showtell.errors import UserError
from showtell.quantization import SCALES_SUFFIX
from showtell.text.vocabulary import PAD

# Six images of two references each, ids of tokens as END would end them (2).
CAPTIONS = [
    [(4, 5, 2), (4, 6, 2)],
    [(4, 5, 7, 2), (5, 2)],
    [(6, 6, 2), (6, 2)],
    [(4, 2), (7, 4, 2)],
    [(5, 5, 5, 2), (4, 5, 2)],
    [(7, 2), (7, 6, 2)],
]
SIZE = 3


def features(images: int = len(CAPTIONS)) -> Tensor:
    return torch.randn(images, SIZE, generator=torch.Generator().manual_seed(1)) * 2 + 1


def fit(chunk: int = 6, *, least_images: int = 1, rank: int = 6) -> ExpectedNgrams:
    return ExpectedNgrams.fit(
        CAPTIONS, features().split(chunk), least_images=least_images, rank=rank
    )


def grams_of(tokens: Sequence[int]) -> Counter[tuple[int, ...]]:
    return Counter(
        tuple(tokens[a : a + n]) for n in (1, 2, 3, 4) for a in range(len(tokens) - n + 1)
    )


def idf(gram: tuple[int, ...], least_images: int) -> float:
    documents = sum(any(gram in grams_of(tokens) for tokens in image) for image in CAPTIONS)
    return math.log(len(CAPTIONS) / (documents if documents >= least_images else 1))


def vector(tokens: Sequence[int], least_images: int = 1) -> dict[tuple[int, ...], float]:
    """The tf-idf of all n-grams, of norm 1 for each length."""
    weighed = {g: n * idf(g, least_images) for g, n in grams_of(tokens).items()}
    norms = [math.hypot(*(w for g, w in weighed.items() if len(g) == n)) for n in range(5)]
    return {g: w / norms[len(g)] for g, w in weighed.items() if w}


def similarities(pictures: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """exp(-WIDTH x mean squared difference), pair by pair."""
    pairs = [[np.mean((one - other) ** 2) for other in landmarks] for one in pictures]
    return np.exp(-module.WIDTH * np.array(pairs))


def standardised(pictures: Tensor) -> np.ndarray:
    x = features().double().numpy()
    return (pictures.double().numpy() - x.mean(axis=0)) / (x.std(axis=0) + 1e-3)


def targets_of(grams: Sequence[tuple[int, ...]], least_images: int = 1) -> np.ndarray:
    """The mean vector of each image's references (6, G)."""
    vectors = [[vector(tokens, least_images) for tokens in image] for image in CAPTIONS]
    return np.array([[np.mean([v.get(g, 0) for v in image]) for g in grams] for image in vectors])


def predicted(found: ExpectedNgrams, pictures: Tensor) -> np.ndarray:
    """What is expected of pictures (B, G)."""
    points = found.directions(pictures).numpy()
    distances = ((points[:, None] - found.landmarks.numpy()) ** 2).sum(axis=2)
    read = np.exp(-module.WIDTH * distances) @ found.projection.numpy()
    return read @ found.weights.numpy().T + found.bias.numpy()


@pytest.mark.parametrize("least_images", [1, 3])
def test_it_is_kernel_ridge_regression_of_the_mean_reference(
    least_images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "quantize", lambda tensor: (tensor, torch.ones(())))
    found = fit(least_images=least_images)
    grams = list(found.known.ngrams)
    assert all(idf(g, 1) == pytest.approx(i) for g, i in zip(grams, found.known.idf, strict=True))
    targets = targets_of(grams, least_images)
    own = similarities(standardised(features()), standardised(features()))
    # With a row for each landmark that asks for no change along it, least squares are ridge's.
    penalty = np.sqrt(module.RIDGE) * np.linalg.cholesky(own + 1e-4 * np.eye(6)).T
    centred = targets - targets.mean(axis=0)
    rows = np.vstack([own - own.mean(axis=0), penalty]), np.vstack([centred, 0 * targets])
    weights = np.linalg.lstsq(*rows, rcond=None)[0]
    others = torch.randn(4, SIZE, generator=torch.Generator().manual_seed(2)) * 2 + 1
    for pictures in (features(), others):
        near = similarities(standardised(pictures), standardised(features()))
        expected = (near - own.mean(axis=0)) @ weights + targets.mean(axis=0)
        np.testing.assert_allclose(predicted(found, pictures), expected, atol=2e-3)


def test_a_score_is_the_product_of_a_caption_and_what_is_expected() -> None:
    found, captions = fit(), [[(4, 5, 6, 2), (7, 2)], [(2,)]]
    expected = predicted(found, features()[:2])
    for scores, own, row in zip(
        found.scores(features()[:2], captions), captions, expected, strict=True
    ):
        by_hand = [
            sum(
                w * row[found.known.ngrams[g]]
                for g, w in vector(t).items()
                if g in found.known.ngrams
            )
            for t in own
        ]
        # An n-gram that no reference has weighs log(6) in `vector` too: it has one document there.
        assert scores == pytest.approx([10 / 4 * value for value in by_hand], abs=1e-4)


def test_what_it_expects_of_its_own_pictures_is_nearer_to_their_captions() -> None:
    found = fit()
    for image, own in enumerate(CAPTIONS):
        scores = found.scores(features()[[image, (image + 3) % 6]], [own, own])
        assert sum(scores[0]) > sum(scores[1])


def test_chunks_change_nothing() -> None:
    whole, parts = fit(6), fit(4)
    candidates = [[(4, 5, 2), (6, 2)], [(7, 7, 2)], [], [(5, 2)], [(2,)], [(4, 4, 4, 4, 2)]]
    at_once = whole.scores(features(), candidates)
    assert [len(each) for each in at_once] == [2, 1, 0, 1, 1, 1]
    for one, other in zip(at_once, parts.scores(features(), candidates), strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_a_smaller_rank_is_the_best_of_its_kind() -> None:
    """What it costs is the least there is, by the Eckart-Young theorem."""
    whole, thin = fit(rank=6), fit(rank=2)
    assert thin.projection.shape == (6, 2)
    own = similarities(standardised(features()), standardised(features()))
    centred = own - own.mean(axis=0)
    cost = centred.T @ centred + module.RIDGE * (own + 1e-4 * np.eye(6))
    full, near = ((each.projection @ each.weights.T).double().numpy() for each in (whole, thin))
    root = np.linalg.cholesky(cost).T
    lost = np.linalg.svd(root @ full, compute_uv=False)[2:]
    assert np.linalg.norm(root @ (full - near)) == pytest.approx(np.linalg.norm(lost), rel=5e-2)


def test_ngrams_that_nobody_says_count_against_a_caption() -> None:
    found, picture = fit(), features()[:1]
    ((usual, strange),) = found.scores(picture, [[(4, 5, 2), (4, 5, 9, 2)]])
    assert strange < usual


def test_an_ngram_that_is_said_twice_counts_once() -> None:
    found = fit()
    once, twice, two = ((4, 5, 2), (4, 5, 4, 5, 2), (4, 5, 6, 2))
    pictures = features()
    for image, scores in enumerate(found.scores(pictures, [[once, twice, two]] * len(pictures))):
        expected = predicted(found, pictures)[image]
        for tokens, score in zip((once, twice, two), scores, strict=True):
            counts = grams_of(tokens)
            numerator = sum(
                weight / counts[gram] * expected[found.known.ngrams[gram]]
                for gram, weight in vector(tokens).items()
                if gram in found.known.ngrams
            )
            assert score == pytest.approx(10 / 4 * numerator, abs=1e-4)


@pytest.mark.parametrize("most", range(1, 28))
def test_however_few_ngrams_are_kept_their_beginnings_are(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_NGRAMS", most)
    known = fit().known.ngrams
    assert len(known) == most
    assert all(len(gram) == 1 or gram[:-1] in known for gram in known)


def test_where_nothing_is_frequent_enough_all_captions_are_alike() -> None:
    assert fit(least_images=9).scores(features(), [[(4, 2), (5, 2)]] * 6) == [[0.0, 0.0]] * 6


def test_directions_are_found_where_single_precision_finds_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """LAPACK gives up on some covariances of few images."""
    usual, solve = fit().scores(features(), [[(4, 5, 2)]] * 6), torch.linalg.eigh

    def gives_up(matrix: Tensor) -> object:
        if matrix.dtype is torch.float32:
            raise torch.linalg.LinAlgError("ill-conditioned")
        return solve(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", gives_up)
    found = fit().scores(features(), [[(4, 5, 2)]] * 6)
    assert [score for (score,) in found] == pytest.approx([s for (s,) in usual], abs=2e-3)


def test_a_feature_that_never_changes_tells_nothing() -> None:
    candidates = [[(4, 5, 2)]] * 6
    scores = []
    for value in (7.0, -300.0):
        constant = torch.cat([features(), torch.full((6, 1), value)], dim=1)
        found = ExpectedNgrams.fit(CAPTIONS, [constant], least_images=1, rank=6)
        scores.append([score for (score,) in found.scores(constant, candidates)])
    assert scores[0] == pytest.approx(scores[1], abs=2e-3)


def test_a_feature_that_fires_for_the_first_time_changes_little() -> None:
    constant = torch.cat([features(), torch.full((6, 1), 7.0)], dim=1)
    found = ExpectedNgrams.fit(CAPTIONS, [constant], least_images=1, rank=6)
    fired = constant + torch.tensor([0, 0, 0, 0.1])
    np.testing.assert_allclose(predicted(found, fired), predicted(found, constant), atol=1e-3)


@pytest.mark.parametrize("scale", [1e5, 1e-2])
def test_the_unit_of_the_features_changes_nothing(tmp_path: Path, scale: float) -> None:
    file = tmp_path / "expected.safetensors"
    ExpectedNgrams.fit(CAPTIONS, [features() * scale], least_images=1, rank=6).save(file, "")
    read = ExpectedNgrams.load(file, "")
    np.testing.assert_allclose(
        predicted(read, features() * scale), predicted(fit(), features()), atol=2e-2
    )


@pytest.mark.parametrize("size", [1, 3])
def test_many_pictures_that_are_nearly_alike_can_be_fitted(size: int) -> None:
    images = 1000
    pictures = torch.randn(images, size, generator=torch.Generator().manual_seed(3))
    pictures[images // 2 :] = pictures[: images // 2] + 1e-4
    captions = [CAPTIONS[int(picture[0] > 0)] for picture in pictures]
    found = ExpectedNgrams.fit(captions, pictures.split(100), least_images=1, rank=8)
    scores = torch.tensor(found.scores(pictures[:50], [[CAPTIONS[0][0], CAPTIONS[1][0]]] * 50))
    margins = scores[:, 0] - scores[:, 1]
    is_first = pictures[:50, 0] <= 0
    assert margins[is_first].mean() > margins[~is_first].mean() + 1


def test_fewer_landmarks_are_taken_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_LANDMARKS", 3)
    found = fit()
    points = found.directions(features())
    torch.testing.assert_close(found.landmarks, points[[0, 2, 5]], atol=2e-2, rtol=0)
    own, strange = found.scores(features()[[0]], [[*CAPTIONS[0], (6, 6, 2)]])[0][1:]
    assert own > strange


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    found, file = fit(least_images=2), tmp_path / "expected.safetensors"
    found.save(file, "mine")
    read = ExpectedNgrams.load(file, "mine")
    with pytest.raises(UserError, match="belongs to another run"):
        ExpectedNgrams.load(file, "another")
    assert (dict(read.known.ngrams), list(read.known.idf)) == (
        dict(found.known.ngrams),
        list(found.known.idf),
    )
    assert read.known.unseen == found.known.unseen
    candidates = [[(4, 5, 2), (9, 2)]] * 6
    assert read.scores(features(), candidates) == found.scores(features(), candidates)


@pytest.mark.parametrize("content", [b"", b"no tensors"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "expected.safetensors"
    with pytest.raises(UserError, match=r"expected\.safetensors cannot be read"):
        ExpectedNgrams.load(file, "")
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"expected\.safetensors cannot be read"):
        ExpectedNgrams.load(file, "")


def written(folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, str]]:
    """A saved prediction: its file, tensors and metadata."""
    file = folder / "expected.safetensors"
    fit().save(file, "")
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return file, tensors, opened.metadata()


PARTS = (
    *("ngrams", "idf", "bias", "means", "scales", "directions", "landmarks"),
    *("projection", "weights"),
)


@pytest.mark.parametrize("part", PARTS)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, part: str) -> None:
    file, tensors, facts = written(tmp_path)
    assert set(PARTS) == {name.removesuffix(SCALES_SUFFIX) for name in tensors}
    shorter = {n: t[1:] if n.removesuffix(SCALES_SUFFIX) == part else t for n, t in tensors.items()}
    save_file(shorter, file, metadata=facts)
    with pytest.raises(UserError, match="its parts do not fit"):
        ExpectedNgrams.load(file, "")
    flat = {n: t.flatten() if n == "ngrams" else t for n, t in tensors.items()}
    save_file(flat, file, metadata=facts)
    with pytest.raises(UserError, match=r"expected\.safetensors cannot be read"):
        ExpectedNgrams.load(file, "")


@pytest.mark.parametrize("change", ["a gap", "a copy", "an empty one"])
def test_ngrams_that_are_no_tree_are_refused(tmp_path: Path, change: str) -> None:
    """Guided searches find an n-gram by that of all its words but the last."""
    file, tensors, facts = written(tmp_path)
    padded = tensors["ngrams"]
    is_single = padded[:, 1] == PAD
    is_beginning = (padded[:, :1] == padded[~is_single, 0]).any(dim=1)
    row = {
        "a gap": padded[is_single & is_beginning],  # is another word from now on
        "a copy": padded[padded[:, -1] != PAD],  # of four words: no other begins with them
        "an empty one": padded[is_single],
    }[change][0]
    place = (padded == row).all(dim=1)
    assert place.sum() == 1
    new = {"a gap": [99, PAD, PAD, PAD], "a copy": padded[0].tolist(), "an empty one": [PAD] * 4}
    padded[place] = torch.tensor(new[change], dtype=padded.dtype)
    save_file(tensors, file, metadata=facts)
    with pytest.raises(UserError, match="its parts do not fit"):
        ExpectedNgrams.load(file, "")


def test_files_of_before_are_named(tmp_path: Path) -> None:
    file, tensors, facts = written(tmp_path)
    kept = {name: tensors[name] for name in ("ngrams", "idf", "means", "weights")}
    save_file(kept, file, metadata=facts)
    with pytest.raises(
        UserError, match="by an earlier version of showtell; put the run together again"
    ):
        ExpectedNgrams.load(file, "")


def test_widened_it_reads_its_own_columns_alone() -> None:
    narrow, columns = fit(), (4, 0, 3)
    among_others = torch.full((len(CAPTIONS), 6), 99.0)
    among_others[:, columns] = features()
    wide = narrow.widened(columns, 6)
    for ours, expected in zip(
        wide.scores(among_others, CAPTIONS), narrow.scores(features(), CAPTIONS), strict=True
    ):
        assert ours == pytest.approx(expected, abs=1e-5)
