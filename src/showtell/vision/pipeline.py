"""Encodes a stream of pictures in order, with decoding and the network overlapped on all cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from showtell.cores import available_cores
from showtell.types import FeatureKind
from showtell.vision.engines import EncodedImages, Engine, OpenVINOEngine, TorchEngine
from showtell.vision.images import ImageError, Preprocessing, load_image, to_rgb

Picture = Path | Image.Image
Decoded = NDArray[np.uint8] | ImageError
Encoded = EncodedImages | ImageError
_Key = TypeVar("_Key")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_DECODERS = min(16, available_cores())
_DECODED_IN_A_ROW = 4


def encode_all(
    items: Iterable[tuple[_Key, Picture]],
    preprocessing: Preprocessing,
    engine: Engine,
    kinds: Sequence[FeatureKind],
) -> Iterator[tuple[_Key, Encoded]]:
    """For each (key, picture), in order, yield the key and its features or error."""
    if isinstance(engine, OpenVINOEngine):
        return _encode_singly(iter(items), preprocessing, engine, kinds)
    work = partial(decode, preprocessing=preprocessing)
    decoded = _in_threads(work, items, threads=_DECODERS, ahead=2 * engine.batch_size)
    return _encode_batches(decoded, engine, kinds)


def _encode_singly(
    items: Iterator[tuple[_Key, Picture]],
    preprocessing: Preprocessing,
    engine: OpenVINOEngine,
    kinds: Sequence[FeatureKind],
) -> Iterator[tuple[_Key, Encoded]]:
    """Decode and encode in the same threads, as many as the engine serves: no core idles.

    A task decodes several pictures before it encodes them, because the network evicts the decoder
    from the core's cache.
    """

    def encode(pictures: Sequence[Picture]) -> list[Encoded]:
        decoded = [decode(picture, preprocessing) for picture in pictures]
        return [p if isinstance(p, ImageError) else engine(p, kinds) for p in decoded]

    groups = iter(lambda: list(islice(items, _DECODED_IN_A_ROW)), [])
    keyed = (([key for key, _ in group], [picture for _, picture in group]) for group in groups)
    calls = engine.concurrent_calls
    for keys, encoded in _in_threads(encode, keyed, threads=calls, ahead=calls):
        yield from zip(keys, encoded, strict=True)


def _in_threads(
    work: Callable[[_Item], _Result],
    items: Iterable[tuple[_Key, _Item]],
    *,
    threads: int,
    ahead: int,
) -> Iterator[tuple[_Key, _Result]]:
    """Yield (key, ``work(item)``) in order, with up to ``ahead`` items submitted in advance."""
    under_way: deque[tuple[_Key, Future[_Result]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for key, item in items:
                under_way.append((key, pool.submit(work, item)))
                if len(under_way) > ahead:
                    key, future = under_way.popleft()
                    yield key, future.result()
            while under_way:
                key, future = under_way.popleft()
                yield key, future.result()
        finally:
            for _, future in under_way:
                future.cancel()


def _encode_batches(
    decoded: Iterator[tuple[_Key, Decoded]],
    engine: TorchEngine,
    kinds: Sequence[FeatureKind],
) -> Iterator[tuple[_Key, Encoded]]:
    """Encode a stream in batches; each is started before the previous one is waited for."""
    begun: list[tuple[list[tuple[_Key, Decoded]], Callable[[], EncodedImages]]] = []
    while batch := list(islice(decoded, engine.batch_size)):
        # Always a full batch, with zeros for unreadable pictures: an image's features must not
        # depend on how many others are encoded with it.
        pixels = engine.empty_batch()
        # NumPy copies within this thread; PyTorch would start one per core for each picture, and
        # these would wait for the cores that decode.
        rows = pixels.numpy()
        for row, (_, entry) in zip(rows, batch, strict=False):
            if not isinstance(entry, ImageError):
                row[:] = entry
        begun.append((batch, engine.start(pixels, kinds)))
        if len(begun) > 1:
            yield from _rows(*begun.pop(0))
    for last in begun:
        yield from _rows(*last)


def _rows(
    batch: list[tuple[_Key, Decoded]], finish: Callable[[], EncodedImages]
) -> Iterator[tuple[_Key, Encoded]]:
    features = finish()
    for row, (key, entry) in enumerate(batch):
        if isinstance(entry, ImageError):
            yield key, entry
        else:
            yield key, {kind: rows[row] for kind, rows in features.items()}


def decode(picture: Picture, preprocessing: Preprocessing) -> Decoded:
    """The cropped and resized pixels (S, S, 3) of a picture, or the error if it is unreadable."""
    try:
        image = load_image(picture) if isinstance(picture, Path) else to_rgb(picture)
    except ImageError as error:
        return error
    return preprocessing.pixels(image)
