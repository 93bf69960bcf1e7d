"""Any captioned folder through one CSV or JSON Lines file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flickr8k_copies import write_lines, write_photo

from showtell.data import sources
from showtell.data.splits import draw_splits
from showtell.errors import UserError
from showtell.types import CaptionData

ROWS = [
    ("cats/a.jpg", 'A cat , "asleep" .', "train"),
    ("cats/a.jpg", "A cat\non two lines", ""),
    ("b.png", "Ein Hund läuft", "validation"),
    ("c.jpg", "a bird", "test"),
    ("d.jpg", "in no split", ""),
]


def read(file: Path, images: str | None = "", *, skip_rejected: bool = False) -> CaptionData:
    return sources.table(file=str(file), images=images, split_seed=3, skip_rejected=skip_rejected)


def refusal(file: Path, images: str = "") -> str:
    with pytest.raises(UserError) as caught:
        read(file, images)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_images(folder: Path) -> None:
    for number, name in enumerate(("cats/a.jpg", "b.png", "c.jpg", "d.jpg")):
        write_photo(folder / name, number)


def as_csv(rows: list[tuple[str, ...]]) -> list[str]:
    return [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]


def write_csv(path: Path) -> None:
    write_lines(path, ["image,caption,split", *as_csv(ROWS)])


def write_json_lines(path: Path) -> None:
    keys = ("image", "caption", "split")
    write_lines(path, [json.dumps(dict(zip(keys, row, strict=True))) for row in ROWS])


@pytest.mark.parametrize("write", [write_csv, write_json_lines])
@pytest.mark.parametrize("images", ["", None, "pictures"])
def test_captions_splits_and_names(tmp_path, write, images):
    write(tmp_path / "table.txt")
    write_images(tmp_path / (images or ""))
    data = read(tmp_path / "table.txt", images and str(tmp_path / images))
    assert [(i.image_id, i.captions, i.split) for i in data.images] == [
        ("cats/a.jpg", (ROWS[0][1], ROWS[1][1]), "train"),
        ("b.png", (ROWS[2][1],), "val"),
        ("c.jpg", (ROWS[3][1],), "test"),
        ("d.jpg", (ROWS[4][1],), None),
    ]
    assert data.images[0].path == tmp_path / (images or "") / "cats" / "a.jpg"
    assert (data.name, data.rejected, list(data.origin)) == ("table", (), ["table.txt"])


def test_splits_are_drawn_where_none_is_given(tmp_path):
    write_images(tmp_path)
    write_lines(tmp_path / "t.csv", ["Image , Caption,licence", *[f"{r[0]},a b,CC" for r in ROWS]])
    data = read(tmp_path / "t.csv")
    assert {i.image_id: i.split for i in data.images} == draw_splits(
        [i.image_id for i in data.images], seed=3
    )
    assert data.notes == (
        "t.csv has columns that are not used: licence",
        "no split lists: drew train 2, val 1, test 1 by image with data.split_seed=3",
    )


def test_a_missing_file_moves_no_other_image_to_another_split(tmp_path):
    names = [f"{number}.jpg" for number in range(40)]
    for number, name in enumerate(names):
        write_photo(tmp_path / name, number)
    write_lines(tmp_path / "t.csv", ["image,caption", *[f"{name},a b" for name in names]])
    before = {image.image_id: image.split for image in read(tmp_path / "t.csv").images}
    gone = names[::3]
    for name in gone:
        (tmp_path / name).unlink()
    after = read(tmp_path / "t.csv", skip_rejected=True).images
    assert {image.image_id: image.split for image in after} == {
        name: split for name, split in before.items() if name not in gone
    }


def test_what_may_not_be_read_is_one_clear_sentence(tmp_path, monkeypatch):
    """(Tests may run as root, who may read everything.)"""
    write_images(tmp_path)
    write_csv(tmp_path / "t.csv")

    def forbidden(*_):
        raise PermissionError(13, "Permission denied", "t.csv")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", forbidden)
        assert "cannot be read (Permission denied)" in refusal(tmp_path / "t.csv")
    monkeypatch.setattr("os.scandir", forbidden)
    assert "cannot be listed (Permission denied)" in refusal(tmp_path / "t.csv")


def test_a_drawn_split_without_a_file_is_told(tmp_path):
    write_photo(tmp_path / "0.jpg", 0)
    rows = [f"{number}.jpg,a b" for number in range(20)]
    write_lines(tmp_path / "t.csv", ["image,caption", *rows])
    with pytest.raises(UserError, match=r"were drawn for \w+ none is here: 1 of 20 are"):
        read(tmp_path / "t.csv", skip_rejected=True)


def test_a_link_to_itself_or_too_long_a_name_harms_no_other_image(tmp_path):
    write_images(tmp_path)
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    long = "x" * 300 + "/a.jpg"
    rows = [*ROWS, ("loop.jpg", "a b", "train"), (long, "a b", "train")]
    write_lines(tmp_path / "t.csv", ["image,caption,split", *as_csv(rows)])
    data = read(tmp_path / "t.csv", skip_rejected=True)
    assert len(data.images) == 4
    assert {each.item for each in data.rejected} == {"loop.jpg", long}


def test_a_file_is_the_picture_of_one_name(tmp_path):
    """Found for both, it would be trained on and evaluated."""
    for number, name in enumerate(("a.JPG", "b.jpg", "c.jpg")):
        write_photo(tmp_path / name, number)
    rows = ["a.jpg,a b,train", "a.JPG,a b,test", "b.jpg,a b,train", "c.jpg,a b,val"]
    write_lines(tmp_path / "t.csv", ["image,caption,split", *rows])
    data = read(tmp_path / "t.csv", skip_rejected=True)
    assert [(image.image_id, image.split) for image in data.images] == [
        ("a.JPG", "test"),
        ("b.jpg", "train"),
        ("c.jpg", "val"),
    ]
    assert [(each.item, each.reason) for each in data.rejected] == [
        (
            "a.jpg",
            "the image file is that of another name, which differs in the case of its extension",
        )
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("../b.png,x,", "the image name leaves the image folder"),
        ("cats/../../b.png,x,", "the image name leaves the image folder"),
        ("/etc/passwd,x,", "the image name leaves the image folder"),
        ("C:b.png,x,", "the image name leaves the image folder"),
        (r"..\b.png,x,", "the image name leaves the image folder"),
        (",x,", "no image name"),
        ("b\0.png,x,", "unprintable characters in the image name"),
        ("nowhere.jpg,x,train", "the image file is missing"),
        ("b.png,,", "empty caption"),
        ("b.png,x,tset", "unknown split: 'tset' is none of train, val, test"),
        ("b.png,x,train", "the image is in two splits: it stays in val"),
        ("b.png,x", "malformed line: 2 fields where the header has 3"),
        ("b.png,a dog, a cat,", "malformed line: 4 fields where the header has 3"),
        ('b.png,"never closed,', "malformed line: a quote is never closed"),
        ('b.png,"closed"early,', "malformed line: ',' expected after '\"'"),
    ],
)
def test_a_faulty_row_is_named_and_costs_itself_alone(tmp_path, row, reason):
    write_images(tmp_path)
    rows = as_csv(ROWS)
    write_lines(tmp_path / "t.csv", ["image,caption,split", *rows[:1], row, *rows[1:]])
    assert f"1 item of t cannot be used, the first at {tmp_path}/t.csv:3: " in refusal(
        tmp_path / "t.csv"
    )
    data = read(tmp_path / "t.csv", skip_rejected=True)
    assert [(r.line, r.reason) for r in data.rejected] == [(3, reason)]
    assert sum(len(image.captions) for image in data.images) == len(ROWS)


NOT_TEXTS = 'malformed line: no object with the texts "image" and "caption"'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "malformed line: not JSON"),
        ("[" * 100_000, "malformed line: not JSON"),
        ("[1]", NOT_TEXTS),
        ('{"image": "b.png"}', NOT_TEXTS),
        ('{"image": "b.png", "caption": 3}', NOT_TEXTS),
        (
            r'{"image": "b.png", "caption": "\ud83d"}',
            "not text: the caption holds half of a surrogate pair",
        ),
        (r'{"image": "b\u0000.png", "caption": "x"}', "unprintable characters in the image name"),
        (
            '{"image": "b.png", "caption": "x", "split": 7}',
            "unknown split: '7' is none of train, val, test",
        ),
    ],
)
def test_a_faulty_json_line_is_named(tmp_path, line, reason):
    write_images(tmp_path)
    write_json_lines(tmp_path / "t.jsonl")
    with (tmp_path / "t.jsonl").open("a") as file:
        file.write(line + "\n")
    data = read(tmp_path / "t.jsonl", skip_rejected=True)
    assert [(r.line, r.reason) for r in data.rejected] == [(len(ROWS) + 1, reason)]


def test_missing_file_folder_and_columns_are_one_clear_sentence(tmp_path):
    assert "t.csv is not a file: set data.file" in refusal(tmp_path / "t.csv")
    write_lines(tmp_path / "t.csv", ["file;text", "a.jpg;x"])
    assert "set data.images to the folder" in refusal(tmp_path / "t.csv", f"{tmp_path}/no")
    for header in ("file;text", "image,caption,Caption"):
        write_lines(tmp_path / "t.csv", [header, "a.jpg,x,y"])
        assert "t.csv:1 is no header with one column image and one" in refusal(tmp_path / "t.csv")
    write_lines(tmp_path / "t.csv", [])
    assert "t.csv is empty" in refusal(tmp_path / "t.csv")
    write_lines(tmp_path / "t.csv", ["image,caption", "a.jpg,x"])
    message = refusal(tmp_path / "t.csv")
    assert f"none of the 1 images named in {tmp_path}/t.csv is in {tmp_path}" in message


def test_the_remedy_names_the_doctor_of_this_source(tmp_path):
    write_images(tmp_path)
    write_lines(tmp_path / "t.csv", ["image,caption", "b.png,x", "c.jpg,x", "d.jpg,x", "e.jpg,x"])
    assert f"`showtell doctor data=table data.file={tmp_path}/t.csv`" in refusal(tmp_path / "t.csv")
