"""From picture files to features: the store is filled resumably, by any number of processes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import Tensor

from showtell.errors import UserError
from showtell.types import FeatureKind
from showtell.vision.encoder import Encoder
from showtell.vision.features import Features, FeatureStore
from showtell.vision.images import ImageError, Preprocessing, load_image, to_rgb

Picture = Path | Image.Image
_Encoded = dict[FeatureKind, Features] | ImageError

# About 50 MB of grid features: little work lost to a kill, few files for a large data set.
IMAGES_PER_SHARD = 256
_THREADS = min(8, os.cpu_count() or 1)


class UnreadableImagesError(UserError):
    """Some pictures could not be read; the features of all the others are stored.

    ``failures`` maps the id of each unreadable image to its error, in the order of the ids.
    """

    def __init__(self, failures: Mapping[str, ImageError], total: int) -> None:
        self.failures = dict(sorted(failures.items()))
        first = next(iter(self.failures.values()))
        super().__init__(
            f"{len(self.failures)} of {total} pictures cannot be read (the others are encoded and "
            f"stored), the first being {first}; showtell doctor lists them all"
        )


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Consecutive images of the sorted list: the unit that is locked, encoded and committed.

    ``name`` depends on the images alone, never on what is stored already, so that all processes
    with the same list lock the same names at any time.
    """

    name: str
    contents: dict[str, str]  # image id -> SHA-256 of its file


def ensure_features(
    images: Sequence[tuple[str, Path]],
    encoder: Encoder,
    kinds: Sequence[FeatureKind],
    *,
    root: Path,
    batch_size: int,
    device: torch.device,
    progress: bool,
) -> dict[FeatureKind, FeatureStore]:
    """Encode those of ``images`` (id, file) that are not stored, and open the stores on them.

    Images count as stored only with the content their file has now. Work is shared with any other
    process doing the same; a killed one is resumed at its last committed shard, with the same bits.

    Raises:
        UnreadableImagesError: after everything readable has been encoded and stored.
        UserError: one id for two files, a foreign or damaged store, a disk that cannot be written.
    """
    paths = _by_id(images)
    contents, failures = _hash_files(paths)
    stores = {kind: FeatureStore.open(root, encoder.identity, kind) for kind in kinds}
    chunks = [chunk for chunk in _chunks(contents, batch_size) if _missing(chunk, stores)]
    if chunks:
        job = _Job(paths, encoder.to(device), stores, batch_size, device)
        failures |= job.run(chunks, root / encoder.identity.key, progress=progress)
    if failures:
        raise UnreadableImagesError(failures, len(paths))
    return {kind: store.select(contents) for kind, store in stores.items()}


def encode(
    pictures: Sequence[Picture],
    encoder: Encoder,
    *,
    kind: FeatureKind,
    batch_size: int,
    device: torch.device,
) -> list[Features | ImageError]:
    """Features of new pictures (files or PIL images), without a store.

    One entry for each picture: float16 (D,) or (R, D), rounded as in the store, or the error of a
    file that cannot be read.
    """
    encoder.to(device)
    with ThreadPoolExecutor(_THREADS) as decoders:
        encoded = list(_encode_all(pictures, encoder, (kind,), batch_size, device, decoders))
    return [entry if isinstance(entry, ImageError) else entry[kind] for entry in encoded]


