"""Durable writes: the old file or the new one, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from showtell.errors import UserError
from showtell.files import remove_parts, write_atomically


def test_writing_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file"
    write_atomically(file, b"old")
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(file.parent.iterdir()) == [file]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"file cannot be written .No space left on device"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_parts_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / "last.ckpt", tmp_path / ".other.1.part"]
    for file in [*kept, tmp_path / ".last.ckpt.12.part"]:
        file.write_bytes(b"x")
    remove_parts(tmp_path / "last.ckpt")
    assert sorted(tmp_path.iterdir()) == sorted(kept)
