"""What the doctor says: counts, checksums, and each kind of damage it must find."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from flickr8k_copies import SPLIT_OF, original_release, write_photo
from PIL import Image

from showtell.data import checks, sources
from showtell.data.checks import (
    DIFFERENT,
    FLICKR8K_SHA256,
    ORIGINAL,
    CaptionWords,
    Corrupt,
    Duplicates,
    Examination,
    SplitCount,
    decode_fault,
    examine,
    examine_config,
)

PHOTOS = "Flicker8k_Dataset"


@pytest.fixture
def root(tmp_path) -> Path:
    original_release(tmp_path)
    return tmp_path


def examined(root: Path) -> Examination:
    return examine(sources.flickr8k(root=str(root), split_seed=0, skip_rejected=True))


def report(examination: Examination, examples: int = 3) -> str:
    return "\n".join(examination.lines(examples=examples))


def test_a_sound_copy(root):
    examination = examined(root)
    assert examination.healthy
    assert examination.splits == {
        "train": SplitCount(8, 40),
        "val": SplitCount(2, 10),
        "test": SplitCount(2, 10),
        "none": SplitCount(1, 5),
    }
    # Each image's five captions have 8, 6, 8, 4 and 1 words.
    assert examination.words == CaptionWords(1, 27 / 5, 8)
    assert (examination.corrupt, examination.duplicates, examination.foreign) == ((), (), ())
    text = report(examination)
    assert text.startswith(
        "flickr8k: 13 images, 65 captions\n  train      8 images      40 captions"
    )
    assert "rejected: 5 items, 5 of them harmless" in text
    assert "harmless rejected, the image is in no split and has no file: 5" in text
    assert text.endswith("healthy")
    assert "!" not in text


def test_checksums_of_the_known_files_are_judged(root):
    verdicts = examined(root).checksums
    assert verdicts == {f"Flickr8k_text/{name}": DIFFERENT for name in FLICKR8K_SHA256}


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_truncated_photograph_is_corrupt(root, kept):
    photo = root / PHOTOS / "3_train.jpg"
    Image.effect_noise((64, 64), 50).save(photo)
    photo.write_bytes(photo.read_bytes()[: kept if kept >= 0 else -200])
    examination = examined(root)
    assert [corrupt.path for corrupt in examination.corrupt] == [photo]
    assert not examination.healthy
    assert f"! images that cannot be decoded: 1\n    {photo}: " in report(examination)


def test_what_is_not_an_image_says_so_without_memory_addresses():
    assert decode_fault(b"<html>404</html>") == "no JPEG, PNG or WebP picture"
    assert decode_fault(b"") == "an empty file"


def test_one_picture_in_two_splits_is_a_leak(root):
    shutil.copy(root / PHOTOS / "0_train.jpg", root / PHOTOS / "1_test.jpg")
    examination = examined(root)
    assert examination.duplicates == (Duplicates(("0_train.jpg", "1_test.jpg"), ("train", "test")),)
    assert not examination.healthy
    assert "! pictures that stand in more than one split: 1" in report(examination)
    assert "    0_train.jpg in train, 1_test.jpg in test" in report(examination)


def test_one_picture_twice_in_a_split_is_told_but_no_fault(root):
    shutil.copy(root / PHOTOS / "0_train.jpg", root / PHOTOS / "1_train.jpg")
    shutil.copy(root / PHOTOS / "0_test.jpg", root / PHOTOS / "0_nowhere.jpg")
    examination = examined(root)
    assert [group.leak for group in examination.duplicates] == [False, False]
    assert examination.healthy
    assert "pictures that stand twice in one split: 2" in report(examination)


def test_rejected_items_are_grouped_and_the_examples_limited(root):
    (root / PHOTOS / "0_dev.jpg").unlink()
    tokens = root / "Flickr8k_text" / "Flickr8k.token.txt"
    tokens.write_bytes(tokens.read_bytes().replace(b"1_dev.jpg#2\tThe", b"1_dev.jpg#2 The"))
    examination = examined(root)
    assert not examination.healthy
    assert len(examination.faults) == 7
    text = report(examination, examples=2)
    assert "! rejected, malformed line: 1\n" in text
    assert ': 1_dev.jpg#2 The sign reads " Go #1 " .: no image#number before a tab' in text
    assert "! rejected, the image file is missing: 6\n" in text
    assert "    and 4 more" in text
    assert text.endswith("not healthy: see the items marked with !")


def test_foreign_images_are_named_but_rejected_ones_are_not_foreign(root):
    write_photo(root / PHOTOS / "holiday.jpg", 99)
    captions = root / "Flickr8k_text" / "Flickr8k.token.txt"
    lines = [line for line in captions.read_bytes().split(b"\n") if b"0_nowhere" not in line]
    captions.write_bytes(b"\n".join([b"0_nowhere.jpg#0\t ", *lines]))
    assert examined(root).foreign == (root / PHOTOS / "holiday.jpg",)


def test_the_json_form_holds_every_item(root):
    (root / PHOTOS / "0_dev.jpg").unlink()
    (root / PHOTOS / "0_test.jpg").write_bytes(b"no image")
    form = json.loads(json.dumps(examined(root).to_json()))
    assert form["healthy"] is False
    assert form["splits"]["train"] == {"images": 8, "captions": 40}
    assert form["words"] == {"least": 1, "mean": 5.4, "most": 8}
    assert len(form["rejected"]) == 5 + 6
    assert form["rejected"][0]["kind"] == "the image file is missing"
    assert form["corrupt"] == [
        {"path": f"{root}/{PHOTOS}/0_test.jpg", "reason": "no JPEG, PNG or WebP picture"}
    ]


def test_a_configured_data_set_is_read_past_its_faults(root):
    (root / PHOTOS / "0_dev.jpg").unlink()
    node = {"root": str(root), "split_seed": 0, "skip_rejected": False}
    examination = examine_config({"_target_": "showtell.data.sources.flickr8k", **node})
    assert examination == examined(root)
    assert len(examination.faults) == 6


def test_threads_change_nothing(root, monkeypatch):
    (root / PHOTOS / "0_test.jpg").write_bytes(b"no image")
    data = sources.flickr8k(root=str(root), split_seed=0, skip_rejected=True)
    found = []
    for cores in (1, 4):
        monkeypatch.setattr(checks, "available_cores", lambda cores=cores: cores)
        found.append(examine(data))
    alone, together = found
    assert together == alone
    assert alone.corrupt == (Corrupt(root / PHOTOS / "0_test.jpg", "no JPEG, PNG or WebP picture"),)
    assert len(SPLIT_OF) == 13


@pytest.mark.slow
def test_the_real_flickr8k_is_healthy(shared):
    examination = examined(shared / "flickr8k")
    assert examination.healthy
    assert examination.checksums == {
        "Flickr8k_text/Flickr8k.token.txt": DIFFERENT,  # without the held-back test captions
        "Flickr8k_text/Flickr_8k.trainImages.txt": ORIGINAL,
        "Flickr8k_text/Flickr_8k.devImages.txt": ORIGINAL,
    }
    assert (examination.words.least, examination.words.most) == (2, 38)
    assert examination.words.mean == pytest.approx(11.8, abs=0.05)
    assert (examination.corrupt, examination.foreign) == ((), ())
    assert [group.splits for group in examination.duplicates] == [("train", "train")]