def _by_id(images: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """The files by image id, sorted by id.

    Raises:
        UserError: two files for one id.
    """
    paths: dict[str, Path] = {}
    for image_id, path in sorted(images):
        if paths.setdefault(image_id, path) != path:
            raise UserError(
                f"image {image_id} stands for two files, {paths[image_id]} and {path}; rename one"
            )
    return paths


def _hash_files(paths: Mapping[str, Path]) -> tuple[dict[str, str], dict[str, ImageError]]:
    """SHA-256 of each file's content by image id, and the errors of those that cannot be read."""
    with ThreadPoolExecutor(_THREADS) as threads:
        results = dict(zip(paths, threads.map(_hash_file, paths.values()), strict=True))
    contents = {key: value for key, value in results.items() if isinstance(value, str)}
    failures = {key: value for key, value in results.items() if isinstance(value, ImageError)}
    return contents, failures


def _hash_file(path: Path) -> str | ImageError:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return ImageError(f"{path}: {error.strerror}; check the path or remove it from the data")


def _chunks(contents: Mapping[str, str], batch_size: int) -> list[_Chunk]:
    """The sorted images in runs of whole batches, so that padding is spent on the last one only."""
    size = batch_size * max(1, IMAGES_PER_SHARD // batch_size)
    items = list(contents.items())
    chunks = []
    for start in range(0, len(items), size):
        part = items[start : start + size]
        name = hashlib.sha256(json.dumps(part).encode()).hexdigest()[:16]
        chunks.append(_Chunk(name, dict(part)))
    return chunks


def _missing(chunk: _Chunk, stores: Mapping[FeatureKind, FeatureStore]) -> list[str]:
    """The images of a chunk that some store lacks, in the chunk's order."""
    lacking = {image_id for store in stores.values() for image_id in store.missing(chunk.contents)}
    return [image_id for image_id in chunk.contents if image_id in lacking]


@dataclass(frozen=True, slots=True)
class _Job:
    """What encoding a chunk needs besides the chunk."""

    paths: Mapping[str, Path]
    encoder: Encoder
    stores: Mapping[FeatureKind, FeatureStore]
    batch_size: int
    device: torch.device

    def run(self, chunks: list[_Chunk], folder: Path, *, progress: bool) -> dict[str, ImageError]:
        """Encode all chunks, beside other processes; returns the unreadable images' errors."""
        failures: dict[str, ImageError] = {}
        with (
            self._building(folder),
            _progress_bar(disable=not progress) as bar,
            ThreadPoolExecutor(_THREADS) as decoders,
        ):
            total = sum(len(_missing(chunk, self.stores)) for chunk in chunks)
            task = bar.add_task(f"encoding ({self.encoder.identity.network})", total=total)
            advance = partial(bar.advance, task)
            wait = False
            while chunks:
                taken = []
                for chunk in chunks:
                    with _locked(folder / f"{chunk.name}.lock", wait=wait) as ours:
                        if ours:
                            failures |= self._complete(chunk, decoders, advance)
                        else:
                            taken.append(chunk)
                # Nothing free was left: what remains is in other hands, so wait for those to
                # finish, or to die, which frees their locks.
                wait = len(taken) == len(chunks)
                chunks = taken
        return failures

    @contextmanager
    def _building(self, folder: Path) -> Iterator[None]:
        """Say that this process is building; the first to come clears away what a kill left."""
        file = folder / "build.lock"
        with _locked(file, wait=False) as alone:
            if alone:
                for store in self.stores.values():
                    store.remove_leftovers()
                for lock in folder.glob("*.lock"):
                    if lock != file:
                        lock.unlink()
        with _locked(file, wait=True, shared=True):
            yield

    def _complete(
        self, chunk: _Chunk, decoders: ThreadPoolExecutor, advance: Callable[[int], None]
    ) -> dict[str, ImageError]:
        """Encode and commit what a chunk still lacks, after another process had it perhaps."""
        planned = len(_missing(chunk, self.stores))
        for store in self.stores.values():
            store.refresh()
        image_ids = _missing(chunk, self.stores)
        advance(planned - len(image_ids))
        pictures = [self.paths[image_id] for image_id in image_ids]
        encoded: dict[str, _Encoded] = {}
        for image_id, entry in zip(
            image_ids,
            _encode_all(
                pictures, self.encoder, tuple(self.stores), self.batch_size, self.device, decoders
            ),
            strict=True,
        ):
            encoded[image_id] = entry
            advance(1)
        for kind, store in self.stores.items():
            _commit(store, chunk, {k: e[kind] for k, e in encoded.items() if isinstance(e, dict)})
        return {k: e for k, e in encoded.items() if isinstance(e, ImageError)}


def _commit(store: FeatureStore, chunk: _Chunk, features: Mapping[str, Features]) -> None:
    lacking = [image_id for image_id in store.missing(chunk.contents) if image_id in features]
    if lacking:
        rows = np.stack([features[image_id] for image_id in lacking])
        store.add(lacking, [chunk.contents[image_id] for image_id in lacking], rows)


def _encode_all(
    pictures: Sequence[Picture],
    encoder: Encoder,
    kinds: Sequence[FeatureKind],
    batch_size: int,
    device: torch.device,
    decoders: ThreadPoolExecutor,
) -> Iterator[_Encoded]:
    """One entry for each picture, in order: its features by kind, or why it cannot be read."""
    for decoded in _decode_ahead(pictures, encoder.preprocessing, batch_size, decoders):
        # Always a full batch, and an unreadable picture keeps its place in it: the arithmetic of
        # one image must not depend on how many others are encoded with it.
        side = encoder.preprocessing.size
        images = torch.zeros(batch_size, 3, side, side)
        for row, entry in enumerate(decoded):
            if isinstance(entry, Tensor):
                images[row] = entry
        output = encoder(images.to(device))
        features = {kind: getattr(output, kind).half().cpu().numpy() for kind in kinds}
        for row, entry in enumerate(decoded):
            if isinstance(entry, ImageError):
                yield entry
            else:
                yield {kind: features[kind][row] for kind in kinds}


def _decode_ahead(
    pictures: Sequence[Picture],
    preprocessing: Preprocessing,
    batch_size: int,
    decoders: ThreadPoolExecutor,
) -> Iterator[list[Tensor | ImageError]]:
    """Decoded batches; while the network works on one, the threads decode the next."""
    ahead: list[Future[Tensor | ImageError]] = []
    for start in range(0, len(pictures), batch_size):
        batch = pictures[start : start + batch_size]
        current, ahead = ahead, [decoders.submit(_decode, item, preprocessing) for item in batch]
        if current:
            yield [future.result() for future in current]
    if ahead:
        yield [future.result() for future in ahead]


def _decode(picture: Picture, preprocessing: Preprocessing) -> Tensor | ImageError:
    try:
        image = load_image(picture) if isinstance(picture, Path) else to_rgb(picture)
    except ImageError as error:
        return error
    return preprocessing(image)


@contextmanager
def _locked(file: Path, *, wait: bool, shared: bool = False) -> Iterator[bool]:
    """Hold a lock file for the block; yields whether we have it. It dies with its process."""
    flags = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    with file.open("ab") as stream:
        try:
            fcntl.flock(stream, flags)
        except BlockingIOError:
            yield False
            return
        yield True  # closing the file frees the lock


class _ImagesPerSecond(ProgressColumn):
    """The recent speed, in images a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} images/s", style="progress.data.speed")


def _progress_bar(*, disable: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _ImagesPerSecond(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=disable,
    )
