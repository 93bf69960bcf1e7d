from __future__ import annotations

import json
from pathlib import Path

import pytest

from showtell.metrics.inputs import DuplicateCaptionError, ScoringError, read_captions


def test_a_results_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "captions-val.json"
    path.write_text('[{"image_id": "a.jpg", "caption": "a dog"}, {"image_id": 7, "caption": ""}]')
    assert read_captions(path) == {"a.jpg": "a dog", "7": ""}


def test_an_image_captioned_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "captions-val.json"
    path.write_text(json.dumps([{"image_id": "a.jpg", "caption": "a dog"}] * 2))
    with pytest.raises(DuplicateCaptionError, match=r"a\.jpg.*more than once.*captions-val\.json"):
        read_captions(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"{}", b"[1]", b'[{"image_id": "a"}]', b'[{"image_id": "a", "caption": 1}]'],
)
def test_any_other_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "captions-val.json"
    path.write_bytes(content)
    with pytest.raises(ScoringError, match=r"captions-val\.json"):
        read_captions(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ScoringError, match=r"nowhere\.json does not exist"):
        read_captions(tmp_path / "nowhere.json")
