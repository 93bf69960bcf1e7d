"""Accepted + rejected = input, whatever the damage: a property over generated files."""

from __future__ import annotations

import json

import pytest
from flickr8k_copies import write_photo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from showtell.data.flickr8k import read_flickr8k
from showtell.data.table import read_table
from showtell.errors import UserError

PRESENT = ("a.jpg", "b.jpg", "c.jpg", "d.jpg")
NAMES = st.sampled_from([*PRESENT, "absent.jpg", "../a.jpg", "", " "])
CAPTIONS = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=12)
GARBAGE = st.binary(max_size=20).map(lambda content: content.replace(b"\n", b""))
TOKEN_LINES = st.one_of(
    st.builds("{}#{}\t{}".format, NAMES, st.integers(0, 3), CAPTIONS).map(str.encode),
    st.builds("{}#0 {}".format, NAMES, CAPTIONS).map(str.encode),
    GARBAGE,
)
JSON_LINES = st.one_of(
    st.builds(
        lambda *values: json.dumps(dict(zip(("image", "caption", "split"), values, strict=True))),
        NAMES,
        CAPTIONS,
        st.sampled_from(["train", "test", "", None, "dev", "foo", 3]),
    ).map(str.encode),
    GARBAGE,
)
CSV_LINES = st.one_of(
    # No quote in the fields, so that each line is one row whatever stands beside it.
    st.builds("{},{},{}".format, NAMES, CAPTIONS, st.sampled_from(["train", "test", ""])).map(
        str.encode
    ),
    GARBAGE,
).filter(lambda line: b'"' not in line)
LIST_LINES = st.one_of(NAMES.map(str.encode), GARBAGE)
ENDINGS = st.sampled_from([b"\n", b"\r\n"])
RELAXED = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for number, name in enumerate(PRESENT):
        write_photo(folder / "Images" / name, number)
    return folder


def accounts_for(data, lines: list[bytes], first_line: int) -> None:
    accepted = sum(len(image.captions) for image in data.images)
    assert accepted + len(data.rejected) == len(lines)
    rejected = [rejection.line for rejection in data.rejected]
    assert len(set(rejected)) == len(rejected)
    assert set(rejected) <= set(range(first_line, first_line + len(lines)))
    for rejection in data.rejected:
        assert rejection.reason
        assert rejection.item.isprintable()


@RELAXED
@given(lines=st.lists(TOKEN_LINES, max_size=12), ending=ENDINGS)
def test_token_file(root, lines, ending):
    lines = [b"a.jpg#9\tsound", b"b.jpg#9\tsound", b"c.jpg#9\tsound", *lines]
    (root / "Flickr8k.token.txt").write_bytes(ending.join(lines) + ending)
    data = read_flickr8k(root, split_seed=0)
    accounts_for(data, lines, first_line=1)
    # What is accepted is what stood there, byte for byte after the tab.
    raw = {line.removesuffix(b"\r").partition(b"\t")[2] for line in lines}
    assert {caption.encode() for image in data.images for caption in image.captions} <= raw


@RELAXED
@given(lines=st.lists(JSON_LINES, max_size=12), ending=ENDINGS)
def test_json_lines(root, lines, ending):
    sound = [json.dumps({"image": name, "caption": "sound"}).encode() for name in PRESENT]
    table = root / "table.jsonl"
    table.write_bytes(ending.join([*sound, *lines]) + ending)
    accounts_for(read_table(table, root / "Images", split_seed=0), [*sound, *lines], first_line=1)


@RELAXED
@given(lines=st.lists(CSV_LINES, max_size=12), ending=ENDINGS)
def test_csv(root, lines, ending):
    lines = [*(f"{name},sound,".encode() for name in PRESENT), *lines]
    table = root / "table.csv"
    table.write_bytes(ending.join([b"image,caption,split", *lines]) + ending)
    accounts_for(read_table(table, root / "Images", split_seed=0), lines, first_line=2)


@RELAXED
@given(lists=st.tuples(*[st.lists(LIST_LINES, max_size=8)] * 3))
def test_split_lists(root, lists):
    folder = root / "listed"
    folder.mkdir(exist_ok=True)
    (folder / "Images").is_symlink() or (folder / "Images").symlink_to(root / "Images")
    tokens = [f"{name}#0\tsound".encode() for name in PRESENT]
    (folder / "Flickr8k.token.txt").write_bytes(b"\n".join(tokens) + b"\n")
    written = dict(zip(("train", "val", "test"), lists, strict=True))
    written["train"] = [b"a.jpg", *written["train"]]
    for split, lines in written.items():
        if split == "train" or any(name.encode() in lines for name in PRESENT):
            (folder / f"{split}.txt").write_bytes(b"\n".join(lines) + b"\n")
        else:  # a list that names nothing is refused as a whole, which is another test
            (folder / f"{split}.txt").unlink(missing_ok=True)
    data = read_flickr8k(folder, split_seed=0)
    for name in data.origin.keys() - {"Flickr8k.token.txt"}:
        rejected = [r for r in data.rejected if r.source == folder / name]
        split = name.removesuffix(".txt")
        assert len(data.split(split)) + len(rejected) == len(written[split])


@RELAXED
@given(content=st.binary(max_size=300))
def test_any_bytes_give_data_or_a_clear_sentence(root, content):
    table = root / "any.csv"
    for head in (b"", b"image,caption\n", b'{"image": "a.jpg"}\n'):
        table.write_bytes(head + content)
        try:
            read_table(table, root / "Images", split_seed=0)
        except UserError as error:
            assert str(error)
