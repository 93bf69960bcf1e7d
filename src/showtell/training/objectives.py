"""Training objectives: cross-entropy on the references, or a reward of sampled captions.

Dimension key: B images, N captions, T positions, P real positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from showtell.data.batches import Batch
from showtell.decoding.beam import BeamSearch
from showtell.decoding.sampling import NEVER_DRAWN, Samples, draw, sample
from showtell.metrics.scores import SampleScores
from showtell.models.decoder import Decoder
from showtell.text.tokenizer import tokenize
from showtell.text.vocabulary import BEGIN, END, PAD, SPECIALS, Vocabulary
from showtell.training.left_out import LeftOut
from showtell.training.loss import cross_entropy_
from showtell.types import CaptionedImage

Baseline = Literal["others", "greedy"]
# Yields the pooled features of the training images in chunks (any, D); each call starts anew.
PooledFeatures = Callable[[], Iterable[Tensor]]


class BatchLoss(NamedTuple):
    """The loss of one batch and the measure that the learning curves show."""

    loss: Tensor  # scalar, to be minimized
    measure: Tensor  # scalar for the curves: a mean over ``weight`` tokens or captions
    weight: int
    positions: int  # tokens that ``loss`` is a mean over


class Objective(Protocol):
    """Computes the loss of a batch; ``measure`` is the name of its measure in the curves."""

    measure: ClassVar[str]

    def __call__(self, decoder: nn.Module, batch: Batch, progress: float) -> BatchLoss:
        """The loss of a batch; ``progress`` is the completed share of the training, 0..1."""
        ...


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Teacher forcing: the negative log probability of the reference words, in nats per token.

    Attributes:
        label_smoothing: probability mass spread evenly over the vocabulary (Szegedy et al. 2016).
        scheduled_sampling: share of the input words that are the model's own instead of the
            reference's (Bengio et al. 2015, "Scheduled Sampling"), rising linearly from 0 to this
            value at the end of the training. They are drawn in a first pass over all positions at
            once (Mihaylova and Martins 2019, "Scheduled Sampling for Transformers"), which costs a
            third of a step.
    """

    label_smoothing: float
    scheduled_sampling: float
    measure: ClassVar[str] = "loss"

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError("label_smoothing must be at least 0 and below 1")
        if not 0 <= self.scheduled_sampling <= 1:
            raise ValueError("scheduled_sampling must lie in 0..1")

    def on(
        self, images: Sequence[CaptionedImage], vocabulary: Vocabulary, pooled: PooledFeatures
    ) -> Objective:
        """Return itself: it needs nothing but the batches."""
        return self

    def __call__(self, decoder: nn.Module, batch: Batch, progress: float) -> BatchLoss:
        """Cross-entropy of the real positions."""
        tokens = batch.tokens
        if self.scheduled_sampling:
            tokens = _with_own_words(decoder, batch, share=self.scheduled_sampling * progress)
        logits_PV = decoder(batch.features, tokens, batch.lengths, batch.image_of_row)
        loss = cross_entropy_(logits_PV, batch.targets, label_smoothing=self.label_smoothing)
        positions = batch.targets.numel()
        return BatchLoss(loss, loss.detach(), positions, positions)


def _with_own_words(decoder: nn.Module, batch: Batch, *, share: float) -> Tensor:
    """Input tokens (N, T) with a ``share`` of the words replaced by words that the model draws.

    BEGIN is never replaced, and END is never drawn.
    """
    with torch.no_grad():
        logits_PV = decoder(batch.features, batch.tokens, batch.lengths, batch.image_of_row).float()
        logits_PV[:, END] = -torch.inf
        words_P, _ = draw(logits_PV, torch.rand(len(logits_PV), device=logits_PV.device))
    _forget_casts()
    real_NT = torch.arange(batch.tokens.shape[1]) < batch.lengths.unsqueeze(1)
    own_NT = torch.zeros_like(batch.tokens)
    own_NT[real_NT.to(own_NT.device)] = words_P
    own_NT = own_NT.roll(1, dims=1)  # predicted at one position, read at the next
    chosen_NT = torch.rand(own_NT.shape, device=own_NT.device) < share
    chosen_NT[:, 0] = False
    chosen_NT &= batch.tokens != PAD
    return torch.where(chosen_NT, own_NT, batch.tokens)


