"""The built-in set: its captions and its pixels against the facts, its splits, its files."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from showtell.data.scenes import scenes, write_scenes
from showtell.data.scenes.drawing import RGB, draw
from showtell.data.scenes.facts import (
    COLOURS,
    KINDS,
    SETTINGS,
    Relation,
    Scene,
    Thing,
    home,
    imagine,
)
from showtell.data.scenes.files import GENERATOR_VERSION
from showtell.data.scenes.grammar import describe
from showtell.errors import UserError
from showtell.types import SPLITS, Split

SIZES: dict[Split, int] = {"train": 600, "val": 100, "test": 100}  # as in conf/data/scenes.yaml

# An independent reading of the captions: a lexicon of its own, none of the grammar's tables.
NOUNS = {
    **{kind: kind for kind in KINDS},
    **{f"{kind}s": kind for kind in KINDS if kind != "fish"},
    "crate": "box",
}  # fmt: skip
ADJECTIVES = {
    "small": "small", "little": "small", "tiny": "small",
    "big": "large", "large": "large", "huge": "large",
}  # fmt: skip
NUMBERS = {"a": 1, "an": 1, "two": 2, "couple": 2, "three": 3}
PLACES = {
    "meadow": ("in a meadow", "in a green meadow", "in the countryside"),
    "sea": ("out at sea", "at sea", "on the blue ocean"),
    "reef": ("under water", "under the sea", "at the bottom of the ocean"),
    "desert": ("in the desert", "in a sandy desert", "in the hot desert"),
    "snow": ("in the snow", "on a snowy day", "in winter"),
    "night": ("at night", "on a dark night", "under the night sky"),
    "room": ("in a room", "indoors", "at home"),
}
# Phrase -> relation, and whether the thing named second is the subject.
PHRASES = {
    "to the left of": (Relation.LEFT_OF, False),
    "to the right of": (Relation.LEFT_OF, True),
    "next to": (Relation.LEFT_OF, None),
    "beside": (Relation.LEFT_OF, None),
    "and": (Relation.LEFT_OF, None),
    "above": (Relation.ABOVE, False),
    "over": (Relation.ABOVE, False),
    "below": (None, True),  # of what is above it or on it
    "under": (None, True),
    "on top of": (Relation.ON, False),
    "inside": (Relation.INSIDE, False),
    "holds": (Relation.INSIDE, True),
    "in": (Relation.INSIDE, False),
    "on": (Relation.ON, False),
}


class Mention(NamedTuple):
    kind: str
    colour: str | None
    size: str | None
    count: int


class Reading(NamedTuple):
    mentions: list[Mention]
    place: str | None
    relation: Relation | None
    converse: bool | None


def read_caption(caption: str) -> Reading:
    text = f" {caption.lower().removesuffix(' .')} "
    place = None
    for name, phrases in PLACES.items():
        for phrase in phrases:
            if f" {phrase} " in text:
                place, text = name, text.replace(f" {phrase} ", " ", 1)
    mentions = [
        mention(text.split()[: at + 1]) for at, word in enumerate(text.split()) if word in NOUNS
    ]
    if text.endswith(" it "):  # "a box with a cat on it": the last phrase speaks of the first noun
        mentions.reverse()
    for phrase, (relation, converse) in PHRASES.items():
        if f" {phrase} " in text and len(mentions) == 2:
            return Reading(mentions, place, relation, converse)
    return Reading(mentions, place, None, None)


def mention(words: list[str]) -> Mention:
    """The thing named by the last word, with the adjectives and the number before it."""
    colour, size = None, None
    for word in reversed(words[:-1]):
        if word in COLOURS:
            colour = word
        elif word in ADJECTIVES:
            size = ADJECTIVES[word]
        elif word in NUMBERS:
            return Mention(NOUNS[words[-1]], colour, size, NUMBERS[word])
        elif word != "of":
            break
    raise AssertionError(f"no number or article before the noun: {words}")


def the_scene(split: Split, index: int, seed: int = 0) -> Scene:
    return imagine(seed=seed, split=split, index=index)


def the_captions(split: Split, index: int, seed: int = 0) -> tuple[str, ...]:
    rng = random.Random(f"{seed}/{split}/{index}/captions")
    return describe(the_scene(split, index, seed), rng)


@pytest.mark.parametrize("split", SPLITS)
def test_every_caption_says_only_what_is_true_of_the_scene(split: Split) -> None:
    said: Counter[str] = Counter()
    for index in range(SIZES[split]):
        scene = the_scene(split, index)
        for caption in the_captions(split, index):
            reading = read_caption(caption)
            things = list(scene.things)
            if reading.converse or (reading.converse is None and named_backwards(reading, scene)):
                things.reverse()
            assert len(reading.mentions) == len(things), caption
            for thing, named in zip(things, reading.mentions, strict=True):
                assert (named.kind, named.count) == (thing.kind, thing.count), caption
                assert named.colour in (None, thing.colour), caption
                assert named.size in (None, thing.size), caption
                said["colour"] += named.colour is not None
                said["size"] += named.size is not None
            assert reading.place in (None, scene.setting), caption
            assert reading.relation in (None, scene.relation), caption
            said["place"] += reading.place is not None
            said["relation"] += reading.relation is not None
    captions = 5 * SIZES[split]
    assert said["colour"] > captions and said["size"] > captions / 3  # the reading was not blind
    assert said["place"] > captions / 3 and said["relation"] > captions / 3


def named_backwards(reading: Reading, scene: Scene) -> bool:
    """Whether a symmetric sentence (``next to``) names the other thing first."""
    return reading.mentions[0].kind != scene.subject.kind


@pytest.mark.parametrize("seed", [0, 1])
def test_five_different_captions_of_one_line_each(seed: int) -> None:
    for index in range(600):
        captions = the_captions("train", index, seed)
        assert len(captions) == len({caption.lower() for caption in captions}) == 5
        for caption in captions:
            assert caption.isascii() and caption[0].isupper() and caption.endswith(" .")
            assert "  " not in caption and "\t" not in caption and "{" not in caption
            words = caption.split()
            assert all(
                (word.lower() == "an") == (after[0] in "aeiou")
                for word, after in pairwise(words)
                if word.lower() in ("a", "an")
            )


@pytest.mark.parametrize("seed", [0, 1])
def test_training_knows_every_word_of_the_other_splits(seed: int) -> None:
    words = {
        split: Counter(
            word
            for index in range(size)
            for caption in the_captions(split, index, seed)
            for word in caption.lower().split()
        )
        for split, size in SIZES.items()
    }
    assert set(words["val"]) | set(words["test"]) <= set(words["train"])
    assert 90 <= len(words["train"]) <= 130
    assert min(words["train"].values()) >= 5  # nothing falls below a usual min_count


def test_held_out_compositions_occur_in_their_split_alone() -> None:
    compositions = {
        split: [
            {(thing.colour, thing.kind, scene.relation) for thing in scene.things}
            for scene in (the_scene(split, index) for index in range(size))
        ]
        for split, size in SIZES.items()
    }
    seen = {split: set().union(*groups) for split, groups in compositions.items()}
    for split, others in (("val", ("train", "test")), ("test", ("train", "val"))):
        elsewhere = seen[others[0]] | seen[others[1]]
        assert all(group - elsewhere for group in compositions[split])  # in every picture
    assert {home(*composition) for composition in seen["train"]} == {"train"}


def test_training_captions_never_speak_of_a_held_out_composition() -> None:
    said: dict[Split, set[tuple[str, str, Relation]]] = {split: set() for split in SPLITS}
    for split, size in SIZES.items():
        for index in range(size):
            for caption in the_captions(split, index):
                reading = read_caption(caption)
                relation = Relation.ALONE if len(reading.mentions) == 1 else reading.relation
                if relation is not None:
                    said[split] |= {
                        (named.colour, named.kind, relation)
                        for named in reading.mentions
                        if named.colour is not None
                    }
    assert {home(*triple) for triple in said["train"]} == {"train"}
    assert {home(*triple) for triple in said["val"]} == {"train", "val"}
    assert {home(*triple) for triple in said["test"]} == {"train", "test"}


def test_one_colour_in_eight_is_held_out_for_val_and_another_for_test() -> None:
    for kind in KINDS:
        for relation in Relation:
            homes = Counter(home(colour, kind, relation) for colour in COLOURS)
            assert homes == {"train": 6, "val": 1, "test": 1}


def test_every_kind_setting_relation_and_colour_is_trained_on() -> None:
    drawn = [the_scene("train", index) for index in range(SIZES["train"])]
    assert {scene.setting for scene in drawn} == set(SETTINGS)
    assert {scene.relation for scene in drawn} == set(Relation)
    assert {scene.subject.count for scene in drawn} == {1, 2, 3}
    assert min(Counter(t.kind for s in drawn for t in s.things).values()) >= 10
    assert min(Counter(t.colour for s in drawn for t in s.things).values()) >= 60


def pixels(scene: Scene, drawing: str = "0") -> np.ndarray:
    return np.asarray(draw(scene, random.Random(drawing)), dtype=np.int32)


def where(scene: Scene, recoloured: Scene) -> np.ndarray:
    """Which pixels show the thing whose colour alone differs between two scenes."""
    return np.abs(pixels(scene) - pixels(recoloured)).sum(axis=2) > 90


@pytest.mark.parametrize("kind", KINDS)
def test_a_thing_is_seen_in_its_colour(kind: str) -> None:
    setting = list(SETTINGS)[KINDS.index(kind) % len(SETTINGS)]
    against = {"red": "blue", "green": "pink", "white": "purple", "orange": "blue"}
    for colour, contrast in against.items():
        one, other = (
            Scene(setting, Relation.ALONE, Thing(kind, name, "large"))
            for name in (colour, contrast)
        )
        shown = pixels(one)[where(one, other)]
        distances = np.stack([np.abs(shown - rgb).sum(axis=1) for rgb in RGB.values()])
        share = (distances.argmin(axis=0) == list(RGB).index(colour)).mean()
        assert len(shown) > 500
        assert share > 0.35, colour  # the rest is outline, shade and highlight


RELATED = (
    Scene(
        "desert", Relation.LEFT_OF, Thing("car", "red", "large"), Thing("tree", "green", "large")
    ),
    Scene(
        "night", Relation.ABOVE, Thing("rocket", "red", "large"), Thing("house", "green", "large")
    ),
    Scene("room", Relation.ON, Thing("cat", "red", "large"), Thing("box", "green", "large")),
    Scene("room", Relation.ON, Thing("cup", "red", "small"), Thing("table", "green", "large")),
    Scene("room", Relation.INSIDE, Thing("fish", "red", "small"), Thing("bowl", "green", "large")),
    Scene(
        "meadow", Relation.INSIDE, Thing("cat", "red", "small"), Thing("basket", "green", "large")
    ),
)


@pytest.mark.parametrize("scene", RELATED, ids=lambda scene: f"{scene.relation} {scene.other.kind}")
def test_the_relation_is_seen_in_the_pixels(scene: Scene) -> None:
    assert scene.other is not None
    subject, other = scene.subject, scene.other
    blue_subject = Scene(
        scene.setting, scene.relation, Thing(subject.kind, "blue", subject.size), other
    )
    blue_other = Scene(
        scene.setting, scene.relation, subject, Thing(other.kind, "blue", other.size)
    )
    subject_rows, subject_columns = np.nonzero(where(scene, blue_subject))
    other_rows, other_columns = np.nonzero(where(scene, blue_other))
    match scene.relation:
        case Relation.LEFT_OF:
            assert subject_columns.max() < other_columns.min()
            assert abs(int(subject_rows.max()) - int(other_rows.max())) < 25
        case Relation.ABOVE:
            assert subject_rows.max() < other_rows.min()
        case Relation.ON:
            assert abs(int(subject_rows.max()) - int(other_rows.min())) < 15
            assert other_columns.min() < subject_columns.mean() < other_columns.max()
        case Relation.INSIDE:
            assert other_columns.min() < subject_columns.min()
            assert subject_columns.max() < other_columns.max()
            assert other_rows.min() < subject_rows.min() and subject_rows.max() < other_rows.max()


@pytest.mark.parametrize("kind", ["ball", "star", "house", "fish"])
def test_count_and_size_are_seen_in_the_pixels(kind: str) -> None:
    areas = {}
    for size in ("small", "large"):
        for count in (1, 2, 3):
            red, blue = (
                Scene("snow", Relation.ALONE, Thing(kind, colour, size, count))
                for colour in ("red", "blue")
            )
            columns = where(red, blue).any(axis=0)
            columns[1:-1] |= columns[:-2] & columns[2:]  # a thin outline may leave a gap of one
            starts = np.count_nonzero(columns[1:] & ~columns[:-1]) + columns[0]
            assert starts == count, (size, count)
            areas[size, count] = where(red, blue).sum() / count
        assert areas[size, 1] >= areas[size, 3]
    assert all(areas["large", count] > 3 * areas["small", count] for count in (1, 2, 3))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_and_a_larger_set_goes_on(tmp_path: Path) -> None:
    for name, train_images in (("once", 4), ("again", 4), ("more", 6)):
        write_scenes(
            tmp_path / name, seed=3, train_images=train_images, val_images=2, test_images=1
        )
    write_scenes(tmp_path / "other", seed=4, train_images=4, val_images=2, test_images=1)
    once, more = contents(tmp_path / "once"), contents(tmp_path / "more")
    assert once == contents(tmp_path / "again")
    pictures = {name: data for name, data in once.items() if name.endswith(".jpg")}
    assert len(pictures) == 7 and pictures.items() <= more.items()
    assert not set(pictures.values()) & set(contents(tmp_path / "other").values())


def test_other_words_need_another_version() -> None:
    """After a wanted change of facts or grammar: raise GENERATOR_VERSION, then this digest."""
    captions = [line for split in SPLITS for n in range(50) for line in the_captions(split, n)]
    digest = hashlib.sha256("\n".join(captions).encode()).hexdigest()
    known = "0d09d657a1b06c7d647743e6c478a88af635e40f15e6affcf7a2dafebd1f8503"
    assert (GENERATOR_VERSION, digest) == (1, known)


def test_the_files_are_those_of_the_original_release(tmp_path: Path) -> None:
    write_scenes(tmp_path / "s", seed=0, train_images=3, val_images=2, test_images=1)
    text = tmp_path / "s" / "Flickr8k_text"
    lines = (text / "Flickr8k.token.txt").read_bytes().decode("ascii").splitlines()
    assert lines[5].split("\t")[0] == "train_000001.jpg#0" and len(lines) == 30
    assert (text / "Flickr_8k.devImages.txt").read_bytes() == b"val_000000.jpg\nval_000001.jpg\n"
    with Image.open(tmp_path / "s" / "Flicker8k_Dataset" / "test_000000.jpg") as picture:
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (224, 224))


def small(root: Path, *, train_images: int = 3, val_images: int = 2, test_images: int = 1):
    return scenes(
        root=str(root), seed=0, train_images=train_images, val_images=val_images,
        test_images=test_images, skip_rejected=False,
    )  # fmt: skip


def test_it_is_read_as_flickr8k_with_disjoint_splits(tmp_path: Path) -> None:
    data = small(tmp_path)
    assert data.name == "scenes" and not data.rejected
    assert {split: len(data.split(split)) for split in SPLITS} == {"train": 3, "val": 2, "test": 1}
    assert len({image.image_id for image in data.images}) == 6
    assert data.split("val")[1].captions == the_captions("val", 1)


def test_a_set_without_a_split_has_no_list_for_it(tmp_path: Path) -> None:
    assert small(tmp_path, val_images=0, test_images=0).splits == ("train",)
    assert small(tmp_path, train_images=0, val_images=0).splits == ("test",)


def test_what_is_there_is_not_drawn_again(tmp_path: Path) -> None:
    small(tmp_path)
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"scenes-v{GENERATOR_VERSION}-seed0-3-2-1"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    small(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_kill_leaves_nothing_that_is_believed_later(tmp_path: Path) -> None:
    code = (
        "from showtell.data.scenes import scenes; import sys\n"
        "scenes(root=sys.argv[1], seed=0, train_images=5000, val_images=2, test_images=1,"
        " skip_rejected=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        while not list(tmp_path.rglob("train_000003.jpg")):
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (draft,) = tmp_path.iterdir()
    assert draft.name.startswith(".")
    draft.rename(tmp_path / draft.name.replace("-5000-2-1", "-3-2-1"))  # the draft of a small set
    assert len(small(tmp_path).images) == 6


def test_processes_at_once_agree_on_one_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(small, tmp_path) for _ in range(4)]
    assert len({result.result().images for result in results}) == 1
    assert [path.name for path in tmp_path.iterdir()] == [
        f"scenes-v{GENERATOR_VERSION}-seed0-3-2-1"
    ]


def test_a_failed_drawing_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("showtell.data.scenes.files.describe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path)
    assert not list(tmp_path.iterdir())


def test_impossible_sizes_and_places_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.val_images=-1"):
        small(tmp_path, val_images=-1)
    with pytest.raises(UserError, match=r"data\.train_images=0, data\.val_images=0"):
        small(tmp_path, train_images=0, val_images=0, test_images=0)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.*point data\.root at"):
        small(tmp_path / "file")
