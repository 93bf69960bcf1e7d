"""The feature store: encoded pictures on disk, read row by row, never torn, never mixed up.

Layout, below the store's root::

    <encoder identity key>/<kind>/identity.json        whose features these are, shape, type
                                  <stem>.npy            float16 (n, D) or (n, R, D), immutable
                                  <stem>.json           image ids, content hashes, size, checksum

A shard exists once its ``.json`` does: it is written last, and each file is written beside its
name, flushed to disk and moved into place. A process killed at any moment leaves at most files
nobody refers to. The stem carries the array's checksum, so no two writers ever disagree about the
bytes behind one name.

Rows are read, not mapped: the pages of a map count as the process's memory, so that an epoch over
a large store would look like, and be killed as, a program that loads it whole; a map also holds a
file descriptor for each shard, and a file cut short under it kills the process with SIGBUS.
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
    """One committed shard: row ``i`` holds the features of ``image_ids[i]`` (``contents[i]``)."""

    array: Path
    image_ids: tuple[str, ...]
    contents: tuple[str, ...]
    checksum: str


class FeatureStore:
    """The features of one kind made by one encoder, addressed by image id and file content.

    A *position* is an image's row over all shards, valid for this object and its copies. No file
    stays open.
    """

    def __init__(self, folder: Path, kind: FeatureKind, shape: tuple[int, ...]) -> None:
        self.folder = folder
        self.kind = kind
        self.shape = shape  # of one image: (D,) pooled, (R, D) grid
        self._shards: list[_Shard] = []
        self._known: set[str] = set()  # names of the manifests of these shards
        self._starts = np.zeros(1, dtype=np.int64)  # first position of each shard, then the end
        self._positions: dict[tuple[str, str], int] = {}  # (image id, content) -> position
        self._selected: dict[str, int] | None = None
        self._first_bytes: dict[int, int] = {}  # where row 0 begins in the shards read so far
        # Image id -> SHA-256 of its file, by which a view was selected; and the hash of all of it.
        self.contents: Mapping[str, str] = {}
        self.images_sha256: str | None = None

    @classmethod
    def open(cls, root: Path, identity: EncoderIdentity, kind: FeatureKind) -> Self:
        """Open the store of this encoder and kind below ``root``, making an empty one if need be.

        Raises:
            UserError: the folder holds another encoder's features, or a damaged shard.
        """
        shape = identity.pooled_shape if kind == "pooled" else identity.grid_shape
        store = cls(root / identity.key / kind, kind, shape)
        store._claim(identity)
        store.refresh()
        return store

    def _claim(self, identity: EncoderIdentity) -> None:
        """Write whose features these are, or compare with what is written."""
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
        """Take in the shards committed since the store was opened."""
        # A builder looks for each shard that it begins: names, not paths, a tenth of the time.
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
        """The ids of ``contents`` (image id -> SHA-256 of its file) that are not stored as such."""
        return [
            image_id for image_id, sha in contents.items() if (image_id, sha) not in self._positions
        ]

    def select(self, contents: Mapping[str, str]) -> Self:
        """A view of this store that knows each id by the given content.

        Needed where an image was changed, or two data sets use one file name: both are stored.
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
        """Image id -> SHA-256 of its file, of those that are selected or stored only once."""
        known: dict[str, set[str]] = {}
        for image_id, sha in self._positions:
            known.setdefault(image_id, set()).add(sha)
        once = {image_id: next(iter(each)) for image_id, each in known.items() if len(each) == 1}
        once |= self.contents
        return {image_id: once[image_id] for image_id in image_ids if image_id in once}

    def index(self, image_ids: Iterable[str]) -> NDArray[np.int64]:
        """The positions of these images, int64 (n,), for ``gather``.

        Raises:
            UserError: an image without features, or with those of several contents.
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
            UserError: a shard that is damaged or gone.
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
        """Where the values begin; they must be as many and of the type the manifest says."""
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
        """Commit a shard: the features (D,) or (R, D) of each of these images, or nothing at all.

        Any thread may write while others use the store, which knows the shard at ``refresh``.

        Raises:
            UserError: values that float16 cannot hold, or a disk that cannot take them.
        """
        parts = self._npy(image_ids, features)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        checksum = digest.hexdigest()
        # The ids are in the name too: equal arrays of different images must not share a manifest.
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
        """The rows as a ``.npy`` file in parts: joined they would take a shard's memory again.

        Memory that a program has not had before comes page by page, and on a virtual machine from
        its host: to fill it may take longer than to compute its checksum and to write it.
        """
        rows: list[memoryview] = []
        for image_id, row in zip(image_ids, features, strict=True):
            assert row.shape == self.shape and row.dtype == np.float16
            row = np.ascontiguousarray(row)
            # All exponent bits set is infinity or nan.
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
            UserError: naming the first file that is not what was written.
        """
        for shard in self._shards:
            with shard.array.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != shard.checksum:
                    raise _damaged(shard.array, "its checksum differs")

    def remove_leftovers(self) -> None:
        """Delete what killed builders left behind; only while no process is building here."""
        committed = {manifest.stem for manifest in self.folder.glob("*-*.json")}
        for file in self.folder.iterdir():
            if file.suffix == ".part" or (file.suffix == ".npy" and file.stem not in committed):
                file.unlink()


class SeenTogether:
    """Features of images in several views, as one source: what is looked at all at once.

    Grids (R, D) lie behind each other as one grid of more regions; of pooled features (D,) the
    mean is taken.
    """

    def __init__(self, views: Sequence[FeatureStore]) -> None:
        self._views = views

    def index(self, image_ids: Sequence[str]) -> NDArray[np.int64]:
        """The positions (n, views) of each image."""
        return np.stack([view.index(image_ids) for view in self._views], axis=1)

    def gather(self, positions: NDArray[np.int64]) -> Features:
        """Features (n, D) or (n, views x R, D) at the given positions."""
        return seen_together(
            [view.gather(column) for view, column in zip(self._views, positions.T, strict=True)]
        )


class DrawnViews:
    """Features of images of which each is seen in one of several views, drawn for an epoch.

    The same ``seed`` and ``epoch`` draw the same views for the same list of images.
    """

    def __init__(self, views: Sequence[FeatureStore], seed: int, epoch: int) -> None:
        self._views = views
        self._random = (seed, epoch, 1)

    def index(self, image_ids: Sequence[str]) -> NDArray[np.int64]:
        """The view (n, 0) of each image, and its position there (n, 1)."""
        random = np.random.default_rng(self._random)
        drawn = random.integers(len(self._views), size=len(image_ids))
        positions = np.stack([view.index(image_ids) for view in self._views])
        return np.stack([drawn, positions[drawn, np.arange(len(drawn))]], axis=1)

    def gather(self, positions: NDArray[np.int64]) -> Features:
        """Features (n, D) or (n, R, D) at the given positions, each of its view."""
        drawn, places = positions.T
        if len(self._views) == 1:
            # To bring rows into an order that they have already takes longer than to read them.
            return self._views[0].gather(places)
        by_view = [view.gather(places[drawn == n]) for n, view in enumerate(self._views)]
        back = np.argsort(np.argsort(drawn, kind="stable"))
        gathered: Features = np.concatenate(by_view)[back]
        return gathered


def seen_together(views: Sequence[Features]) -> Features:
    """Features (n, D) or (n, R, D) of each of several views as those of one look at all."""
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
    # The array's name comes from the manifest's own, never from what is written inside.
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
    """The fields that differ, flat and by name, theirs first: ``weights 85b1... not 12fe...``."""
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