def _forget_casts() -> None:
    """Call between a pass without gradients and one with them, in one step of mixed precision.

    Autocast keeps the weights that it has cast. In some versions of PyTorch those cast without
    gradients serve the second pass too, whose weights then get none.
    """
    torch.clear_autocast_cache()


@dataclass(frozen=True, slots=True)
class SelfCritical:
    """Self-critical sequence training (Rennie et al. 2017) on CIDEr-D.

    The model samples several captions per image and learns from how far each one's reward is above
    a baseline (REINFORCE). END counts as a word of captions and references: otherwise a caption
    that breaks off would cost nothing, and models would learn to break off.

    Attributes:
        samples: captions sampled per image.
        baseline: what is subtracted from a reward: with ``others`` the mean reward of the image's
            other samples (Luo 2020, "A Better Variant of Self-Critical Sequence Training"), with
            ``greedy`` the reward of the greedy caption (Rennie et al.), which must be decoded too.
        bleu_weight: weight of sentence BLEU-4 (0 to 1) in the reward, beside CIDEr-D (0 to 10).
        max_length: longest sample in words; one that is cut off there has no END to be rewarded
            for.
        expected_weight: weight of the expected CIDEr, predicted from all other training images and
            their captions: see `LeftOut`.
    """

    samples: int
    baseline: Baseline
    bleu_weight: float
    max_length: int
    expected_weight: float = 0.0  # objective=self_critical does not set it

    def __post_init__(self) -> None:
        least = 2 if self.baseline == "others" else 1
        if self.samples < least:
            raise ValueError(f"samples must be at least {least} with baseline={self.baseline}")
        if not all(0 <= weight < math.inf for weight in (self.bleu_weight, self.expected_weight)):
            raise ValueError("bleu_weight and expected_weight must be at least 0, and finite")
        if self.max_length < 1:
            raise ValueError("max_length must be at least 1")

    def on(
        self, images: Sequence[CaptionedImage], vocabulary: Vocabulary, pooled: PooledFeatures
    ) -> Objective:
        """The objective for training on ``images``; reads ``pooled`` for expected CIDEr only."""
        rewards = Rewards(images, vocabulary, bleu_weight=self.bleu_weight)
        if self.expected_weight:
            rewards.expect(pooled(), weight=self.expected_weight)
        return PolicyGradient(self, rewards)


