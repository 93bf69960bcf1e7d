"""Encodes picture files into the feature store, resumably, with any number of processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
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

from showtell.cores import available_cores
from showtell.errors import UserError
from showtell.locks import locked
from showtell.types import FeatureKind
from showtell.vision.encoder import Encoder
from showtell.vision.engines import Engine, engine_for
from showtell.vision.features import Features, FeatureStore, combine_views
from showtell.vision.images import VIEWS, ImageError, Preprocessing
from showtell.vision.pipeline import Encoded, Picture, decode, encode_all

# About 13 MB of grid features: small, so that a kill loses little work and little is left to write
# after the last image; large enough that a large data set has few files.
IMAGES_PER_SHARD = 64
_THREADS = min(8, available_cores())
_FILES_IN_A_ROW = 16
_BLOCK = 2**18  # bytes


class UnreadableImagesError(UserError):
    """Some pictures cannot be read.

    ``failures`` maps the id of each unreadable image to its error, sorted by id.
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
    """Consecutive images of the sorted list: the unit of locking, encoding and committing.

    ``name`` depends on the images alone, not on what is already stored, so that all processes with
    the same list always lock the same names.
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
    """Encode those of ``images`` (id, file) that are not stored yet; return a view of each store.

    An image counts as stored only if its file has the same content now. The work is shared with
    other processes that do the same. After a kill, encoding resumes at the last committed shard
    and gives the same bits.

    Raises:
        UnreadableImagesError: some pictures cannot be read; raised after all others are stored.
        UserError: one id for two files, a store that is damaged or another encoder's, or a disk
            that cannot be written.
    """
    paths = _by_id(images)
    contents, failures = _hash_files(paths)
    stores = {kind: FeatureStore.open(root, encoder.identity, kind) for kind in kinds}
    chunks = [chunk for chunk in _chunks(contents, batch_size) if _missing(chunk, stores)]
    if chunks:
        lacking = (paths[image_id] for chunk in chunks for image_id in _missing(chunk, stores))
        engine = _engine_for(encoder, lacking, len(paths), batch_size, device)
        folder = root / encoder.identity.key
        with _progress_bar(disable=not progress) as bar:
            total = sum(len(_missing(chunk, stores)) for chunk in chunks)
            task = bar.add_task(f"encoding ({encoder.identity.network})", total=total)
            advance = partial(bar.advance, task)
            job = _Job(paths, encoder.preprocessing, engine, stores, folder, advance)
            failures |= job.run(chunks)
    if failures:
        raise UnreadableImagesError(failures, len(paths))
    return {kind: store.select(contents) for kind, store in stores.items()}


def file_contents(images: Sequence[tuple[str, Path]]) -> dict[str, str]:
    """Image id -> SHA-256 of its file, for ``images`` (id, file).

    Raises:
        UnreadableImagesError: some files cannot be read.
        UserError: one id for two files.
    """
    paths = _by_id(images)
    contents, failures = _hash_files(paths)
    if failures:
        raise UnreadableImagesError(failures, len(paths))
    return contents


def encode(
    pictures: Sequence[Picture],
    encoder: Encoder,
    *,
    kind: FeatureKind,
    batch_size: int,
    device: torch.device,
    views: Sequence[str] = ("original",),
) -> list[Features | ImageError]:
    """Encode pictures (files or PIL images) without a store.

    Returns:
        For each picture its features, float16 (D,) or (views x R, D), rounded as in the store, or
        the error if it cannot be read.
    """
    engine = _engine_for(encoder, pictures, len(pictures) * len(views), batch_size, device)
    by_view = []
    for view in views:
        preprocessing = VIEWS[view](encoder.preprocessing)
        encoded = encode_all(enumerate(pictures), preprocessing, engine, (kind,))
        by_view.append([entry for _, entry in encoded])
    return [_combine_views(entries, kind) for entries in zip(*by_view, strict=True)]


def _combine_views(views: Sequence[Encoded], kind: FeatureKind) -> Features | ImageError:
    """One picture's features, combined over its views, or the error of the first unreadable one."""
    features: list[Features] = []
    for encoded in views:
        if isinstance(encoded, ImageError):
            return encoded
        features.append(encoded[kind][None])
    together: Features = combine_views(features)[0]
    return together


def _engine_for(
    encoder: Encoder,
    pictures: Iterable[Picture],
    count: int,
    batch_size: int,
    device: torch.device,
) -> Engine:
    """The engine for ``count`` pictures, checked on the first that can be read."""
    decoded = (decode(picture, encoder.preprocessing) for picture in pictures)
    side = encoder.preprocessing.size
    example = next((pixels for pixels in decoded if not isinstance(pixels, ImageError)), None)
    if example is None:  # nothing to encode
        example, count = np.zeros((side, side, 3), dtype=np.uint8), 0
    return engine_for(encoder, example, images=count, batch_size=batch_size, device=device)


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
    files = iter(paths.values())
    # Several files in a row: to hand one to a thread takes longer than to read it.
    groups = iter(lambda: list(islice(files, _FILES_IN_A_ROW)), [])
    with ThreadPoolExecutor(_THREADS) as threads:
        hashed = threads.map(lambda group: [_hash_file(file) for file in group], groups)
        results = dict(zip(paths, chain.from_iterable(hashed), strict=True))
    contents = {key: value for key, value in results.items() if isinstance(value, str)}
    failures = {key: value for key, value in results.items() if isinstance(value, ImageError)}
    return contents, failures


