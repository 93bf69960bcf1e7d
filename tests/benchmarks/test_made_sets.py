"""The made data sets: they have the size they claim, and read like any other."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import made_sets
from made_sets import IDENTITY, Size, contents, fill_store, write_captions

from showtell.data.flickr8k import read_flickr8k
from showtell.text.tokenizer import tokenize
from showtell.vision.features import FeatureStore

SIZE = Size(100, 507)


def test_captions_are_as_many_as_asked_and_all_accepted(tmp_path: Path) -> None:
    write_captions(tmp_path / "data", SIZE)
    data = read_flickr8k(tmp_path / "data", split_seed=0)
    assert data.rejected == ()
    assert len(data.images) == SIZE.images
    captions = [caption for image in data.images for caption in image.captions]
    assert len(captions) == SIZE.captions
    assert {len(image.captions) for image in data.images} == {5, 6}
    assert len(data.split("train")) == 68 + 24  # with `restval`
    assert {image.image_id for image in data.images} == set(contents(SIZE))
    words = [len(tokenize(caption)) for caption in captions]
    assert 9.5 < np.mean(words) < 11.5


@pytest.mark.parametrize("distinct", [0, 2])
def test_every_image_has_features_linked_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distinct: int
) -> None:
    monkeypatch.setattr(made_sets, "IMAGES_PER_SHARD", 8)
    fill_store(tmp_path, Size(37, 185), "pooled", distinct=distinct)
    store = FeatureStore.open(tmp_path, IDENTITY, "pooled")
    store.verify()
    view = store.select(contents(Size(37, 185)))
    rows = view.gather(view.index(contents(Size(37, 185))))
    assert rows.shape == (37, 1280)
    files = list(store.folder.glob("*.npy"))
    assert len(files) == 5
    inodes = {file.stat().st_ino for file in files}
    assert len(inodes) == (5 if distinct == 0 else 3)  # the last shard is shorter than the others
    repeats = np.array_equal(rows[:8], rows[16:24])
    assert repeats == (distinct == 2)
