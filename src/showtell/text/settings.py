"""Settings of the vocabulary and the word vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

VectorTraining = Literal["freeze", "thaw", "train"]


@dataclass(frozen=True, slots=True)
class TextSettings:
    """The ``text`` group of the configuration.

    Attributes:
        min_count: least occurrences in the training captions for a word to be in the vocabulary.
        vectors: ``kumo-6b-50d`` (GloVe 6B, 50-d, installed with the project), the path of a
            Stanford GloVe text file, or None for random vectors.
        vector_width: dimension of the vectors; checked against the source.
        train_vectors: ``freeze`` keeps the vectors fixed, ``train`` trains them from the first
            step, ``thaw`` from epoch ``thaw_epoch`` on.
        thaw_epoch: 0-based epoch from which frozen vectors are trained; None without thaw.
    """

    min_count: int
    vectors: str | None
    vector_width: int
    train_vectors: VectorTraining
    thaw_epoch: int | None

    def __post_init__(self) -> None:
        for name in ("min_count", "vector_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    def learn_at(self, epoch: int) -> bool:
        """Whether the vectors are trained in the 0-based ``epoch``."""
        if self.train_vectors == "thaw":
            return self.thaw_epoch is not None and epoch >= self.thaw_epoch
        return self.train_vectors == "train"
