"""Synthetic data sets of any size: captions in Karpathy's layout, features in a store.

The captions consist of pseudo-words with the frequencies and lengths of COCO's. The image files are
empty; nothing here decodes them. The features are random. A store holds some shards of random
rows, and all its other shards are hard links to those: every row has its own place in a file of
full size and is looked up, opened and read like any other, but disk space is saved.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from showtell.types import FeatureKind
from showtell.vision.encoder import EncoderIdentity
from showtell.vision.extract import IMAGES_PER_SHARD
from showtell.vision.features import FeatureStore
from showtell.vision.images import Preprocessing

SYLLABLES = (
    "ba ko ri ten mu sol ga pi lor des fa nu wi hen to mar ze qui jo va cle dra ste un im ple tor "
    "shi an el"
)
WORDS = ["".join(parts) for parts in itertools.product(SYLLABLES.split(), repeat=3)]  # 27,000
# p(rank) ~ (rank + shift) ** -exponent: a third of COCO's 27,000 words occur at least five times.
ZIPF_EXPONENT, ZIPF_SHIFT = 1.55, 4.0
MEAN_WORDS, WORDS_SPREAD, FEWEST_WORDS, MOST_WORDS = 10.5, 2.4, 5, 49
CAPTIONS_PER_IMAGE = 5
FOLDER = "val2014"
# Shares of Karpathy's splits of COCO; the rest is the test split.
SPLIT_SHARES = {"train": 0.6715, "restval": 0.2474, "val": 0.0406}
# EfficientNet-Lite2's: 9 x 9 regions of 1280 numbers.
IDENTITY = EncoderIdentity(
    network="made",
    weights="0" * 64,
    preprocessing=Preprocessing(260, "whole", 1, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    rows=9,
    columns=9,
    size=1280,
)


@dataclass(frozen=True)
class Size:
    """The size of a data set; a few images have a sixth caption."""

    images: int
    captions: int


FLICKR8K = Size(8_000, 40_000)
COCO = Size(123_287, 616_767)


def image_name(number: int) -> str:
    """File name of an image; COCO's own have as many digits."""
    return f"COCO_val2014_{number:012d}.jpg"


def write_captions(folder: Path, size: Size) -> None:
    """Write ``dataset_coco.json``, and an empty file for every image."""
    (folder / FOLDER).mkdir(parents=True)
    captions = sentences(size.captions)
    with (folder / "dataset_coco.json").open("w") as file:
        file.write('{"images": [')
        for number in range(size.images):
            extra = number < size.captions - CAPTIONS_PER_IMAGE * size.images
            own = itertools.islice(captions, CAPTIONS_PER_IMAGE + extra)
            entry = _entry(number, _split(number / size.images), list(own))
            file.write((", " if number else "") + json.dumps(entry))
            (folder / FOLDER / image_name(number)).touch()
        file.write('], "dataset": "coco"}')


def _split(place: float) -> str:
    """The split of an image at a relative ``place``, 0 to 1, in the file."""
    end = 0.0
    for name, share in SPLIT_SHARES.items():
        end += share
        if place < end:
            return name
    return "test"


def _entry(number: int, split: str, sentences: list[list[str]]) -> dict[str, object]:
    """An image's entry, with all keys of Karpathy's format."""
    first = number * CAPTIONS_PER_IMAGE
    ids = list(range(first, first + len(sentences)))
    return {
        "filepath": FOLDER,
        "sentids": ids,
        "filename": image_name(number),
        "imgid": number,
        "split": split,
        "sentences": [
            {
                "tokens": words,
                "raw": f"{' '.join(words).capitalize()}.",
                "imgid": number,
                "sentid": i,
            }
            for i, words in zip(ids, sentences, strict=True)
        ],
        "cocoid": number,
    }


def sentences(count: int) -> Iterator[list[str]]:
    """``count`` captions, as lists of words."""
    random = np.random.default_rng(0)
    lengths = random.normal(MEAN_WORDS, WORDS_SPREAD, count).round().astype(int)
    lengths = lengths.clip(FEWEST_WORDS, MOST_WORDS)
    frequencies = (np.arange(len(WORDS)) + ZIPF_SHIFT) ** -ZIPF_EXPONENT
    drawn = random.choice(len(WORDS), size=lengths.sum(), p=frequencies / frequencies.sum())
    ends = np.cumsum(lengths)
    for start, end in zip(ends - lengths, ends, strict=True):
        yield [WORDS[word] for word in drawn[start:end]]


def contents(size: Size) -> dict[str, str]:
    """A made-up content hash for every image, by the image id that its captions have."""
    ids = [f"{FOLDER}/{image_name(number)}" for number in range(size.images)]
    return {image_id: hashlib.sha256(image_id.encode()).hexdigest() for image_id in ids}


def fill_store(root: Path, size: Size, kind: FeatureKind, *, distinct: int) -> None:
    """Store features for every image, in ``distinct`` shards and links to them (0: no links)."""
    store = FeatureStore.open(root, IDENTITY, kind)
    items = list(contents(size).items())
    random = np.random.default_rng(0)
    pool = random.normal(size=(IMAGES_PER_SHARD, *store.shape)).astype(np.float16)
    written: list[Path] = []
    for start in range(0, len(items), IMAGES_PER_SHARD):
        shard = items[start : start + IMAGES_PER_SHARD]
        image_ids, digests = (list(column) for column in zip(*shard, strict=True))
        if distinct and len(written) >= distinct and len(shard) == IMAGES_PER_SHARD:
            original = written[start // IMAGES_PER_SHARD % distinct]
            _link_shard(original, image_ids, digests)
        else:
            rows: npt.NDArray[np.float16] = pool[random.integers(len(pool), size=len(shard))]
            known = set(store.folder.glob("*-*.json"))
            store.write(image_ids, digests, rows)
            written += set(store.folder.glob("*-*.json")) - known


def _link_shard(original: Path, image_ids: list[str], digests: list[str]) -> None:
    """Add a shard of other images that shares the features of the shard ``original`` describes."""
    named = hashlib.sha256(json.dumps([image_ids, digests]).encode()).hexdigest()[:16]
    manifest = original.with_name(f"{named}-{original.stem.partition('-')[2]}.json")
    os.link(original.with_suffix(".npy"), manifest.with_suffix(".npy"))
    fields = json.loads(original.read_text())
    manifest.write_text(json.dumps(fields | {"image_ids": image_ids, "contents": digests}))
