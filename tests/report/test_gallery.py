from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from html_reading import Page
from PIL import Image
from small_run import HOSTILE

from showtell.errors import UserError
from showtell.report.gallery import Picture, write_gallery


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.effect_noise((1200, 900), 80).convert("RGB").save(path)
    return path


def test_a_page_of_pictures_with_captions(tmp_path: Path, photograph: Path) -> None:
    pictures = [
        Picture(photograph, "a grey wall", ["A wall .", "grey noise"], {"CIDEr": 1.5}),
        Picture(photograph, "noise", [], {}),
    ]
    written = write_gallery(pictures, tmp_path / "new" / "index.html", "Pictures never seen")
    page = Page(written)
    page.check_self_contained()
    assert written == tmp_path / "new" / "index.html"
    assert [image["alt"] for image in page.all("img")] == ["A wall .", "photo.jpg"]
    assert "Pictures never seen" in page.words
    assert "a grey wall CIDEr 150.0 A wall . grey noise noise" in page.words


def test_pictures_are_embedded_small(tmp_path: Path, photograph: Path) -> None:
    page = Page(write_gallery([Picture(photograph, "a", [], {})], tmp_path / "p.html", "t"))
    _, _, content = page.all("img")[0]["src"].partition(",")
    with Image.open(io.BytesIO(base64.b64decode(content))) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("WEBP", (400, 300))


def test_whatever_stands_in_the_data_is_shown_and_does_nothing(
    tmp_path: Path, photograph: Path
) -> None:
    picture = Picture(photograph, HOSTILE, [f'"> {HOSTILE}'], {HOSTILE: 0.5})
    page = Page(write_gallery([picture], tmp_path / "p.html", HOSTILE))
    page.check_self_contained()
    assert page.words.count("<script>alert") == 5  # title, heading, caption, score, reference


def test_words_in_no_reference_are_marked(tmp_path: Path, photograph: Path) -> None:
    marked = Picture(photograph, "a red dog's ball", ["The dog's ball is a blue one ."], {})
    unmarked = Picture(photograph, "a red dog's ball", [], {})
    page = write_gallery([marked, unmarked], tmp_path / "p.html", "t").read_text()
    assert page.count('<span class="unknown">red</span>') == 1
    assert page.count('<span class="unknown">') == 2  # the other is in the explanation


def test_an_unreadable_picture_keeps_its_card(tmp_path: Path) -> None:
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    pictures = [Picture(tmp_path / name, "a dog", [], {}) for name in ("torn.jpg", "gone.jpg")]
    page = Page(write_gallery(pictures, tmp_path / "p.html", "t"))
    assert page.all("img") == []
    assert "torn.jpg cannot be read a dog gone.jpg cannot be read a dog" in page.words


def test_an_empty_caption_is_said_to_be_empty(tmp_path: Path, photograph: Path) -> None:
    page = Page(write_gallery([Picture(photograph, "", ["a dog"], {})], tmp_path / "p.html", "t"))
    assert "no words a dog" in page.words


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/p\.html cannot be written"):
        write_gallery([], tmp_path / "file" / "p.html", "t")
