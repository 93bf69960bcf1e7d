"""Filling the store: only what is new, the same bits always, whoever dies on the way."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_encoder import tiny_encoder, write_pictures

from showtell.errors import UserError
from showtell.locks import locked
from showtell.types import FeatureKind
from showtell.vision import engines, extract, pipeline
from showtell.vision.encoder import Encoder, EncoderOutput
from showtell.vision.extract import UnreadableImagesError, encode, ensure_features
from showtell.vision.features import FeatureStore
from showtell.vision.images import ImageError, load_image

CPU = torch.device("cpu")


@pytest.fixture
def forwards(monkeypatch) -> Iterator[list[int]]:
    """The sizes of the batches that went through an eager encoder."""
    sizes: list[int] = []
    forward = Encoder.forward

    def counting(self: Encoder, images: torch.Tensor) -> EncoderOutput:
        sizes.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Encoder, "forward", counting)
    monkeypatch.setattr(extract, "IMAGES_PER_SHARD", 8)
    monkeypatch.setattr(engines, "CONVERT_FROM_IMAGES", 10**9)
    yield sizes


def ensure(images, root: Path, kinds=("pooled", "grid"), batch_size: int = 4):
    return ensure_features(
        images, tiny_encoder(), kinds, root=root, batch_size=batch_size, device=CPU, progress=False
    )


def test_features_are_those_of_the_encoder(tmp_path: Path, forwards: list[int]) -> None:
    images = write_pictures(tmp_path, 21)
    stores = ensure(images, tmp_path / "store")
    encoder = tiny_encoder()
    ids = [image_id for image_id, _ in images]
    inputs = torch.stack([encoder.preprocessing(load_image(path)) for _, path in images])
    output = encoder(inputs)
    for kind in ("pooled", "grid"):
        stored = stores[kind].gather(stores[kind].index(ids))
        np.testing.assert_allclose(stored, getattr(output, kind), atol=2e-3)


def test_one_forward_serves_both_kinds_and_is_always_full(tmp_path, forwards: list[int]) -> None:
    ensure(write_pictures(tmp_path, 21), tmp_path / "store")
    assert forwards == [4] * 6  # shards of 8, 8 and 5 images


def test_only_what_is_new_is_encoded(tmp_path: Path, forwards: list[int]) -> None:
    images = write_pictures(tmp_path, 10)
    ensure(images, tmp_path / "store", kinds=["pooled"])
    forwards.clear()
    ensure(images, tmp_path / "store", kinds=["pooled"])
    assert forwards == []
    ensure(images, tmp_path / "store", kinds=["pooled", "grid"])
    assert len(forwards) == 3
    forwards.clear()
    extra = tmp_path / "100.png"
    Image.new("RGB", (8, 8), "red").save(extra)
    ensure([*images, (extra.name, extra)], tmp_path / "store")
    assert len(forwards) == 1


def test_a_changed_image_is_encoded_anew_and_the_old_one_kept(tmp_path, forwards) -> None:
    images = write_pictures(tmp_path, 10)
    before = ensure(images, tmp_path / "store")["grid"]
    old = before.gather(before.index(["003.png"]))
    forwards.clear()
    Image.new("RGB", (9, 9), "red").save(tmp_path / "003.png")
    after = ensure(images, tmp_path / "store")["grid"]
    assert len(forwards) == 1
    assert len(after) == 11
    new = after.gather(after.index(["003.png"]))
    assert not np.array_equal(new, old)
    np.testing.assert_array_equal(before.gather(before.index(["003.png"])), old)


def test_an_image_does_not_depend_on_its_company(tmp_path: Path) -> None:
    images = write_pictures(tmp_path, 11)
    together = ensure(images, tmp_path / "together")["grid"]
    alone = ensure([images[4]], tmp_path / "alone")["grid"]
    name = images[4][0]
    np.testing.assert_array_equal(
        together.gather(together.index([name])), alone.gather(alone.index([name]))
    )


def test_the_order_of_the_list_does_not_matter(tmp_path: Path) -> None:
    images = write_pictures(tmp_path, 11)
    ensure(images, tmp_path / "a")
    ensure(images[::-1], tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_unreadable_images_are_named_after_all_others_are_stored(tmp_path, forwards) -> None:
    images = write_pictures(tmp_path, 11)
    (tmp_path / "002.png").write_bytes(b"no picture")
    (tmp_path / "007.png").unlink()
    for _ in range(2):  # the second time nothing but the unreadable one is tried
        with pytest.raises(UnreadableImagesError, match=r"2 of 11 pictures.*002\.png") as caught:
            ensure(images, tmp_path / "store")
    assert list(caught.value.failures) == ["002.png", "007.png"]
    assert len(forwards) == 3 + 1
    good = [image for image in images if image[0] not in caught.value.failures]
    forwards.clear()
    store = ensure(good, tmp_path / "store")["pooled"]
    assert len(store.index([image_id for image_id, _ in good])) == 9
    assert forwards == []


def test_one_id_for_two_files_is_refused(tmp_path: Path) -> None:
    (first, path), (_, other) = write_pictures(tmp_path, 2)
    with pytest.raises(UserError, match="stands for two files"):
        ensure([(first, path), (first, other)], tmp_path / "store")
    assert len(ensure([(first, path), (first, path)], tmp_path / "store")["pooled"]) == 1


def test_progress_shows_the_speed(tmp_path: Path, capsys) -> None:
    ensure_features(
        write_pictures(tmp_path, 6),
        tiny_encoder(),
        ["pooled"],
        root=tmp_path / "store",
        batch_size=2,
        device=CPU,
        progress=True,
    )
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "images/s" in shown


@pytest.mark.parametrize("kind", ["pooled", "grid"])
def test_new_pictures_are_encoded_as_in_the_store(tmp_path: Path, kind: FeatureKind) -> None:
    """To the bit with the store's engine; a few alone have the eager encoder's features."""
    images = write_pictures(tmp_path, 20)
    store = ensure(images, tmp_path / "store")[kind]
    stored = store.gather(store.index([image_id for image_id, _ in images]))
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    pictures = [tmp_path / "bad.jpg", Image.open(images[0][1]), *(path for _, path in images)]
    entries = encode(pictures, tiny_encoder(), kind=kind, batch_size=4, device=CPU)
    assert isinstance(entries[0], ImageError)
    np.testing.assert_array_equal(entries[1], stored[0])
    np.testing.assert_array_equal(np.stack(entries[2:]), stored)
    few = encode(pictures[2:7], tiny_encoder(), kind=kind, batch_size=4, device=CPU)
    np.testing.assert_allclose(np.stack(few), stored[:5], rtol=1e-3, atol=1e-6)
    assert encode([], tiny_encoder(), kind=kind, batch_size=4, device=CPU) == []
    assert isinstance(
        encode(pictures[:1], tiny_encoder(), kind=kind, batch_size=4, device=CPU)[0], ImageError
    )


def test_a_shard_is_written_while_the_next_is_encoded(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(extract, "IMAGES_PER_SHARD", 8)
    third_begun = threading.Event()
    write, decode = FeatureStore.write, pipeline.decode

    def waiting(self: FeatureStore, image_ids, *arguments) -> None:
        if "000.png" in image_ids:
            assert third_begun.wait(timeout=60), "nothing is encoded meanwhile"
        write(self, image_ids, *arguments)

    def noting(path, *arguments, **options):
        if path.name == "015.png":
            third_begun.set()
        return decode(path, *arguments, **options)

    monkeypatch.setattr(FeatureStore, "write", waiting)
    monkeypatch.setattr(pipeline, "decode", noting)
    assert len(ensure(write_pictures(tmp_path, 40), tmp_path / "store")["grid"]) == 40


def test_a_disk_that_is_full_stops_the_build_and_frees_the_locks(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(extract, "IMAGES_PER_SHARD", 8)
    images = write_pictures(tmp_path, 40)
    with monkeypatch.context() as patch:

        def full(*arguments: object) -> None:
            raise UserError("the disk is full")

        patch.setattr(FeatureStore, "write", full)
        with pytest.raises(UserError, match="full"):
            ensure(images, tmp_path / "store")
    assert len(ensure(images, tmp_path / "store")["grid"]) == 40


# Processes that die or work at the same time.


def contents(store: Path) -> dict[str, bytes]:
    """Every file of a store but the locks."""
    files = [file for file in store.rglob("*") if file.is_file() and file.suffix != ".lock"]
    return {str(file.relative_to(store)): file.read_bytes() for file in files}


def run_builds(folder: Path, *modes: str) -> Path:
    script = Path(__file__).with_name("killed_builds.py")
    subprocess.run([sys.executable, script, folder, *modes], check=True, timeout=110)
    return folder


@pytest.fixture(scope="module")
def builds(tmp_path_factory) -> Path:
    """What each mode of ``killed_builds`` left, in a folder of its name."""
    return run_builds(tmp_path_factory.mktemp("builds"), "random", "steps", "together", "death")


def test_an_unbroken_build_has_six_shards_of_each_kind(builds: Path) -> None:
    # Two kinds, each an identity and six shards of two files.
    assert len(contents(builds / "random" / "unbroken")) == 2 * (1 + 6 * 2)


def test_killed_at_random_moments_and_resumed_the_bits_are_the_same(builds: Path) -> None:
    folder = builds / "random"
    assert contents(folder / "store") == contents(folder / "unbroken")


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path: Path) -> None:
    folder = run_builds(tmp_path, "random-often") / "random-often"
    assert contents(folder / "store") == contents(folder / "unbroken")


def test_killed_before_each_write_and_resumed_the_bits_are_the_same(builds: Path) -> None:
    unbroken = contents(builds / "steps" / "unbroken")
    steps = int((builds / "steps" / "steps").read_text())
    assert steps == 3 * len(unbroken)  # every file: flushed, moved, its folder flushed
    for step in range(steps):
        assert contents(builds / "steps" / f"store-{step}") == unbroken


def test_three_builders_share_the_work(builds: Path) -> None:
    folder = builds / "together"
    assert contents(folder / "store") == contents(folder / "unbroken")
    encoded = [int((folder / f"encoded-{number}").read_text()) for number in range(3)]
    assert sum(encoded) == 48  # nothing twice
    assert max(encoded) < 48


def test_a_shard_held_by_a_dead_process_is_taken_over(builds: Path) -> None:
    folder = builds / "death"
    assert contents(folder / "store") == contents(folder / "unbroken")
    FeatureStore.open(folder / "store", tiny_encoder().identity, "grid").verify()


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("showtell.locks.fcntl.flock", refuse)
    with (
        pytest.raises(UserError, match=r"a\.lock cannot be locked \(No locks available\)"),
        locked(tmp_path / "a.lock", wait=True),
    ):
        pass
