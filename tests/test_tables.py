from __future__ import annotations

import pytest

from showtell.metrics import score_captions
from showtell.tables import print_scores


def test_notes_stand_below_the_scores(capsys: pytest.CaptureFixture[str]) -> None:
    print_scores("one image", score_captions({"a": "a dog"}, {"a": ["a dog"]}, ["CIDEr"]))
    shown = " ".join(capsys.readouterr().out.split())
    assert "note: CIDEr is 0 by definition" in shown
