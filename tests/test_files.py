"""Durable writes: the old file or the new one, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from showtell.errors import UserError
from showtell.files import remove_parts, write_atomically, write_together


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


@pytest.mark.parametrize("folder", [".", "here"])
def test_a_folder_is_not_taken_for_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    with pytest.raises(UserError, match=f"^{folder} is a folder: name a file$"):
        write_atomically(Path(folder), b"content")
    assert list(tmp_path.rglob("*")) == [tmp_path / "here"]


def test_files_that_belong_together_are_all_old_where_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / "one", tmp_path / "other"]
    write_together(dict.fromkeys(files, (b"old",)))
    flushed: list[int] = []

    def full(descriptor: int) -> None:
        flushed.append(descriptor)
        if len(flushed) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="other cannot be written"):
        write_together(dict.fromkeys(files, (b"new",)))
    assert [file.read_bytes() for file in files] == [b"old", b"old"]
    assert sorted(tmp_path.iterdir()) == files
    monkeypatch.undo()
    write_together(dict.fromkeys(files, (b"new",)))
    assert [file.read_bytes() for file in files] == [b"new", b"new"]


def test_parts_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / "last.ckpt", tmp_path / ".other.1.part"]
    for file in [*kept, tmp_path / ".last.ckpt.12.part"]:
        file.write_bytes(b"x")
    remove_parts(tmp_path / "last.ckpt")
    assert sorted(tmp_path.iterdir()) == sorted(kept)
