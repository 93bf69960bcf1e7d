"""The interface of all searches, which captioning, validation and evaluation use."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, Self

from torch import Tensor

from showtell.decoding.beam import Hypothesis
from showtell.models.decoder import StepDecoder
from showtell.text.vocabulary import Vocabulary


class Search(Protocol):
    """Writes one caption for each image; a dataclass whose fields are its options."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def max_length(self) -> int:
        """Longest caption in words."""
        ...

    def with_vocabulary(self, vocabulary: Vocabulary) -> Self:
        """A copy of this search that knows the ids of the words in its rules."""
        ...

    def __call__(self, decoder: StepDecoder, features: Tensor) -> list[Hypothesis]:
        """A caption of each image of ``features`` (B, D) or (B, R, D), in order."""
        ...
