"""Numbers people can trust: one front end to every score, and what stands beside a score."""

from showtell.metrics.scores import CaptionScores, score_captions

__all__ = ["CaptionScores", "score_captions"]
