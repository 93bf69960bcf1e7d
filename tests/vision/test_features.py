"""The feature store: what it keeps, finds, refuses and survives."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoder import tiny_encoder

from showtell.errors import UserError
from showtell.types import FeatureKind
from showtell.vision.features import CombinedViews, Features, FeatureStore, combine_views

IDENTITY = tiny_encoder().identity


def random_features(count: int, kind: FeatureKind, seed: int = 0) -> Features:
    shape = IDENTITY.pooled_shape if kind == "pooled" else IDENTITY.grid_shape
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float16)


def filled(root: Path, kind: FeatureKind = "pooled", shards: int = 3) -> tuple[FeatureStore, dict]:
    """A store of ``shards`` shards of 4 images, and the features each image should have."""
    store = FeatureStore.open(root, IDENTITY, kind)
    expected = {}
    for number in range(shards):
        ids = [f"{number}-{row}.jpg" for row in range(4)]
        rows = random_features(4, kind, seed=number)
        store.write(ids, [f"sha-{image_id}" for image_id in ids], rows)
        store.refresh()
        expected |= dict(zip(ids, rows, strict=True))
    return store, expected


@pytest.mark.parametrize("kind", ["pooled", "grid"])
def test_gather_gives_what_was_added_in_the_order_asked(tmp_path: Path, kind: FeatureKind) -> None:
    _, expected = filled(tmp_path, kind)
    store = FeatureStore.open(tmp_path, IDENTITY, kind)  # from disk, not from memory
    assert store.shape == ((6,) if kind == "pooled" else (4, 6))
    assert len(store) == 12
    ids = ["2-3.jpg", "0-0.jpg", "1-2.jpg", "0-0.jpg", "2-0.jpg"]
    gathered = store.gather(store.index(ids))
    assert gathered.dtype == np.float16
    np.testing.assert_array_equal(gathered, np.stack([expected[name] for name in ids]))
    assert store.gather(store.index([])).shape == (0, *store.shape)


@given(order=st.permutations(range(12)), count=st.integers(0, 12))
@settings(max_examples=30)
def test_gather_equals_the_concatenated_shards(tmp_path_factory, order, count) -> None:
    root = tmp_path_factory.getbasetemp() / "gather"
    store = FeatureStore.open(root, IDENTITY, "grid") if root.exists() else filled(root, "grid")[0]
    whole = np.concatenate([np.load(shard.array) for shard in store._shards])
    positions = np.array(order[:count], dtype=np.int64)
    np.testing.assert_array_equal(store.gather(positions), whole[positions])


def test_positions_outside_the_store_are_refused(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    for position in (-1, 12):
        with pytest.raises(IndexError):
            store.gather(np.array([position]))


def test_missing_looks_at_the_content_too(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    contents = {"0-0.jpg": "sha-0-0.jpg", "0-1.jpg": "changed", "new.jpg": "sha"}
    assert store.missing(contents) == ["0-1.jpg", "new.jpg"]


def test_one_id_with_two_contents(tmp_path: Path) -> None:
    """Two data sets may use one file name: each selection finds its own, a bare id neither."""
    store, expected = filled(tmp_path, shards=1)
    other = random_features(1, "pooled", seed=9)
    store.write(["0-1.jpg"], ["edited"], other)
    store.refresh()
    old = store.select({"0-1.jpg": "sha-0-1.jpg"})
    new = store.select({"0-1.jpg": "edited"})
    np.testing.assert_array_equal(old.gather(old.index(["0-1.jpg"]))[0], expected["0-1.jpg"])
    np.testing.assert_array_equal(new.gather(new.index(["0-1.jpg"])), other)
    with pytest.raises(UserError, match=r"image 0-1\.jpg"):
        FeatureStore.open(tmp_path, IDENTITY, "pooled").index(["0-0.jpg", "0-1.jpg"])


def test_an_image_without_features_is_named(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    with pytest.raises(UserError, match=r"image absent\.jpg; run showtell features"):
        store.index(["0-0.jpg", "absent.jpg"])


def test_adding_the_same_twice_changes_nothing(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    files = {file: file.read_bytes() for file in store.folder.iterdir()}
    filled(tmp_path)
    assert {file: file.read_bytes() for file in store.folder.iterdir()} == files
    assert len(FeatureStore.open(tmp_path, IDENTITY, "pooled")) == 12


def test_refresh_takes_in_what_others_committed(tmp_path: Path) -> None:
    reader = FeatureStore.open(tmp_path, IDENTITY, "pooled")
    _, expected = filled(tmp_path)
    reader.refresh()
    np.testing.assert_array_equal(reader.gather(reader.index(["1-1.jpg"]))[0], expected["1-1.jpg"])


def test_stores_pickle_small(tmp_path: Path) -> None:
    store, _ = filled(tmp_path, "grid")
    positions = store.index(["2-1.jpg", "0-3.jpg"])
    here = store.gather(positions)
    data = pickle.dumps(store)
    assert len(data) < 10_000
    np.testing.assert_array_equal(pickle.loads(data).gather(positions), here)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_no_file_stays_open_and_none_is_mapped(tmp_path: Path) -> None:
    store, expected = filled(tmp_path, shards=5)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    np.testing.assert_array_equal(
        store.gather(store.index(list(expected))), np.stack(list(expected.values()))
    )
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: os.truncate(file, 150)])
def test_a_shard_damaged_since_it_was_opened_is_named(tmp_path: Path, damage) -> None:
    store, expected = filled(tmp_path, "grid", shards=2)
    positions = store.index(list(expected))
    store.gather(positions)
    file = sorted(store.folder.glob("*-*.npy"))[1]
    damage(file)
    with pytest.raises(UserError, match=rf"{file.name}: a damaged feature shard"):
        store.gather(positions)


# What may be wrong on disk.


def test_another_encoders_folder_is_refused_and_named(tmp_path: Path) -> None:
    filled(tmp_path)
    other = tiny_encoder(seed=1).identity
    (tmp_path / IDENTITY.key).rename(tmp_path / other.key)
    with pytest.raises(
        UserError, match=f"weights {IDENTITY.weights[:8]}.* not {other.weights[:8]}"
    ):
        FeatureStore.open(tmp_path, other, "pooled")


def only(folder: Path, pattern: str) -> Path:
    (file,) = folder.glob(pattern)
    return file


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def claim_more_rows(file: Path) -> None:
    fields = json.loads(file.read_text())
    fields["image_ids"].append("extra.jpg")
    file.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("*-*.npy", truncate),
        ("*-*.npy", Path.unlink),
        ("*-*.json", truncate),
        ("*-*.json", claim_more_rows),
        ("*-*.json", lambda file: file.write_text("{}")),
        ("*-*.json", lambda file: file.write_text("[]")),
        ("identity.json", truncate),
    ],
)
def test_torn_files_are_refused_with_the_remedy(tmp_path: Path, pattern: str, damage) -> None:
    store, _ = filled(tmp_path, shards=1)
    damage(only(store.folder, pattern))
    with pytest.raises(UserError, match=r"damaged feature shard.*delete .*json"):
        FeatureStore.open(tmp_path, IDENTITY, "pooled")


def test_verify_finds_a_flipped_bit(tmp_path: Path) -> None:
    store, _ = filled(tmp_path, shards=2)
    store.verify()
    file = sorted(store.folder.glob("*-*.npy"))[1]
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file.name}.*checksum"):
        FeatureStore.open(tmp_path, IDENTITY, "pooled").verify()


class Trap:
    def __reduce__(self):
        return (Path("sprung").touch, ())


def test_a_pickled_array_is_never_unpickled(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    store, _ = filled(tmp_path, shards=1)
    array = only(store.folder, "*-*.npy")
    np.save(array, np.array([Trap()] * 4, dtype=object), allow_pickle=True)
    manifest = only(store.folder, "*-*.json")
    fields = json.loads(manifest.read_text()) | {"bytes": array.stat().st_size}
    manifest.write_text(json.dumps(fields))
    with pytest.raises(UserError, match="damaged"):
        FeatureStore.open(tmp_path, IDENTITY, "pooled").gather(np.array([0]))
    assert not (tmp_path / "sprung").exists()


def test_values_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    store = FeatureStore.open(tmp_path, IDENTITY, "pooled")
    rows = random_features(3, "pooled")
    rows[1, 2] = np.inf
    with pytest.raises(UserError, match=r"image b\.jpg"):
        store.write(["a.jpg", "b.jpg", "c.jpg"], ["1", "2", "3"], rows)
    assert not list(store.folder.glob("*-*"))


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path: Path) -> None:
    store, _ = filled(tmp_path)
    before = set(store.folder.iterdir())
    (store.folder / "a-b.npy.1.part").write_bytes(b"half")
    (store.folder / "a-b.npy").write_bytes(b"never committed")
    store.remove_leftovers()
    assert set(store.folder.iterdir()) == before


def test_combined_views_are_one_larger_grid_or_their_mean() -> None:
    one, other = (random_features(3, "grid", seed) for seed in (1, 2))
    together = combine_views([one, other])
    assert together.shape == (3, 8, 6)
    np.testing.assert_array_equal(together[:, :4], one)
    np.testing.assert_array_equal(together[:, 4:], other)
    one, other = (random_features(3, "pooled", seed) for seed in (1, 2))
    mean = (one.astype(np.float64) + other) / 2
    np.testing.assert_allclose(combine_views([one, other]), mean, atol=1e-3)
    assert combine_views([one]) is one


def test_a_source_of_views_finds_each_image_in_all_of_them(tmp_path: Path) -> None:
    store, expected = filled(tmp_path / "one")
    other = FeatureStore.open(tmp_path / "other", IDENTITY, "pooled")
    ids = list(reversed(expected))  # another order, so other positions
    other.write(ids, ids, np.stack([expected[image_id] + np.float16(1) for image_id in ids]))
    other.refresh()
    together = CombinedViews([store, other])
    asked = ["2-3.jpg", "0-0.jpg", "1-1.jpg"]
    positions = together.index(asked)
    found = together.gather(positions[1:])
    for image_id, row in zip(asked[1:], found, strict=True):
        np.testing.assert_allclose(row, expected[image_id] + 0.5, atol=5e-3)
