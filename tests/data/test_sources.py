"""Every layout, every mixture, every damage: what is accepted, what is rejected, what is said."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from flickr8k_copies import (
    CAPTIONS,
    LIST_FILES,
    ORPHAN,
    SPLIT_OF,
    kaggle_adityajn105,
    kaggle_shadabhussain,
    karpathy,
    original_release,
    token_lines,
    without_test,
    write_lines,
    write_lists,
    write_photo,
    write_photos,
)

from showtell.data import sources
from showtell.data.splits import draw_splits
from showtell.errors import UserError
from showtell.types import CaptionData

TOKENS = "Flickr8k_text/Flickr8k.token.txt"


def read(root: Path, *, skip_rejected: bool = False, split_seed: int = 0) -> CaptionData:
    return sources.flickr8k(root=str(root), split_seed=split_seed, skip_rejected=skip_rejected)


def captions_of(data: CaptionData) -> dict[str, tuple[str, ...]]:
    return {image.image_id: image.captions for image in data.images}


def splits_of(data: CaptionData) -> dict[str, str | None]:
    return {image.image_id: image.split for image in data.images}


def edit(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------ the layouts


@pytest.mark.parametrize("write", [original_release, kaggle_shadabhussain])
def test_layouts_with_official_lists(tmp_path, write):
    write(tmp_path)
    data = read(tmp_path)
    assert captions_of(data) == CAPTIONS
    assert splits_of(data) == SPLIT_OF
    assert all(image.path.is_file() and image.path.name == image.image_id for image in data.images)
    assert [(r.item, r.harmless) for r in data.rejected] == [
        (f"{ORPHAN}#{n}", True) for n in range(5)
    ]
    assert data.notes == ()


def test_adityajn105_csv_keeps_quoted_captions_and_draws_by_image(tmp_path):
    kaggle_adityajn105(tmp_path)
    data = read(tmp_path)
    assert captions_of(data) == CAPTIONS
    assert splits_of(data) == draw_splits(CAPTIONS, seed=0)
    assert Counter(splits_of(data).values()) == {"train": 10, "val": 2, "test": 1}
    assert data.notes == (
        "no split lists: drew train 10, val 2, test 1 by image with data.split_seed=0",
    )


def test_karpathy_json(tmp_path):
    karpathy(tmp_path)
    data = read(tmp_path)
    assert splits_of(data) == {name: split for name, split in SPLIT_OF.items() if split}
    assert captions_of(data) == {name: CAPTIONS[name] for name in splits_of(data)}
    assert data.notes == (
        f"1 image files are named by no caption, such as {tmp_path}/imgs/0_nowhere.jpg",
    )


def test_karpathy_coco_has_folders_in_its_names_and_restval_is_train(tmp_path):
    karpathy(tmp_path, folder="val2014", train="restval")
    data = read(tmp_path)
    assert splits_of(data)["val2014/0_train.jpg"] == "train"
    assert data.images[0].path == tmp_path / "imgs" / "val2014" / "0_train.jpg"
    assert len(data.images) == 12


def test_a_set_without_test_works_for_what_it_has(tmp_path):
    without_test(tmp_path)
    data = read(tmp_path)
    assert data.splits == ("train", "val")
    assert len(data.split("train")) == 8


def test_test_images_alone_with_the_complete_texts(tmp_path):
    original_release(tmp_path)
    for name, split in SPLIT_OF.items():
        if split != "test":
            (tmp_path / "Flicker8k_Dataset" / name).unlink()
    data = read(tmp_path)
    assert data.splits == ("test",)
    assert all(rejection.harmless for rejection in data.rejected)
    assert len(data.rejected) == 5 + 11 * 5 + 10  # orphan, captions, list lines
    assert data.notes[:2] == (
        "split train is absent: none of its images is here",
        "split val is absent: none of its images is here",
    )


def test_test_split_alone(tmp_path):
    write_photos(tmp_path / "pictures", ["0_test.jpg", "1_test.jpg"])
    write_lines(tmp_path / "a.token.txt", [x for x in token_lines() if "_test.jpg" in x])
    write_lists(tmp_path, ("test",))
    assert read(tmp_path).splits == ("test",)


def test_folder_names_do_not_matter_and_images_may_lie_in_several_folders(tmp_path):
    names = list(SPLIT_OF)
    write_photos(tmp_path / "a" / "b", names[:6])
    write_photos(tmp_path / "c", names[6:])
    write_lines(tmp_path / "words" / "Flickr8k.token.txt", token_lines())
    write_lists(tmp_path / "lists")
    data = read(tmp_path)
    assert splits_of(data) == SPLIT_OF
    assert {image.path.parent for image in data.images} == {tmp_path / "a" / "b", tmp_path / "c"}


def test_the_folder_that_holds_the_named_images_is_chosen(tmp_path):
    original_release(tmp_path)
    write_photos(tmp_path / "Aaa_thumbnails", ["0_train.jpg", "1_train.jpg"])
    data = read(tmp_path)
    assert {image.path.parent.name for image in data.images} == {"Flicker8k_Dataset"}


def test_linked_image_folder(tmp_path):
    write_photos(tmp_path / "elsewhere")
    root = tmp_path / "root"
    write_lines(root / "Flickr8k.token.txt", token_lines())
    write_lists(root)
    (root / "Images").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    assert splits_of(read(root)) == SPLIT_OF


# ------------------------------------------------------------------ precedence in mixtures


def test_official_lists_go_with_the_csv(tmp_path):
    kaggle_adityajn105(tmp_path)
    write_lists(tmp_path / "Flickr8k_text")
    data = read(tmp_path)
    assert splits_of(data) == SPLIT_OF
    assert captions_of(data) == CAPTIONS
    assert set(data.origin) == {
        "captions.txt",
        *(f"Flickr8k_text/{n}" for n in LIST_FILES.values()),
    }


def test_token_file_with_lists_beats_csv_and_json(tmp_path):
    original_release(tmp_path)
    kaggle_adityajn105(tmp_path)
    karpathy(tmp_path)
    data = read(tmp_path)
    assert next(iter(data.origin)) == TOKENS
    assert data.notes[0] == (
        f"not read: captions.txt, dataset_flickr8k.json ({TOKENS} takes precedence)"
    )


def test_json_with_its_splits_beats_captions_without(tmp_path):
    kaggle_adityajn105(tmp_path)
    karpathy(tmp_path)
    data = read(tmp_path)
    assert list(data.origin) == ["dataset_flickr8k.json"]
    assert Counter(splits_of(data).values()) == {"train": 8, "val": 2, "test": 2}


def test_the_lists_beside_the_captions_win(tmp_path):
    original_release(tmp_path)
    write_lines(tmp_path / "test.txt", ["0_train.jpg"])
    data = read(tmp_path)
    assert splits_of(data) == SPLIT_OF
    assert data.notes[0].startswith("not read: test.txt")


# ------------------------------------------------------------------ tolerated, and said aloud


def test_crlf_byte_order_mark_and_missing_newline(tmp_path):
    original_release(tmp_path)
    tokens = tmp_path / TOKENS
    tokens.write_bytes(
        b"\xef\xbb\xbf" + tokens.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n")
    )
    dev = tmp_path / "Flickr8k_text" / "Flickr_8k.devImages.txt"
    dev.write_bytes(dev.read_bytes().replace(b"\n", b"\r\n"))
    data = read(tmp_path)
    assert captions_of(data) == CAPTIONS
    assert splits_of(data) == SPLIT_OF
    assert data.notes == (
        "Flickr8k.token.txt starts with a byte order mark",
        "Flickr8k.token.txt has no newline at its end",
        "Flickr8k.token.txt has CRLF line endings",
        "Flickr_8k.devImages.txt has CRLF line endings",
    )


def test_extension_in_another_case(tmp_path):
    original_release(tmp_path)
    photo = tmp_path / "Flicker8k_Dataset" / "0_train.jpg"
    photo.rename(photo.with_suffix(".JPG"))
    data = read(tmp_path)
    assert splits_of(data) == SPLIT_OF
    assert "0_train.jpg: 0_train.JPG" in data.notes[0]


def test_foreign_images_are_noted(tmp_path):
    original_release(tmp_path)
    write_photo(tmp_path / "Flicker8k_Dataset" / "holiday.jpg", 99)
    data = read(tmp_path)
    assert len(data.images) == len(SPLIT_OF)
    assert "1 image files are named by no caption" in data.notes[0]
    assert "holiday.jpg" in data.notes[0]


def test_origin_is_the_sha256_of_each_file(tmp_path):
    original_release(tmp_path)
    data = read(tmp_path)
    assert len(data.origin) == 4
    for name, sha256 in data.origin.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == sha256


# ------------------------------------------------------------------ damage

LOST_TAB = (b"0_dev.jpg#1\tTwo", b"0_dev.jpg#1 Two")
LONG = (b"0_dev.jpg#0\t", b"0_dev.jpg#" + b"9" * 5000 + b"\t")
LATIN_1 = (b"0_dev.jpg#3\tCaf\xc3\xa9", b"0_dev.jpg#3\tCaf\xe9")
EMPTY = (b"0_dev.jpg#4\ta\n", b"0_dev.jpg#4\t \n")
TWICE = (b"0_dev.jpg#4\t", b"0_dev.jpg#3\t")
ESCAPE = (b"0_dev.jpg#0\t", b"../0_dev.jpg#0\t")
ABSOLUTE = (b"0_dev.jpg#0\t", b"/etc/0_dev.jpg#0\t")


@pytest.mark.parametrize(
    ("damage", "line", "reason"),
    [
        (LOST_TAB, 2, "malformed line: no image#number before a tab"),
        (LATIN_1, 4, "not UTF-8: byte 0xe9 at byte 16 of the line"),
        (LONG, 1, "malformed line: no image#number before a tab"),
        (EMPTY, 5, "empty caption"),
        (TWICE, 5, "duplicate caption number"),
        (ESCAPE, 1, "the image name leaves the image folder"),
        (ABSOLUTE, 1, "the image name leaves the image folder"),
    ],
)
def test_a_damaged_line_stops_the_reading_and_is_named(tmp_path, damage, line, reason):
    original_release(tmp_path)
    lines = sorted(token_lines())  # 0_dev.jpg comes first
    write_lines(tmp_path / TOKENS, lines)
    edit(tmp_path / TOKENS, *damage)
    message = refusal(tmp_path)
    assert message.startswith("1 item of flickr8k cannot be used, the first at ")
    assert f"{tmp_path / TOKENS}:{line}: " in message
    assert reason in message
    assert f"`showtell doctor data.root={tmp_path}`" in message
    assert "`data.skip_rejected=true`" in message

    data = read(tmp_path, skip_rejected=True)
    fault, *harmless = data.rejected
    assert (fault.line, fault.reason, fault.harmless) == (line, reason, False)
    assert all(rejection.harmless for rejection in harmless)
    assert len(captions_of(data)["0_dev.jpg"]) == 4
    assert data.notes[-1] == "faulty items skipped: 1"


def test_a_listed_image_that_is_absent(tmp_path):
    original_release(tmp_path)
    (tmp_path / "Flicker8k_Dataset" / "3_train.jpg").unlink()
    message = refusal(tmp_path)
    assert message.startswith("6 items of flickr8k cannot be used")
    assert "Flickr_8k.trainImages.txt:4: 3_train.jpg: the image file is missing" in message
    data = read(tmp_path, skip_rejected=True)
    assert len(data.split("train")) == 7


def test_a_listed_image_without_captions(tmp_path):
    original_release(tmp_path)
    write_photo(tmp_path / "Flicker8k_Dataset" / "foreign.jpg", 77)
    names = tmp_path / "Flickr8k_text" / "Flickr_8k.devImages.txt"
    names.write_bytes(names.read_bytes() + b"foreign.jpg\n")
    message = refusal(tmp_path)
    assert "devImages.txt:3: foreign.jpg: listed in a split but without a usable caption" in message


def test_an_image_in_two_splits_stays_where_it_is_measured(tmp_path):
    original_release(tmp_path)
    names = tmp_path / "Flickr8k_text" / "Flickr_8k.trainImages.txt"
    names.write_bytes(b"0_test.jpg\n" + names.read_bytes())
    message = refusal(tmp_path)
    assert "trainImages.txt:1: 0_test.jpg: the image is in two splits: it stays in test" in message
    assert splits_of(read(tmp_path, skip_rejected=True)) == SPLIT_OF


def test_an_image_twice_in_one_list_loses_nothing(tmp_path):
    original_release(tmp_path)
    names = tmp_path / "Flickr8k_text" / "Flickr_8k.trainImages.txt"
    names.write_bytes(names.read_bytes() + b"0_train.jpg\n\n")
    data = read(tmp_path)
    assert [(r.line, r.reason) for r in data.rejected if r.source == names] == [
        (9, "listed twice in the same split"),
        (10, "blank line"),
    ]


def test_without_lists_a_missing_file_is_a_loss_but_the_orphan_is_not(tmp_path):
    original_release(tmp_path)
    for name in LIST_FILES.values():
        (tmp_path / "Flickr8k_text" / name).unlink()
    assert len(read(tmp_path).rejected) == 5
    (tmp_path / "Flicker8k_Dataset" / "3_train.jpg").unlink()
    assert "5 items" in refusal(tmp_path)


def captions_without_image(root: Path) -> None:
    write_lines(root / "Flickr8k.token.txt", token_lines())


def empty_captions(root: Path) -> None:
    write_lines(root / "Flickr8k.token.txt", [])


def header_alone(root: Path) -> None:
    write_photo(root / "x.jpg", 1)
    write_lines(root / "captions.txt", ["image,caption"])


def other_images(root: Path) -> None:
    write_photo(root / "x.jpg", 1)
    write_lines(root / "Flickr8k.token.txt", token_lines())


def every_tab_lost(root: Path) -> None:
    original_release(root)
    write_lines(root / TOKENS, ["0_dev.jpg#0 lost"] * 9)


def empty_list(root: Path) -> None:
    original_release(root)
    write_lines(root / "Flickr8k_text" / "Flickr_8k.devImages.txt", [])


def utf_16(root: Path) -> None:
    original_release(root)
    (root / TOKENS).write_text("\n".join(token_lines()), "utf-16")


def broken_json(root: Path) -> None:
    karpathy(root)
    edit(root / "dataset_flickr8k.json", b'"dataset"', b"dataset")


def undecodable_json(root: Path) -> None:
    karpathy(root)
    edit(root / "dataset_flickr8k.json", b'"dataset"', b'"\xff"')


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda root: None, "is not a folder: set data.root"),
        (Path.mkdir, "holds no captions"),
        (write_photos, "holds no captions"),
        (captions_without_image, "holds no image"),
        (empty_captions, "Flickr8k.token.txt is empty"),
        (header_alone, "captions.txt holds no usable caption: mend the file"),
        (other_images, "none of the 14 images named in"),
        (every_tab_lost, "holds no usable caption, the first fault is at "),
        (empty_list, "devImages.txt names no image"),
        (utf_16, "starts as UTF-16: save the file as UTF-8"),
        (broken_json, "json:1 is not JSON"),
        (undecodable_json, "json:1 is not UTF-8: byte 0xff"),
    ],
)
def test_nothing_to_read_is_one_clear_sentence(tmp_path, write, message):
    write(tmp_path / "data")
    assert message in refusal(tmp_path / "data")


def test_karpathy_faults_name_the_sentence(tmp_path):
    karpathy(tmp_path)
    path = tmp_path / "dataset_flickr8k.json"
    document = json.loads(path.read_text())
    sentences = document["images"][0]["sentences"]
    sentences[1]["raw"] = " "
    sentences[2]["raw"] = None
    sentences[3]["raw"] = "half \ud83d"
    document["images"][1]["sentences"] = []
    document["images"][2]["split"] = "tset"
    del document["images"][3]["filename"]
    path.write_text(json.dumps(document))
    data = read(tmp_path, skip_rejected=True)
    assert [(r.item, r.kind) for r in data.rejected[:4]] == [
        ("0_train.jpg#1", "empty caption"),
        ("0_train.jpg#2", "malformed entry"),
        ("0_train.jpg#3", "not text"),
        ("1_train.jpg", "image without captions"),
    ]
    assert Counter(r.kind for r in data.rejected)["unknown split"] == 5
    assert data.rejected[-1].reason == "malformed entry: no filename"
    assert sum(len(image.captions) for image in data.images) + len(data.rejected) == 12 * 5 - 4 - 4


# ------------------------------------------------------------------ the real thing


def test_the_real_flickr8k_beside_the_repository(shared):
    data = read(shared / "flickr8k")
    assert len(data.images) == 7000
    assert sum(len(image.captions) for image in data.images) == 35000
    assert {split: len(data.split(split)) for split in ("train", "val", "test")} == {
        "train": 6000,
        "val": 1000,
        "test": 0,
    }
    assert [(r.item, r.line, r.harmless) for r in data.rejected] == [
        (f"{ORPHAN}#{number}", 5791 + number, True) for number in range(5)
    ]
    lines = (shared / "flickr8k" / TOKENS).read_text(encoding="utf-8").splitlines()
    raw = [line.split("\t")[1] for line in lines if ORPHAN not in line]
    assert Counter(raw) == Counter(c for image in data.images for c in image.captions)
