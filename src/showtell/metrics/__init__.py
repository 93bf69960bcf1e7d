"""Caption metrics behind one front end, and statistics to judge them by."""

from showtell.metrics.scores import CaptionScores, score_captions

__all__ = ["CaptionScores", "score_captions"]