def _hash_file(path: Path) -> str | ImageError:
    try:
        digest = hashlib.sha256()
        # ``file_digest`` has a buffer of its own, and filling that with zeros takes longer than
        # hashing a small picture.
        with path.open("rb", buffering=0) as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        return ImageError(f"{path}: {error.strerror}; check the path or remove it from the data")


def _chunks(contents: Mapping[str, str], batch_size: int) -> list[_Chunk]:
    """The sorted images in chunks of whole batches, so that only the last needs padding."""
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
class _Claim:
    """A chunk this process has locked: the images it lacks, its lock, and results so far."""

    chunk: _Chunk
    image_ids: list[str]
    lock: ExitStack
    encoded: dict[str, Encoded] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Job:
    """Encodes chunks into the stores; ``advance`` is called with counts of finished images."""

    paths: Mapping[str, Path]
    preprocessing: Preprocessing
    engine: Engine
    stores: Mapping[FeatureKind, FeatureStore]
    folder: Path
    advance: Callable[[int], None]

    def run(self, chunks: list[_Chunk]) -> dict[str, ImageError]:
        """Encode all chunks, alongside other processes; return the errors of unreadable images."""
        failures: dict[str, ImageError] = {}
        with self._building():
            taken = self._encode_free(chunks, failures, wait=False)
            while taken:
                # Other processes hold the rest. Wait until one chunk is finished or its process
                # dies, either of which frees the lock. Hold no lock meanwhile: that process may be
                # waiting for ours.
                self._encode_free(taken[:1], failures, wait=True)
                taken = self._encode_free(taken[1:], failures, wait=False)
        for store in self.stores.values():
            store.refresh()
        return failures

    @contextmanager
    def _building(self) -> Iterator[None]:
        """Share the build lock; a process that finds it free first removes leftovers of kills."""
        file = self.folder / "build.lock"
        with locked(file, wait=False) as alone:
            if alone:
                for store in self.stores.values():
                    store.remove_leftovers()
                for lock in self.folder.glob("*.lock"):
                    if lock != file:
                        lock.unlink()
        with locked(file, wait=True, shared=True):
            yield

    def _encode_free(
        self, chunks: list[_Chunk], failures: dict[str, ImageError], *, wait: bool
    ) -> list[_Chunk]:
        """Encode and commit the chunks that no other process holds; return the others.

        All images form one stream, so that no core idles between two chunks. A thread writes a
        chunk while the next is encoded.
        """
        taken: list[_Chunk] = []
        kinds = tuple(self.stores)
        with ExitStack() as locks, ThreadPoolExecutor(1) as writer:
            images = self._images(chunks, locks, taken, wait=wait)
            written: Future[None] | None = None
            for (claim, image_id), entry in encode_all(
                images, self.preprocessing, self.engine, kinds
            ):
                claim.encoded[image_id] = entry
                self.advance(1)
                if isinstance(entry, ImageError):
                    failures[image_id] = entry
                if len(claim.encoded) == len(claim.image_ids):
                    if written:
                        written.result()  # at most one pending write, to bound memory
                    written = writer.submit(self._commit, claim)
            if written:
                written.result()
        return taken

    def _images(
        self, chunks: list[_Chunk], locks: ExitStack, taken: list[_Chunk], *, wait: bool
    ) -> Iterator[tuple[tuple[_Claim, str], Path]]:
        """The images to encode, with their claims; appends chunks that others hold to ``taken``."""
        for chunk in chunks:
            lock = locks.enter_context(ExitStack())
            file = self.folder / f"{chunk.name}.lock"
            if lock.enter_context(locked(file, wait=wait)):
                claim = self._claim(chunk, lock)
                yield from (((claim, each), self.paths[each]) for each in claim.image_ids)
            else:
                lock.close()
                taken.append(chunk)

    def _claim(self, chunk: _Chunk, lock: ExitStack) -> _Claim:
        """Claim what a locked chunk still lacks: another process may have encoded it before us."""
        planned = len(_missing(chunk, self.stores))
        for store in self.stores.values():
            store.refresh()
        claim = _Claim(chunk, _missing(chunk, self.stores), lock)
        self.advance(planned - len(claim.image_ids))
        if not claim.image_ids:
            lock.close()
        return claim

    def _commit(self, claim: _Claim) -> None:
        """Write the features that a chunk lacked, then release its lock."""
        contents = claim.chunk.contents
        for kind, store in self.stores.items():
            rows = {
                image_id: entry[kind]
                for image_id in store.missing(contents)
                if not isinstance(entry := claim.encoded[image_id], ImageError)
            }
            if rows:
                hashes = [contents[image_id] for image_id in rows]
                store.write(list(rows), hashes, rows.values())
        claim.lock.close()


class _ImagesPerSecond(ProgressColumn):
    """Recent speed in images per second."""

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