class Rewards:
    """Rewards captions, given as token ids, by the references of their training images.

    A reward is CIDEr-D, plus weighted BLEU-4 and expected CIDEr where asked for. Document
    frequencies are those of all training captions.
    """

    def __init__(
        self, images: Sequence[CaptionedImage], vocabulary: Vocabulary, *, bleu_weight: float
    ) -> None:
        self._vocabulary = vocabulary
        self._bleu_weight = bleu_weight
        references = {image.image_id: image.captions for image in images}
        self._scores = SampleScores(references, end=SPECIALS[END])
        self._images = images
        self._expected: tuple[float, LeftOut] | None = None

    def expect(self, features: Iterable[Tensor], *, weight: float) -> None:
        """Add ``weight`` times the expected CIDEr to the reward.

        ``features`` are the pooled features of the training images: see `LeftOut`.
        """
        captions = [
            [(*self._vocabulary.encode(tokenize(caption)), END) for caption in image.captions]
            for image in self._images
        ]
        ids = [image.image_id for image in self._images]
        self._expected = weight, LeftOut(ids, captions, features)

    def __call__(self, image_ids: Sequence[str], captions: Sequence[Sequence[int]]) -> Tensor:
        """Rewards (N,) of captions; each image has equally many, next to each other.

        A caption ends with END unless it was cut off.
        """
        sentences = [
            " ".join(self._vocabulary.tokens[token_id] for token_id in caption)
            for caption in captions
        ]
        per_image = len(captions) // len(image_ids)
        image_of_row = [image_ids[row // per_image] for row in range(len(captions))]
        rewards = torch.tensor(self._scores.cider(sentences, image_of_row))
        if self._bleu_weight:
            rewards += self._bleu_weight * torch.tensor(self._scores.bleu4(sentences, image_of_row))
        if self._expected is not None:
            weight, expected = self._expected
            starts = range(0, len(captions), per_image)
            rows = (captions[start : start + per_image] for start in starts)
            scores = [s for i, row in zip(image_ids, rows, strict=True) for s in expected(i, row)]
            rewards += weight * torch.tensor(scores)
        return rewards


class PolicyGradient:
    """Loss whose gradient estimates that of the negative expected reward, with a baseline."""

    measure: ClassVar[str] = "reward"

    def __init__(self, settings: SelfCritical, rewards: Rewards) -> None:
        self._settings = settings
        self._rewards = rewards
        self._greedy = BeamSearch(
            beam_size=1,
            min_length=0,
            max_length=settings.max_length,
            length_penalty=0.0,
            allow_unknown=False,
        )

    def __call__(self, decoder: nn.Module, batch: Batch, progress: float) -> BatchLoss:
        """Sample captions without dropout, then compute their loss with dropout."""
        decoder.eval()
        drawn = sample(
            cast(Decoder, decoder),
            batch.features,
            samples=self._settings.samples,
            max_length=self._settings.max_length,
            generator=torch.default_generator,  # its state is saved in checkpoints
        )
        rewards_N = self._rewards(batch.image_ids, _rows(drawn)).to(batch.features.device)
        advantages_N = rewards_N - self._baselines(decoder, batch, rewards_N)
        decoder.train()
        _forget_casts()
        loss = _negative_log_likelihood(decoder, batch, drawn, advantages_N)
        return BatchLoss(loss, rewards_N.mean(), len(rewards_N), int(drawn.lengths.sum()))

    def _baselines(self, decoder: nn.Module, batch: Batch, rewards: Tensor) -> Tensor:
        """The baseline (N,) of each reward (N,)."""
        samples = self._settings.samples
        if self._settings.baseline == "others":
            by_image = rewards.view(-1, samples)
            others = (by_image.sum(1, keepdim=True) - by_image) / (samples - 1)
            return others.flatten()
        written = self._greedy(cast(Decoder, decoder), batch.features)
        greedy = [[*h.token_ids, *([END] if h.ended else [])] for h in written]
        return self._rewards(batch.image_ids, greedy).to(rewards.device).repeat_interleave(samples)


def _rows(drawn: Samples) -> list[list[int]]:
    """The token ids of each sample, END included where it was drawn."""
    lengths = drawn.lengths.tolist()
    return [row[:length] for row, length in zip(drawn.tokens.tolist(), lengths, strict=True)]


def _negative_log_likelihood(
    decoder: nn.Module, batch: Batch, drawn: Samples, advantages: Tensor
) -> Tensor:
    """Mean over the drawn tokens of -log p, weighted by the advantage (N,) of their caption."""
    lengths = drawn.lengths.cpu()
    targets_NT = drawn.tokens[:, : int(lengths.max())]
    tokens_NT = targets_NT.roll(1, dims=1)
    tokens_NT[:, 0] = BEGIN
    images = torch.arange(len(batch.image_ids), device=targets_NT.device)
    image_of_row = images.repeat_interleave(len(targets_NT) // len(images))
    logits_PV = decoder(batch.features, tokens_NT, lengths, image_of_row)
    # Tokens that are never drawn have probability 0 here too.
    never = torch.tensor(NEVER_DRAWN, device=logits_PV.device)
    logits_PV = logits_PV.index_fill(1, never, -torch.inf)
    real_NT = torch.arange(targets_NT.shape[1]) < lengths.unsqueeze(1)
    real_NT = real_NT.to(targets_NT.device)
    weights_NT = advantages.unsqueeze(1).expand_as(targets_NT)
    return cross_entropy_(
        logits_PV, targets_NT[real_NT], label_smoothing=0.0, weights=weights_NT[real_NT]
    )
