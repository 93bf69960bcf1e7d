from __future__ import annotations

import json
from pathlib import Path

import pytest

from showtell.errors import UserError
from showtell.report.results import read_scores


def scores_of(folder: Path, content: object) -> dict[str, tuple[str, dict[str, str]]]:
    (folder / "scores-val.json").write_text(json.dumps(content))
    found = read_scores(folder, "val")
    assert found is not None
    return {s.name: (s.text, dict(s.beside)) for s in found.scores}


def test_fractions_in_per_cent_and_cider_on_its_own_scale(tmp_path: Path) -> None:
    found = scores_of(tmp_path, {"CIDEr": 0.55312, "BLEU-1": 0.6312, "ROUGE-L": 0.46, "images": 9})
    assert found == {"BLEU-1": ("63.1", {}), "ROUGE-L": ("46.0", {}), "CIDEr": ("0.553", {})}


def test_floors_ceilings_and_intervals_stand_beside_their_score(tmp_path: Path) -> None:
    content = {
        "BLEU-4": 0.2,
        "CIDEr": 0.5,
        "floor/constant caption/BLEU-4": 0.086,
        "ceiling": {"BLEU-4": 0.214, "CIDEr": 0.821},
        "interval": {"CIDEr": [0.48, 0.52]},
    }
    assert scores_of(tmp_path, content) == {
        "BLEU-4": ("20.0", {"floor constant caption": "8.6", "ceiling": "21.4"}),
        "CIDEr": ("0.500", {"ceiling": "0.821", "interval": "0.480–0.520"}),  # noqa: RUF001
    }


def test_a_skipped_metric_is_named_with_its_remedy(tmp_path: Path) -> None:
    scores_of(tmp_path, {"BLEU-1": 0.5, "skipped/METEOR": "install Java", "references": 5000})
    found = read_scores(tmp_path, "val")
    assert found is not None
    assert found.remarks == (("skipped METEOR", "install Java"), ("references", "5,000"))


def test_a_split_that_was_not_evaluated_has_none(tmp_path: Path) -> None:
    assert read_scores(tmp_path, "test") is None


@pytest.mark.parametrize("damaged", ["{", "[1, 2]", "\xff"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "scores-val.json").write_text(damaged, encoding="latin-1")
    with pytest.raises(UserError, match=r"scores-val\.json cannot be used .*showtell evaluate"):
        read_scores(tmp_path, "val")
