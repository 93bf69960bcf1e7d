"""The feature store: features on disk, written in shards atomically and read row by row.

Layout, below the store's root::

    <encoder identity key>/<kind>/identity.json        the encoder, and shape and dtype
                                  <stem>.npy            float16 (n, D) or (n, R, D), immutable
                                  <stem>.json           image ids, content hashes, size, checksum

A shard exists once its manifest (``.json``) does: it is written last, and every file is written
under a temporary name, flushed to disk and renamed. A process killed at any moment leaves at most
files that no manifest refers to. The stem contains the array's checksum, so two writers never
disagree about the content behind a name.

Rows are read instead of memory-mapped, because mapped pages count as the process's memory: an epoch
over a large store would look like a program that loads all of it, and be killed as one. Mapping
also keeps a file descriptor open for each shard, and a truncated file would kill the process with
SIGBUS.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from showtell.errors import UserError
from showtell.files import write_atomically
from showtell.types import FeatureKind
from showtell.vision.encoder import EncoderIdentity

Features = NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class _Shard:
    """A committed shard; row ``i`` is for ``image_ids[i]``, a file of hash ``contents[i]``."""

    array: Path
    image_ids: tuple[str, ...]
    contents: tuple[str, ...]
    checksum: str


class FeatureStore:
    """Features of one kind from one encoder, addressed by image id and hash of the file.

    A *position* is a row number over all shards, valid for this object and its copies. No file
    stays open.
    """

    def __init__(self, folder: Path, kind: FeatureKind, shape: tuple[int, ...]) -> None:
        self.folder = folder
        self.kind = kind
        self.shape = shape  # of one image: pooled (D,), grid (R, D)
        self._shards: list[_Shard] = []
        self._known: set[str] = set()  # names of their manifests
        self._starts = np.zeros(1, dtype=np.int64)  # first position of each shard, then the end
        self._positions: dict[tuple[str, str], int] = {}  # (image id, content) -> position
        self._selected: dict[str, int] | None = None
        self._first_bytes: dict[int, int] = {}  # shard -> offset of its row 0, once read
        # In a view made by `select`: image id -> SHA-256 of its file, and a hash over them.
        self.contents: Mapping[str, str] = {}
        self.images_sha256: str | None = None

    @classmethod
    def open(cls, root: Path, identity: EncoderIdentity, kind: FeatureKind) -> Self:
        """Open the store of this encoder and kind below ``root``; create it if there is none.

        Raises:
            UserError: the folder holds another encoder's features, or a damaged shard.
        """
        shape = identity.pooled_shape if kind == "pooled" else identity.grid_shape
        store = cls(root / identity.key / kind, kind, shape)
        store._claim(identity)
        store.refresh()
        return store

    def _claim(self, identity: EncoderIdentity) -> None:
        """Write ``identity.json``, or check the existing one."""
        ours = {
            "identity": identity.to_json(),
            "kind": self.kind,
            "shape": list(self.shape),
            "dtype": "float16",
        }
        file = self.folder / "identity.json"
        if not file.is_file():
            write_atomically(file, json.dumps(ours, indent=2).encode())
        theirs = _read_json(file)
        differing = sorted(key for key in ours if theirs.get(key) != ours[key])
        if differing:
            raise UserError(
                f"{file}: these features were made by another encoder ({_differences(theirs, ours)}"
                "); set another features.root or remove this folder"
            )

    def refresh(self) -> None:
        """Read the manifests of shards committed since the last call."""
        # Called for every shard to build: names take a tenth of the time of Path objects.
        with os.scandir(self.folder) as entries:
            names = {entry.name for entry in entries if _is_manifest(entry.name)}
        for name in sorted(names - self._known):
            self._append(_read_shard(self.folder / name))
            self._known.add(name)

    def _append(self, shard: _Shard) -> None:
        start = int(self._starts[-1])
        for row, key in enumerate(zip(shard.image_ids, shard.contents, strict=True)):
            self._positions.setdefault(key, start + row)
        self._shards.append(shard)
        self._starts = np.append(self._starts, start + len(shard.image_ids))

    def __len__(self) -> int:
        """Number of stored rows."""
        return int(self._starts[-1])

    def missing(self, contents: Mapping[str, str]) -> list[str]:
        """The ids in ``contents`` (image id -> SHA-256 of its file) not stored in that version."""
        return [
            image_id for image_id, sha in contents.items() if (image_id, sha) not in self._positions
        ]

    def select(self, contents: Mapping[str, str]) -> Self:
        """A view of this store limited to ``contents`` (image id -> SHA-256 of its file).

        It tells versions of an image apart, or images of one name in two data sets: all are stored.
        """
        view = copy.copy(self)
        view._shards, view._positions = list(self._shards), dict(self._positions)
        view._known = set(self._known)
        view._first_bytes = {}
        view._selected = {
            image_id: self._positions[image_id, sha]
            for image_id, sha in contents.items()
            if (image_id, sha) in self._positions
        }
        view.contents = contents
        named = json.dumps(sorted(contents.items())).encode()
        view.images_sha256 = hashlib.sha256(named).hexdigest()
        return view

    def stored_contents(self, image_ids: Iterable[str]) -> dict[str, str]:
        """Image id -> SHA-256 of its file, for those selected or stored with a single content."""
        known: dict[str, set[str]] = {}
        for image_id, sha in self._positions:
            known.setdefault(image_id, set()).add(sha)
        once = {image_id: next(iter(each)) for image_id, each in known.items() if len(each) == 1}
        once |= self.contents
        return {image_id: once[image_id] for image_id in image_ids if image_id in once}

    def index(self, image_ids: Iterable[str]) -> NDArray[np.int64]:
        """The positions of these images, int64 (n,), for ``gather``.

        Raises:
            UserError: an image without features, or, without ``select``, with several contents.
        """
        if self._selected is None:
            self._selected = self._unambiguous()
        try:
            return np.fromiter((self._selected[image_id] for image_id in image_ids), dtype=np.int64)
        except KeyError as error:
            raise UserError(
                f"{self.folder}: no features, or those of several pictures, are stored for image "
                f"{error.args[0]}; run showtell features with this data set"
            ) from None

    def _unambiguous(self) -> dict[str, int]:
        positions: dict[str, int] = {}
        several: set[str] = set()
        for (image_id, _), position in self._positions.items():
            if image_id in positions:
                several.add(image_id)
            positions[image_id] = position
        return {image_id: place for image_id, place in positions.items() if image_id not in several}

    def gather(self, positions: NDArray[np.int64]) -> Features:
        """The features at ``positions`` (n,), in that order, as float16 (n, D) or (n, R, D).

        Raises:
            IndexError: a position outside the store.
            UserError: a shard that is damaged or missing.
        """
        if positions.size and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"positions must lie in [0, {len(self)})")
        shards = np.searchsorted(self._starts, positions, side="right") - 1
        gathered = np.empty((len(positions), *self.shape), dtype=np.float16)
        for shard in np.unique(shards):
            chosen = np.flatnonzero(shards == shard)
            rows = positions[chosen] - self._starts[shard]
            self._read_rows(int(shard), rows, gathered, chosen)
        return gathered

    def _read_rows(
        self, number: int, rows: NDArray[np.int64], gathered: Features, places: NDArray[np.int64]
    ) -> None:
        """Read ``rows`` of one shard into ``gathered`` at ``places``."""
        file = self._shards[number].array
        row_bytes = gathered.itemsize * math.prod(self.shape)
        buffer = gathered.data.cast("B")
        try:
            with file.open("rb", buffering=0) as stream:
                if number not in self._first_bytes:
                    self._first_bytes[number] = self._check_header(number, stream)
                for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                    target = buffer[place * row_bytes : (place + 1) * row_bytes]
                    offset = self._first_bytes[number] + row * row_bytes
                    if os.preadv(stream.fileno(), [target], offset) != row_bytes:
                        raise _damaged(file, "it ends too early")
        except OSError as error:
            raise _damaged(file, str(error)) from None

    def _check_header(self, number: int, stream: BinaryIO) -> int:
        """The offset of the values, after checking their shape and type against the manifest."""
        shard = self._shards[number]
        try:
            version = np.lib.format.read_magic(stream)
            if version != (1, 0):
                raise ValueError(f"its format is {version}")
            shape, in_columns, dtype = np.lib.format.read_array_header_1_0(stream)
        except ValueError as error:
            raise _damaged(shard.array, str(error)) from None
        expected = (len(shard.image_ids), *self.shape)
        if shape != expected or dtype != np.float16 or in_columns:
            raise _damaged(shard.array, f"it holds {dtype}{shape}, not {expected}")
        return stream.tell()

    def write(
        self, image_ids: Sequence[str], contents: Sequence[str], features: Iterable[Features]
    ) -> None:
        """Commit a shard with the features (D,) or (R, D) of each image, or nothing at all.

        A thread may write while others use the store, which sees the shard after ``refresh``.

        Raises:
            UserError: values that are not finite in float16, or a disk that cannot be written.
        """
        parts = self._npy(image_ids, features)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        checksum = digest.hexdigest()
        # The name also covers the ids: equal arrays of different images must not share a manifest.
        named = json.dumps([list(image_ids), list(contents)]).encode()
        stem = f"{hashlib.sha256(named).hexdigest()[:16]}-{checksum[:16]}"
        manifest = {
            "image_ids": list(image_ids),
            "contents": list(contents),
            "shape": [len(image_ids), *self.shape],
            "dtype": "float16",
            "bytes": sum(part.nbytes for part in parts),
            "checksum": checksum,
        }
        write_atomically(self.folder / f"{stem}.npy", *parts)
        write_atomically(self.folder / f"{stem}.json", json.dumps(manifest).encode())

    def _npy(self, image_ids: Sequence[str], features: Iterable[Features]) -> list[memoryview]:
        """A ``.npy`` file in parts, header and rows, which saves joining them in memory.

        Newly allocated memory is mapped page by page, on a virtual machine by its host too: filling
        it can take longer than computing its checksum and writing it.
        """
        rows: list[memoryview] = []
        for image_id, row in zip(image_ids, features, strict=True):
            assert row.shape == self.shape and row.dtype == np.float16
            row = np.ascontiguousarray(row)
            # All exponent bits set: infinity or nan.
            if ((row.view(np.uint16) & 0x7FFF) >= 0x7C00).any():
                raise UserError(
                    f"image {image_id}: the encoder gives values that are not finite in float16; "
                    "check encoder.weights and encoder.preprocessing"
                )
            rows.append(row.data)
        head = io.BytesIO()
        shape = (len(rows), *self.shape)
        fields = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(head, fields)
        return [head.getbuffer(), *rows]

    def verify(self) -> None:
        """Read every shard and compare it with its checksum.

        Raises:
            UserError: names the first file that was altered.
        """
        for shard in self._shards:
            with shard.array.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != shard.checksum:
                    raise _damaged(shard.array, "its checksum differs")

    def remove_leftovers(self) -> None:
        """Delete files of killed builders; call it only while no process is building here."""
        committed = {manifest.stem for manifest in self.folder.glob("*-*.json")}
        for file in self.folder.iterdir():
            if file.suffix == ".part" or (file.suffix == ".npy" and file.stem not in committed):
                file.unlink()


class CombinedViews:
    """A feature source that combines several views of each image.

    Grids (R, D) are concatenated to (views x R, D); pooled features (D,) are averaged.
    """

    def __init__(self, views: Sequence[FeatureStore]) -> None:
        self._views = views

    def index(self, image_ids: Sequence[str]) -> NDArray[np.int64]:
        """The positions (n, views) of each image in each view."""
        return np.stack([view.index(image_ids) for view in self._views], axis=1)

    def gather(self, positions: NDArray[np.int64]) -> Features:
        """Features (n, D) or (n, views x R, D) at the given positions."""
        return combine_views(
            [view.gather(column) for view, column in zip(self._views, positions.T, strict=True)]
        )


class DrawnViews:
    """A feature source that draws one of several views of each image, anew for every epoch.

    The same ``seed`` and ``epoch`` draw the same views for the same list of images.
    """

    def __init__(self, views: Sequence[FeatureStore], seed: int, epoch: int) -> None:
        self._views = views
        self._random = (seed, epoch, 1)

    def index(self, image_ids: Sequence[str]) -> NDArray[np.int64]:
        """(n, 2): the view drawn for each image (column 0) and its position there (column 1)."""
        random = np.random.default_rng(self._random)
        drawn = random.integers(len(self._views), size=len(image_ids))
        positions = np.stack([view.index(image_ids) for view in self._views])
        return np.stack([drawn, positions[drawn, np.arange(len(drawn))]], axis=1)

    def gather(self, positions: NDArray[np.int64]) -> Features:
        """Features (n, D) or (n, R, D) at the given positions, each from its view."""
        drawn, places = positions.T
        if len(self._views) == 1:
            # Reordering rows that are in order already takes longer than reading them.
            return self._views[0].gather(places)
        by_view = [view.gather(places[drawn == n]) for n, view in enumerate(self._views)]
        back = np.argsort(np.argsort(drawn, kind="stable"))
        gathered: Features = np.concatenate(by_view)[back]
        return gathered


def combine_views(views: Sequence[Features]) -> Features:
    """Combine features (n, D) or (n, R, D) of several views: the mean, or grids concatenated."""
    if len(views) == 1:
        return views[0]
    if views[0].ndim == 3:
        return np.concatenate(views, axis=1)
    mean: Features = np.stack(views).mean(axis=0, dtype=np.float32).astype(np.float16)
    return mean


def _is_manifest(name: str) -> bool:
    return "-" in name and name.endswith(".json") and not name.startswith(".")


def _read_shard(manifest: Path) -> _Shard:
    fields = _read_json(manifest)
    # The array's name comes from the manifest's name, never from its content.
    array = manifest.with_suffix(".npy")
    try:
        shard = _Shard(
            array, tuple(fields["image_ids"]), tuple(fields["contents"]), fields["checksum"]
        )
        size = array.stat().st_size
    except (KeyError, TypeError) as error:
        raise _damaged(manifest, f"bad field {error}") from None
    except OSError:
        raise _damaged(manifest, f"{array.name} is gone") from None
    if size != fields.get("bytes") or len(shard.image_ids) != len(shard.contents):
        raise _damaged(array, f"it has {size} bytes, not {fields.get('bytes')}")
    return shard


def _damaged(file: Path, reason: str) -> UserError:
    return UserError(
        f"{file}: a damaged feature shard ({reason}); delete {file.stem}.json and run again: "
        "its images are then encoded anew"
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(file, str(error)) from None
    if not isinstance(fields, dict):
        raise _damaged(file, "not a JSON object")
    return fields


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The fields that differ, flattened, theirs first: ``weights 85b1... not 12fe...``."""
    flat_theirs, flat_ours = _flat(theirs), _flat(ours)
    return ", ".join(
        f"{key} {str(flat_theirs.get(key))[:16]} not {str(flat_ours.get(key))[:16]}"
        for key in sorted(flat_theirs.keys() | flat_ours.keys())
        if flat_theirs.get(key) != flat_ours.get(key)
    )


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        flat |= _flat(value) if isinstance(value, dict) else {key: value}
    return flat
