"""The download: verification, unpacking and renaming, over ``file://`` URLs and local archives."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import shutil
import stat
import sys
import types
import zipfile
from pathlib import Path

import pytest
from flickr8k_copies import SPLIT_OF, kaggle_shadabhussain, original_release

from showtell.data import sources
from showtell.errors import UserError

SCRIPT = Path(__file__).parents[2] / "scripts" / "download_flickr8k.py"


@pytest.fixture
def download(monkeypatch, tmp_path):
    """The script as a module, Kaggle out of reach and the mirror an empty local folder."""
    spec = importlib.util.spec_from_file_location("download_flickr8k", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    monkeypatch.setattr(module, "MIRROR", (tmp_path / "mirror").as_uri() + "/")
    monkeypatch.setattr(module, "GLOVE", (tmp_path / "mirror" / "glove.6B.zip").as_uri())
    return module


@pytest.fixture
def mirror(download, monkeypatch, tmp_path) -> Path:
    """Archives of a small original release on the local mirror, their checksums made known."""
    release = tmp_path / "release"
    original_release(release)
    folder = tmp_path / "mirror"
    folder.mkdir()
    zip_folder(release / "Flickr8k_text", folder / "Flickr8k_text.zip", inside="")
    zip_folder(
        release / "Flicker8k_Dataset", folder / "Flickr8k_Dataset.zip", inside="Flicker8k_Dataset/"
    )
    known = {
        name: hashlib.sha256((release / "Flickr8k_text" / name).read_bytes()).hexdigest()
        for name in download.FLICKR8K_SHA256
    }
    assert len(known) == 4
    monkeypatch.setattr(download, "FLICKR8K_SHA256", known)
    return folder


def zip_folder(folder: Path, archive: Path, *, inside: str) -> None:
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(folder.iterdir()):
            opened.write(path, inside + path.name)
            opened.writestr(f"__MACOSX/{inside}._{path.name}", b"\0")


def zip_members(archive: Path, *members: str | zipfile.ZipInfo) -> None:
    archive.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(archive, "w") as opened:
        for member in members:
            opened.writestr(member, b"content")


def stub_kaggle(monkeypatch, dataset_download) -> None:
    module = types.ModuleType("kagglehub")
    module.dataset_download = dataset_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kagglehub", module)


def test_from_the_mirror_to_a_readable_data_set(download, mirror, tmp_path, capsys):
    root = tmp_path / "data" / "flickr8k"
    assert download.main(["--root", str(root)]) == 0
    assert f"{root}: 13 images (train 8, val 2, test 2)" in capsys.readouterr().out
    data = sources.flickr8k(root=str(root), split_seed=0, skip_rejected=False)
    assert {image.image_id: image.split for image in data.images} == SPLIT_OF
    assert [path.name for path in root.parent.iterdir()] == ["flickr8k"]  # nothing left behind
    assert not list(root.rglob("__MACOSX"))


def test_kaggle_is_the_first_choice(download, mirror, monkeypatch, tmp_path, capsys):
    shutil.rmtree(mirror)
    asked = []

    def dataset_download(handle: str, *, output_dir: str) -> str:
        asked.append(handle)
        kaggle_shadabhussain(Path(output_dir))
        return output_dir

    stub_kaggle(monkeypatch, dataset_download)
    assert download.main(["--root", str(tmp_path / "f8k")]) == 0
    assert asked == ["shadabhussain/flickr8k"]
    assert (tmp_path / "f8k" / "Flickr_Data").is_dir()


def test_a_damaged_copy_on_kaggle_gives_way_to_the_mirror(download, mirror, monkeypatch, tmp_path):
    def dataset_download(handle: str, *, output_dir: str) -> str:
        kaggle_shadabhussain(Path(output_dir))
        tokens = next(Path(output_dir).rglob("Flickr8k.token.txt"))
        tokens.write_bytes(tokens.read_bytes().replace(b"\n", b"\r\n"))
        return output_dir

    stub_kaggle(monkeypatch, dataset_download)
    download.download_flickr8k(tmp_path / "f8k")
    assert (tmp_path / "f8k" / "Flickr8k_text" / "Flickr8k.token.txt").is_file()
    assert not (tmp_path / "f8k" / "Flickr_Data").exists()


def test_without_network_one_sentence_says_what_to_do(download, tmp_path, capsys):
    root = tmp_path / "f8k"
    assert download.main(["--root", str(root)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: Flickr8k could not be downloaded (Kaggle: kagglehub is not")
    for needed in ("Flickr8k_Dataset.zip", "Flickr8k_text.zip", f"data.root={root}", "data=scenes"):
        assert needed in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_is_verified_and_kept(download, mirror, tmp_path):
    root = tmp_path / "f8k"
    first = download.download_flickr8k(root)
    shutil.rmtree(mirror)
    assert download.download_flickr8k(root) == first
    (root / "Flickr8k_text" / "Flickr_8k.devImages.txt").write_text("changed\n")
    with pytest.raises(UserError, match=r"devImages\.txt differs from .*: move .*f8k away"):
        download.download_flickr8k(root)


def test_an_image_that_is_missing_from_the_archive_is_found(download, mirror, tmp_path):
    zip_members(mirror / "Flickr8k_Dataset.zip", "0_train.jpg")
    with pytest.raises(UserError, match="could not be downloaded"):
        download.download_flickr8k(tmp_path / "f8k")
    assert not (tmp_path / "f8k").exists()


def test_a_finished_archive_is_not_fetched_again(download, mirror, tmp_path, monkeypatch):
    root = tmp_path / "f8k"
    (mirror / "Flickr8k_Dataset.zip").rename(tmp_path / "aside.zip")
    with pytest.raises(UserError):
        download.download_flickr8k(root)
    assert (tmp_path / "f8k-downloads" / "Flickr8k_text.zip").is_file()
    (tmp_path / "aside.zip").rename(mirror / "Flickr8k_Dataset.zip")
    (mirror / "Flickr8k_text.zip").unlink()
    assert download.download_flickr8k(root).startswith("13 images")


def test_a_connection_that_breaks_off_leaves_no_archive(download, tmp_path, monkeypatch):
    class Response(io.BytesIO):
        headers = {"Content-Length": "100"}  # noqa: RUF012

    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Response(b"x" * 60))
    with pytest.raises(OSError, match="broke off after 60 of 100 bytes"):
        download.fetch("https://example.org/a.zip", tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def link_member() -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("link.jpg")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    "member",
    ["../out.txt", "a/../../out.txt", "/out.txt", "..\\out.txt", "C:/out.txt", link_member()],
)
def test_an_archive_that_reaches_outside_is_refused_whole(download, tmp_path, member):
    zip_members(tmp_path / "bad.zip", "good.txt", member)
    with pytest.raises(UserError, match="reaches outside: do not use this archive"):
        download.unpack(tmp_path / "bad.zip", tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.zip"]


def test_a_damaged_or_monstrous_archive_is_refused(download, tmp_path, monkeypatch):
    zip_members(tmp_path / "a.zip", "good.txt")
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "flipped.zip").write_bytes(whole.replace(b"content", b"c0ntent"))
    (tmp_path / "cut.zip").write_bytes(whole[:-10])
    for name in ("flipped.zip", "cut.zip"):
        with pytest.raises(UserError, match=rf"{name} is damaged .*: delete it and try again"):
            download.unpack(tmp_path / name, tmp_path / "folder")
    monkeypatch.setattr(download, "_MAX_UNPACKED_BYTES", 6)
    with pytest.raises(UserError, match="unpacks to more than"):
        download.unpack(tmp_path / "a.zip", tmp_path / "folder")


def test_glove_comes_from_stanfords_archive(download, mirror, tmp_path, capsys):
    zip_members(mirror / "glove.6B.zip", "glove.6B.50d.txt", "glove.6B.300d.txt")
    arguments = ["--root", str(tmp_path / "f8k"), "--glove"]
    assert download.main(arguments) == 0
    assert "glove.6B.300d.txt, glove.6B.50d.txt" in capsys.readouterr().out
    assert (tmp_path / "glove" / "glove.6B.300d.txt").read_bytes() == b"content"
    (mirror / "glove.6B.zip").unlink()
    assert download.main(arguments) == 0  # what is there is kept
    shutil.rmtree(tmp_path / "glove")
    assert download.main(arguments) == 1
    assert f"by hand and unpack it into {tmp_path}/glove" in capsys.readouterr().err
