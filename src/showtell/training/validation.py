"""Freely generated captions, gathered over batches and scored once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from showtell.decoding.beam import Hypothesis
from showtell.metrics.scores import score_captions
from showtell.text.tokenizer import detokenize
from showtell.text.vocabulary import END, PAD, Vocabulary
from showtell.training.ranks import gathered, world_size


class GeneratedCaptions(Metric):
    """Collects one caption per image, and scores all of them as a corpus.

    The state is token ids and image positions; an image that comes twice is counted once. Each
    process adds its own images; after ``gather`` every process has all of them.
    """

    full_state_update = False
    positions: list[Tensor]
    tokens: list[Tensor]

    def __init__(
        self,
        references: Mapping[str, Sequence[str]],
        vocabulary: Vocabulary,
        *,
        max_length: int,
        metrics: Sequence[str],
    ) -> None:
        super().__init__(sync_on_compute=False)
        self._references = references
        self._image_ids = tuple(references)
        self._position_of = {image_id: i for i, image_id in enumerate(self._image_ids)}
        self._vocabulary = vocabulary
        self._max_length = max_length
        self._metrics = tuple(metrics)
        self._texts: dict[str, str] | None = None  # what `captions` gave since the last change
        self.add_state("positions", default=[], dist_reduce_fx="cat")
        self.add_state("tokens", default=[], dist_reduce_fx="cat")

    def update(self, image_ids: Sequence[str], hypotheses: Sequence[Hypothesis]) -> None:
        """Add the captions of a batch of images."""
        self._texts = None
        rows = [self._row(h) for h in hypotheses]
        positions = [self._position_of[image_id] for image_id in image_ids]
        self.tokens.append(torch.tensor(rows, device=self.device))
        self.positions.append(torch.tensor(positions, device=self.device))

    def gather(self) -> None:
        """Collect the captions of all processes; every process must call it."""
        if world_size() == 1:
            return
        self._texts = None
        own = [(p.cpu(), t.cpu()) for p, t in zip(self.positions, self.tokens, strict=True)]
        pairs = [pair for part in gathered(own) for pair in part]
        self.positions = [positions for positions, _ in pairs]
        self.tokens = [tokens for _, tokens in pairs]

    def reset(self) -> None:
        """Forget all captions."""
        self._texts = None
        super().reset()

    def captions(self) -> dict[str, str]:
        """Caption of every image seen so far, as readable text."""
        if self._texts is None:  # scores, alarms and examples of a validation ask for the same
            rows = self._rows_by_image()
            self._texts = {i: detokenize(self._vocabulary.decode(r)) for i, r in rows.items()}
        return dict(self._texts)

    def unfinished(self) -> set[str]:
        """The images seen so far whose caption the search cut off."""
        return {image_id for image_id, row in self._rows_by_image().items() if END not in row}

    def compute(self) -> dict[str, Tensor]:
        """Corpus scores over the images seen, as scalars; raises UserError if there are none."""
        captions = self.captions()
        references = {image_id: self._references[image_id] for image_id in captions}
        scores = score_captions(captions, references, metrics=self._metrics).scores
        return {name: torch.tensor(value) for name, value in scores.items()}

    def _row(self, hypothesis: Hypothesis) -> list[int]:
        """The token ids, END if the model wrote it, and PAD up to ``max_length`` + 1."""
        tokens = [*hypothesis.token_ids, *([END] if hypothesis.ended else [])]
        return tokens + [PAD] * (self._max_length + 1 - len(tokens))

    def _rows_by_image(self) -> dict[str, list[int]]:
        """The row of every image seen so far, in the order of the references."""
        if not self.positions:
            return {}
        positions = dim_zero_cat(self.positions).tolist()
        rows = dict(zip(positions, dim_zero_cat(self.tokens).tolist(), strict=True))
        return {self._image_ids[position]: rows[position] for position in sorted(rows)}
