"""The stream of pictures: in order, only so far ahead, and the next batch begun in time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_encoder import PREPROCESSING, tiny_encoder

from showtell.vision import pipeline
from showtell.vision.engines import OpenVINOEngine, TorchEngine
from showtell.vision.images import ImageError


def test_threads_keep_the_order_and_stay_so_far_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[tuple[str, int]]:
        for number in range(20):
            taken.append(number)
            yield str(number), number

    stream = pipeline._in_threads(lambda n: n * n, items(), threads=3, ahead=5)
    assert taken == []
    assert next(stream) == ("0", 0)
    assert taken == list(range(6))
    assert list(stream) == [(str(n), n * n) for n in range(1, 20)]


def test_an_error_ends_the_stream_and_its_threads() -> None:
    before = threading.active_count()
    stream = pipeline._in_threads(lambda n: 1 // n, enumerate([1, 0, 1]), threads=2, ahead=9)
    assert next(stream) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert threading.active_count() == before


class _Recorder(TorchEngine):
    """Notes when batches are begun and waited for."""

    def start(self, pixels: torch.Tensor, kinds) -> Callable:
        finish = super().start(pixels, kinds)
        log.append("begin")
        return lambda: (log.append("wait"), finish())[1]


log: list[str] = []


def test_the_next_batch_is_begun_before_the_last_is_waited_for(tmp_path) -> None:
    log.clear()
    engine = _Recorder(tiny_encoder(), PREPROCESSING, 2, torch.device("cpu"), torch.float32)
    pictures = [Image.new("RGB", (9, 9), (40 * i, 0, 0)) for i in range(5)]
    items = [*enumerate(pictures), (5, tmp_path / "gone.png")]
    encoded = list(pipeline.encode_all(items, PREPROCESSING, engine, ["pooled"]))
    assert log == ["begin", "begin", "wait", "begin", "wait", "wait"]
    assert [key for key, _ in encoded] == list(range(6))
    assert isinstance(encoded[5][1], ImageError)
    for (_, features), picture in zip(encoded, pictures, strict=False):
        alone = engine(PREPROCESSING.pixels(picture), ["pooled"])
        np.testing.assert_array_equal(features["pooled"], alone["pooled"])


@pytest.mark.parametrize("count", [1, 4, 11])
def test_pictures_decoded_in_a_row_come_in_order_with_the_bits_they_have_alone(
    tmp_path, count: int
) -> None:
    engine = OpenVINOEngine(tiny_encoder(), threads=2)
    pictures = [Image.new("RGB", (9, 9), (20 * i, 0, 0)) for i in range(count)]
    items = [*enumerate(pictures), (count, tmp_path / "gone.png")]
    taken: list[int] = []
    stream = pipeline.encode_all(
        ((key, (taken.append(key), picture)[1]) for key, picture in items * 9),
        PREPROCESSING,
        engine,
        ["grid"],
    )
    encoded = [next(stream)]
    assert len(taken) <= 4 * (2 * 2 + 1)  # under way, at two calls a thread
    encoded += stream
    assert [key for key, _ in encoded] == [key for key, _ in items] * 9
    for (key, features), (_, picture) in zip(encoded, items * 9, strict=True):
        if key == count:
            assert isinstance(features, ImageError)
        else:
            alone = engine(PREPROCESSING.pixels(picture), ["grid"])
            np.testing.assert_array_equal(features["grid"], alone["grid"])


def test_no_thread_waits_for_what_another_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads decode at once, or the barrier breaks."""
    engine = OpenVINOEngine(tiny_encoder(), threads=4)
    calls = engine.concurrent_calls
    assert calls == 8
    barrier = threading.Barrier(calls)

    def decode(picture: object, preprocessing: object) -> ImageError:
        barrier.wait(timeout=20)
        return ImageError("it is only decoded here")

    monkeypatch.setattr(pipeline, "decode", decode)
    items = ((number, Path("none.png")) for number in range(calls * 4 * 2))
    assert len(list(pipeline.encode_all(items, PREPROCESSING, engine, ["grid"]))) == 64
