"""Batches: every caption once an epoch, targets shifted by one, continued anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from showtell.data.batches import Batch, CaptionBatches, EncodedCaptions
from showtell.errors import UserError
from showtell.text.vocabulary import BEGIN, END, PAD, UNKNOWN, Vocabulary
from showtell.types import CaptionedImage
from showtell.vision.features import DrawnViews

WORDS = ["a", "dog", "runs", "fast"]


class Rows:
    """Features whose first number tells the image."""

    def index(self, image_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        return np.array([int(i.removesuffix(".jpg")) for i in image_ids])

    def gather(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        return np.stack([positions, positions + 0.5], axis=1).astype(np.float16)


def vocabulary() -> Vocabulary:
    return Vocabulary(WORDS, min_count=1, counts=[1] * 4)


def images(count: int) -> list[CaptionedImage]:
    random = np.random.default_rng(0)
    return [
        CaptionedImage(
            f"{i}.jpg",
            Path(f"{i}.jpg"),
            tuple(" ".join(random.choice(WORDS, random.integers(1, 9))) for _ in range(5)),
            "train",
        )
        for i in range(count)
    ]


def batches(count: int = 23, *, seed: int | None = 3, batch_size: int = 4) -> CaptionBatches:
    captions = EncodedCaptions(images(count), vocabulary())
    return CaptionBatches(captions, Rows(), batch_size=batch_size, shuffle_seed=seed)


def same(one: Batch, other: Batch) -> bool:
    tensors = ("features", "tokens", "targets", "lengths", "image_of_row")
    return one.image_ids == other.image_ids and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in tensors
    )


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_shares_of_all_processes_are_the_batches_of_one(world_size: int) -> None:
    captions = EncodedCaptions(images(13), vocabulary())  # in fours: the last batch is one image
    shares = [
        CaptionBatches(
            captions, Rows(), batch_size=4, shuffle_seed=3, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    alone = batches(13)
    for _ in range(2):
        together = list(zip(alone, *shares, strict=True))
        assert [len(whole.image_ids) for whole, *_ in together].count(1) == 1
        for whole, *parts in together:
            real = [part for part in parts if not part.is_filler]
            assert sorted(i for part in real for i in part.image_ids) == sorted(whole.image_ids)
            assert sum(part.targets.numel() for part in real) == whole.targets.numel()
            fillers = [part.image_ids for part in parts if part.is_filler]
            assert fillers == [whole.image_ids[:1]] * (world_size - len(real))


def test_one_batch_by_hand() -> None:
    two = [
        CaptionedImage("7.jpg", Path("7.jpg"), ("A dog runs.", "a cat"), "train"),
        CaptionedImage("2.jpg", Path("2.jpg"), ("fast",), "train"),
    ]
    captions = EncodedCaptions(two, vocabulary())
    (batch,) = CaptionBatches(captions, Rows(), batch_size=9, shuffle_seed=None)
    a, dog, runs, fast = vocabulary().encode(WORDS)
    assert batch.image_ids == ("7.jpg", "2.jpg")
    assert batch.tokens.tolist() == [
        [BEGIN, a, dog, runs],
        [BEGIN, a, UNKNOWN, PAD],
        [BEGIN, fast, PAD, PAD],
    ]
    assert batch.targets.tolist() == [a, dog, runs, END, a, UNKNOWN, END, fast, END]
    assert batch.lengths.tolist() == [4, 3, 2]
    assert batch.image_of_row.tolist() == [0, 0, 1]
    assert batch.features.tolist() == [[7.0, 7.5], [2.0, 2.5]]


def test_an_epoch_holds_every_caption_once_and_the_next_another_order() -> None:
    loader = batches()
    first, second = list(loader), list(loader)
    for epoch in (first, second):
        assert len(epoch) == len(loader) == 6
        assert sorted(i for b in epoch for i in b.image_ids) == sorted(
            f"{i}.jpg" for i in range(23)
        )
        assert sum(len(b.lengths) for b in epoch) == 115
    assert [b.image_ids for b in first] != [b.image_ids for b in second]


def test_the_order_depends_on_the_seed_alone() -> None:
    assert all(same(a, b) for a, b in zip(batches(), batches(), strict=True))
    assert not all(same(a, b) for a, b in zip(batches(), batches(seed=4), strict=True))


def test_without_a_seed_images_come_in_file_order() -> None:
    assert [i for b in batches(seed=None) for i in b.image_ids] == [f"{i}.jpg" for i in range(23)]


@pytest.mark.parametrize("done", [0, 1, 5, 6, 7, 14])
def test_a_resumed_order_is_the_unbroken_one(done: int) -> None:
    unbroken = [batch for loader in [batches()] for _ in range(3) for batch in loader]
    loader = batches()
    for _ in range(done):
        # One batch at a time, with a new iterator when an epoch ends, as Lightning does.
        if loader.state_dict()["next"] in (0, len(loader)):
            iterator = iter(loader)
        next(iterator)
    resumed = batches()
    resumed.load_state_dict(loader.state_dict())
    rest = [batch for _ in range(3) for batch in resumed][: len(unbroken) - done]
    assert len(rest) == len(unbroken) - done
    assert all(same(a, b) for a, b in zip(rest, unbroken[done:], strict=True))


def test_rows_of_a_batch_have_like_lengths() -> None:
    sorted_waste = [_padding(b) for b in batches(400, batch_size=8)]
    unsorted_waste = [_padding(b) for b in batches(400, seed=None, batch_size=8)]
    assert sum(sorted_waste) < 0.9 * sum(unsorted_waste)


def _padding(batch: Batch) -> int:
    return batch.tokens.numel() - len(batch.targets)


def test_moving_a_batch_leaves_row_lengths_on_the_cpu() -> None:
    batch = next(iter(batches()))
    moved = batch.to(torch.device("meta"))
    assert moved.lengths.device.type == "cpu"
    assert {moved.tokens.device.type, moved.features.device.type} == {"meta"}


def test_on_the_way_to_a_gpu_features_are_half_as_large_and_all_is_pinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: (pinned.append(t), t)[1])
    captions = EncodedCaptions(images(8), vocabulary())
    made = CaptionBatches(captions, Rows(), batch_size=4, shuffle_seed=3, pinned=True)
    batch, usual = next(iter(made)), next(iter(batches(8)))
    assert batch.features.dtype == torch.float16
    moving = (batch.features, batch.tokens, batch.targets, batch.image_of_row)
    assert {id(tensor) for tensor in pinned} == {id(tensor) for tensor in moving}
    assert same(batch.to(torch.device("cpu")), usual)
    assert batch.to(torch.device("meta")).features.dtype == torch.float32


class CountedRows(Rows):
    """Remembers what was read, and fails at the third reading."""

    def __init__(self) -> None:
        self.readings = 0

    def gather(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        self.readings += 1
        if self.readings == 3:
            raise UserError("the disk is gone")
        return super().gather(positions)


def test_one_batch_is_read_ahead_and_a_failing_disk_is_told_at_its_own() -> None:
    rows = CountedRows()
    captions = EncodedCaptions(images(23), vocabulary())
    loader = CaptionBatches(captions, rows, batch_size=4, shuffle_seed=None)
    handed_out = iter(loader)
    assert next(handed_out).image_ids == ("0.jpg", "1.jpg", "2.jpg", "3.jpg")
    assert next(handed_out).image_ids == ("4.jpg", "5.jpg", "6.jpg", "7.jpg")
    with pytest.raises(UserError, match="the disk is gone"):
        next(handed_out)
    assert rows.readings == 3
    assert loader.state_dict() == {"epoch": 0, "next": 2}


class Mirrored(Rows):
    """The same images seen in another way: below zero."""

    def index(self, image_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        return 100 + super().index(image_ids)  # a store of its own, with rows of its own

    def gather(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        return -super().gather(positions - 100) - 1


def with_views(seed: int = 3) -> CaptionBatches:
    captions = EncodedCaptions(images(23), vocabulary())
    views = partial(DrawnViews, [Rows(), Mirrored()], seed)
    return CaptionBatches(captions, views, batch_size=4, shuffle_seed=seed)


def test_each_epoch_draws_a_view_of_each_image_and_leaves_all_else() -> None:
    both, mirrored = with_views(), []
    for _ in range(40):
        for batch in both:
            numbers = [int(image_id.removesuffix(".jpg")) for image_id in batch.image_ids]
            first = batch.features[:, 0].tolist()
            seen = [value < 0 for value in first]
            assert first == [-n - 1 if m else n for n, m in zip(numbers, seen, strict=True)]
            mirrored += seen
    assert 0.4 < np.mean(mirrored) < 0.6
    for one, other in zip(with_views(), batches(), strict=True):
        assert one.image_ids == other.image_ids and torch.equal(one.tokens, other.tokens)


def test_views_go_on_where_a_checkpoint_was_taken() -> None:
    whole = list(with_views())
    begun = with_views()
    for _, _ in zip(begun, range(2), strict=False):
        pass
    resumed = with_views()
    resumed.load_state_dict({"epoch": 0, "next": 2})
    assert all(same(a, b) for a, b in zip(whole[2:], resumed, strict=True))
    assert not all(same(a, b) for a, b in zip(whole, with_views(seed=4), strict=True))
