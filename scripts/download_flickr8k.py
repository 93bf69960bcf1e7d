"""Downloads Flickr8k (and, when asked, Stanford's GloVe vectors), verifies it, puts it in place.

Kaggle is asked first, then a mirror of the original release. Nothing half-done is ever left under
the final name: archives are written beside it and renamed when complete, and the data set is
moved into place only after its text files equal the original release and every image listed in a
split is there. A finished archive is kept until then, so that a second try does not fetch it again.

    python scripts/download_flickr8k.py [--root outputs/data/flickr8k] [--glove]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import stat
import sys
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from rich.progress import wrap_file

from showtell.data import sources
from showtell.data.checks import FLICKR8K_SHA256
from showtell.data.text_files import excerpt
from showtell.errors import UserError
from showtell.types import SPLITS

KAGGLE_HANDLE = "shadabhussain/flickr8k"  # of Kaggle's copies, the one with the official splits
MIRROR = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k/"
MIRROR_ARCHIVES = ("Flickr8k_text.zip", "Flickr8k_Dataset.zip")
GLOVE = "https://nlp.stanford.edu/data/glove.6B.zip"

_TIMEOUT_SECONDS = 60
# Flickr8k unpacks to 1.1 GB, GloVe 6B to 2.2 GB; anything far larger is not what was asked for.
_MAX_UNPACKED_BYTES = 4 * 1024**3


def fetch(url: str, target: Path) -> None:
    """Download a URL; ``target`` appears only when it is complete.

    Raises:
        OSError: no network, no such file, or the connection broke off.
    """
    partial = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
        size = int(response.headers.get("Content-Length") or 0)
        progress = wrap_file(response, total=size, description=target.name)
        with progress as source, partial.open("wb") as file:
            shutil.copyfileobj(source, file, 1024 * 1024)
    received = partial.stat().st_size
    if size and received != size:
        raise OSError(f"{url} broke off after {received} of {size} bytes")
    os.replace(partial, target)  # noqa: PTH105 (the name says that it overwrites)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip archive, refusing members that would land outside the folder.

    Raises:
        UserError: the archive is damaged, far too large, or reaches outside the folder.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            # __MACOSX holds macOS metadata of the files, under the same names.
            members = [m for m in opened.infolist() if not m.filename.startswith("__MACOSX")]
            if sum(member.file_size for member in members) > _MAX_UNPACKED_BYTES:
                raise UserError(f"{archive} unpacks to more than 4 GiB: delete it and try again")
            for member in members:
                _refuse_escape(archive, member)
            opened.extractall(folder, members)
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive} is damaged ({error}): delete it and try again") from None


def _refuse_escape(archive: Path, member: zipfile.ZipInfo) -> None:
    name = PurePosixPath(member.filename.replace("\\", "/"))
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if name.is_absolute() or ".." in name.parts or ":" in "".join(name.parts[:1]) or is_link:
        raise UserError(
            f"{archive} holds {member.filename!r}, which reaches outside: do not use this archive"
        )


def verify(folder: Path) -> str:
    """Compare the text files below a folder with the original release, and read the data set.

    Returns:
        One line that says what is there.

    Raises:
        UserError: a text file is absent or differs, or an image listed in a split is absent.
    """
    for name, known in FLICKR8K_SHA256.items():
        found = sorted(folder.rglob(name))
        if not found:
            raise UserError(f"{folder} lacks {name}")
        if hashlib.sha256(found[0].read_bytes()).hexdigest() != known:
            raise UserError(f"{found[0]} differs from the original release")
    data = sources.flickr8k(root=str(folder), split_seed=0, skip_rejected=False)
    sizes = ", ".join(f"{split} {len(data.split(split))}" for split in SPLITS)
    return f"{len(data.images)} images ({sizes})"


def from_kaggle(folder: Path, downloads: Path) -> None:
    """Download Kaggle's copy into a folder."""
    try:
        import kagglehub
    except ImportError:
        raise UserError("kagglehub is not installed (pip install kagglehub)") from None
    try:
        kagglehub.dataset_download(KAGGLE_HANDLE, output_dir=str(folder))
    except Exception as error:  # kagglehub raises its own, requests' and plain errors
        raise UserError(str(error) or repr(error)) from None


def from_mirror(folder: Path, downloads: Path) -> None:
    """Download the two archives of the original release and unpack them into a folder."""
    for name in MIRROR_ARCHIVES:
        archive = downloads / name
        if not archive.exists():
            fetch(MIRROR + name, archive)
        unpack(archive, folder / Path(name).stem)


PLACES: dict[str, Callable[[Path, Path], None]] = {"Kaggle": from_kaggle, "mirror": from_mirror}


def download_flickr8k(root: Path) -> str:
    """Put a verified Flickr8k at ``root``; an existing one is verified and kept.

    Raises:
        UserError: it could not be downloaded from anywhere, or ``root`` holds something else.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        try:
            return verify(root)
        except UserError as error:
            raise UserError(f"{error}: move {root} away or name another --root") from None
    downloads = root.with_name(f"{root.name}-downloads")  # the same disk: moving is renaming
    failures = []
    for place, get in PLACES.items():
        staged = downloads / f"from-{place}"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        try:
            get(staged, downloads)
            summary = verify(staged)
        except (UserError, OSError) as error:
            failures.append(f"{place}: {excerpt(str(error))}")
            shutil.rmtree(staged)
            continue
        os.replace(staged, root)  # noqa: PTH105
        shutil.rmtree(downloads)
        return summary
    if not any(downloads.iterdir()):
        downloads.rmdir()
    raise UserError(
        f"Flickr8k could not be downloaded ({'; '.join(failures)}): get "
        f"{' and '.join(MIRROR + name for name in MIRROR_ARCHIVES)} by hand, unpack both below "
        f"{root} and pass data.root={root}, or use data=scenes, which needs no download"
    )


def download_glove(folder: Path) -> str:
    """Put Stanford's ``glove.6B.*d.txt`` into a folder, unless they are there.

    Raises:
        UserError: the download fails, the archive is unusable, or the folder holds something else.
    """
    if present := _glove_files(folder):
        return ", ".join(present)
    if folder.exists():
        raise UserError(f"{folder} exists without glove.6B.*d.txt: move it away")
    staged = folder.with_name(f"{folder.name}-downloads")
    archive = staged / PurePosixPath(GLOVE).name
    try:
        if not archive.exists():
            fetch(GLOVE, archive)
    except OSError as error:
        raise UserError(
            f"GloVe could not be downloaded ({error}): get {GLOVE} by hand and unpack it into "
            f"{folder}; the 50-d vectors of the default configuration need no download"
        ) from None
    unpack(archive, staged / "unpacked")
    if not _glove_files(staged / "unpacked"):
        raise UserError(f"{archive} holds no glove.6B.*d.txt: delete it and try again")
    os.replace(staged / "unpacked", folder)  # noqa: PTH105
    shutil.rmtree(staged)
    return ", ".join(_glove_files(folder))


def _glove_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("glove.6B.*d.txt"))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status is 1 if anything could not be downloaded or verified."""
    parser = argparse.ArgumentParser(description="Download and verify Flickr8k.")
    parser.add_argument("--root", type=Path, default=Path("outputs/data/flickr8k"), help="where to")
    parser.add_argument("--glove", action="store_true", help="also GloVe 6B, into ../glove")
    options = parser.parse_args(arguments)
    try:
        print(f"{options.root}: {download_flickr8k(options.root)}")
        print(f"train with: python train.py data=flickr8k data.root={options.root}")
        if options.glove:
            glove = options.root.with_name("glove")
            print(f"{glove}: {download_glove(glove)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
