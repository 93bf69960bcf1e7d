"""Tuning an encoder: its upper layers learn which words people say of a picture.

ImageNet teaches a network to tell 120 breeds of dogs apart, and nothing of what dogs do. Here each
frequent word of the captions is something to be seen in a picture, as often as its captions say it
(words as visual concepts: Fang et al. 2015, "From Captions to Visual Concepts and Back"; Wu et al.
2016, "What Value Do Explicit High Level Concepts Have in Vision to Language Problems?"). So are
frequent phrases, where they are asked for: what a dog does stands in "dog jumping over". The layer
that names the words is dropped afterwards; what is kept is what it was given to read.

Dimension key: B images, S input side, C channels, Q side of a map, D feature size, W words.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn

from showtell import runs
from showtell.errors import UserError
from showtell.files import write_atomically
from showtell.memory import keep_freed_memory
from showtell.text.tokenizer import tokenize
from showtell.training.checkpoints import AtomicCheckpointIO, RandomStates
from showtell.training.optimization import Optimization
from showtell.training.trainer import silence_hints
from showtell.types import CaptionedImage
from showtell.vision.encoder import Encoder, parts_of
from showtell.vision.images import Preprocessing
from showtell.vision.learning import LearningEncoder
from showtell.vision.pictures import ShownPictures, check_readable
from showtell.vision.weights import facts_of, half_file

# A word of fewer training pictures is seen too seldom to be learned by its looks, and one of more
# than half of them ("a", "in", "the") is grammar.
LEAST_PICTURES = 15
LARGEST_SHARE = 0.5
BATCH_SIZE = 32
DROPOUT = 0.3
LARGEST_GRADIENT = 5.0  # the norm of all together
# The layer that names the words knows nothing yet: its rate, in learning rates of the network.
HEAD_RATE = 7.0
# The entry of the file's metadata that says how it came about. One alone: several would stand in
# another order each time.
TUNED_BY = "tuned_by"
# The entry of a checkpoint that says which tuning it is of.
MADE_FOR = "made_for"


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """How far and how fast.

    Attributes:
        epochs: passes over the training pictures, each in a view drawn anew.
        lr: highest learning rate of Adam for the network.
        seed: of views, dropout and the new layer.
        accelerator: ``auto``, ``cpu``, or one that must be there.
        phrases: longest sequence of words that is something to be seen; 1: words alone.
    """

    epochs: int
    lr: float
    seed: int
    accelerator: str
    phrases: int

    def __post_init__(self) -> None:
        if min(self.epochs, self.phrases) < 1 or not 0 < self.lr < math.inf:
            raise ValueError("epochs and phrases must be at least 1, and lr above 0")


def tune(
    encoder: Encoder,
    training: Sequence[CaptionedImage],
    validation: Sequence[CaptionedImage],
    output: Path,
    settings: TuningSettings,
    began_with: str | None = None,
) -> None:
    """Tune ``encoder`` to the captions of ``training`` and write its weights to ``output``.

    They are the moving average of the last steps, in half precision, for ``encoder.weights``. The
    networks of ``encoder`` itself have them afterwards, and its identity is past.
    Each epoch tells the cross-entropy of the words of ``validation``, in nats per picture; nothing
    is chosen by it.

    A tuning that was broken off goes on after its last whole epoch, to the same weights: until the
    end there is a checkpoint of each network beside ``output``.

    ``began_with`` names the file of its weights, where they are not published ones, for ``output``
    to tell.

    Raises:
        UserError: for a network that cannot be cut, a picture that cannot be read, captions without
            frequent words, a loss that is not finite, or checkpoints of another tuning.
    """
    parts = parts_of(encoder)
    networks = [LearningEncoder(part, "pooled") for part in parts]
    words = frequent_words(training, settings.phrases)
    if not words:
        raise UserError(
            f"no word stands in the captions of {LEAST_PICTURES} training pictures and of at most "
            f"{LARGEST_SHARE:.0%} of them: there is too little to tune an encoder to"
        )
    silence_hints()
    keep_freed_memory()
    targets = [word_targets(images, words, settings.phrases) for images in (training, validation)]
    facts = {
        "epochs": settings.epochs,
        "lr": settings.lr,
        "seed": settings.seed,
        "phrases": settings.phrases,
        "network": encoder.identity.network,
        "size": encoder.preprocessing.size,
        **({} if began_with is None else {"weights": began_with}),
    }
    given = [facts, BATCH_SIZE, DROPOUT, HEAD_RATE, words, [image.image_id for image in training]]
    tunings = [
        _Tuning(
            output.with_suffix(f".{number}.ckpt"),
            _digest([*given, part.identity.to_json()], targets[0]),
        )
        for number, part in enumerate(parts, start=1)
    ]
    done = [tuning.epochs() for tuning in tunings]  # refused before the work
    check_readable([*training, *validation])
    named = "words" if settings.phrases == 1 else f"phrases of 1 to {settings.phrases} words"
    print(f"note: {len(words)} {named} to be seen in {len(training)} training pictures")
    try:
        for part, network, tuning, epochs in zip(parts, networks, tunings, done, strict=True):
            if epochs:
                print(
                    f"note: goes on after epoch {epochs} of {settings.epochs}: {tuning.checkpoint}"
                )
            # Each as if it were alone.
            seed_everything(settings.seed, workers=True, verbose=False)
            batches = WordBatches(training, targets[0], encoder.preprocessing, seed=settings.seed)
            tuner = WordTuner(network, targets[0].mean(dim=0), settings, batches)
            _trainer(settings, tuning).fit(
                tuner,
                batches,
                WordBatches(validation, targets[1], encoder.preprocessing, seed=None),
                ckpt_path=tuning.checkpoint if epochs else None,
            )
            part.body.load_state_dict(tuner.tuned.state_dict())
    except _DivergedError:
        _remove_checkpoints(tunings)  # none can go on at the rate that all of them are to have
        raise
    write_atomically(output, half_file(encoder.body, {TUNED_BY: json.dumps(facts)}))
    _remove_checkpoints(tunings)


def tuned_by_of(file: Path) -> list[dict[str, Any]]:
    """The settings of each tuning that the weights in ``file`` come from; none where none is told.

    Those of `TuningSettings`, and ``network`` and ``size``, the side of its pictures in pixels,
    which files of before do not tell; ``weights``, the name of the file that it began with, where
    that was not published weights. Networks tuned together come once, their names joined by
    ``+``; networks that were joined afterwards one after the other. Of an encoder that learned in a
    run it is what it was before.

    Raises:
        UserError: the file is damaged, or tells something else there.
    """
    facts = facts_of(file)
    try:
        if runs.LEARNED_IN in facts:
            facts = json.loads(facts[runs.LEARNED_IN])["before"]
        told = json.loads(facts.get(TUNED_BY, "[]"))
        # Without phrases: of before there were any.
        tunings = [{"phrases": 1, **each} for each in (told if isinstance(told, list) else [told])]
        are_settings = all(map(_are_settings, tunings))
    except (AttributeError, LookupError, TypeError, ValueError):
        are_settings = False
    if not are_settings:
        raise UserError(f"{file}: it says nothing sensible of its tuning; restore it from a copy")
    return tunings


def _are_settings(tuned_by: Mapping[str, Any]) -> bool:
    numbers = [tuned_by[name] for name in ("epochs", "lr", "seed", "phrases")]
    if "network" in tuned_by:
        numbers.append(tuned_by["size"])
    are_names = all(isinstance(tuned_by.get(name, ""), str) for name in ("network", "weights"))
    return are_names and all(type(number) in (int, float) for number in numbers)


def _digest(given: object, targets: Tensor) -> str:
    """What a tuning goes by, in a hash."""
    told = json.dumps(given, sort_keys=True).encode()
    return hashlib.sha256(told + targets.numpy().tobytes()).hexdigest()


class _Tuning(Callback):
    """Saves how far the tuning of a network is after each epoch.

    Args:
        checkpoint: the file.
        made_for: which tuning it is; the checkpoint of another one is refused.
    """

    def __init__(self, checkpoint: Path, made_for: str) -> None:
        self.checkpoint = checkpoint
        self._made_for = made_for

    def epochs(self) -> int:
        """How many are done, as the checkpoint has it; 0 where there is none.

        Raises:
            UserError: it is damaged, or of another tuning.
        """
        if not self.checkpoint.exists():
            return 0
        try:
            state = AtomicCheckpointIO().load_checkpoint(self.checkpoint)
        except UserError:
            state = {}
        if state.get(MADE_FOR) != self._made_for:
            raise UserError(
                f"{self.checkpoint} is damaged, or of a tuning with other settings, networks or "
                "captions: remove it, or name another --output"
            )
        return int(state["epoch"]) + 1

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write down which tuning it is."""
        checkpoint[MADE_FOR] = self._made_for

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        trainer.save_checkpoint(self.checkpoint, weights_only=False)


def _remove_checkpoints(tunings: Sequence[_Tuning]) -> None:
    for tuning in tunings:
        tuning.checkpoint.unlink(missing_ok=True)


class _DivergedError(UserError):
    """The loss is not finite."""


def _trainer(settings: TuningSettings, tuning: _Tuning) -> Trainer:
    return Trainer(
        accelerator=settings.accelerator,
        devices=1,
        max_epochs=settings.epochs,
        gradient_clip_val=LARGEST_GRADIENT,
        callbacks=[RandomStates(), tuning],
        plugins=[AtomicCheckpointIO()],
        deterministic="warn",
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


def frequent_words(images: Sequence[CaptionedImage], phrases: int) -> list[str]:
    """The words that can be learned by their looks, the most frequent first.

    With them the sequences of up to ``phrases`` words, joined by spaces.
    """
    pictures = Counter(word for image in images for word in _words_of(image, phrases))
    most = LARGEST_SHARE * len(images)
    # Alphabetically where equally frequent: sets have another order in each process.
    ranked = sorted(pictures.items(), key=lambda item: (-item[1], item[0]))
    return [word for word, n in ranked if LEAST_PICTURES <= n <= most]


def word_targets(images: Sequence[CaptionedImage], words: Sequence[str], phrases: int) -> Tensor:
    """The share of each image's captions that have each word or phrase, (images, W).

    None of ``words`` is a sequence of more than ``phrases`` words.
    """
    column = {word: number for number, word in enumerate(words)}
    targets = torch.zeros(len(images), len(words))
    for row, image in zip(targets, images, strict=True):
        for word, captions in _words_of(image, phrases).items():
            if word in column:
                row[column[word]] = captions / len(image.captions)
    return targets


def _words_of(image: CaptionedImage, longest: int) -> Counter[str]:
    """How many captions of an image have each word, and each sequence of up to ``longest``."""
    return Counter(
        phrase for caption in image.captions for phrase in _phrases(tokenize(caption), longest)
    )


def _phrases(words: Sequence[str], longest: int) -> set[str]:
    return {
        " ".join(words[start : start + length])
        for length in range(1, longest + 1)
        for start in range(len(words) - length + 1)
    }


class WordBatches:
    """Batches of (pixels (B, S, S, 3), targets (B, W)), the pictures whole and in their order.

    With a seed they are shown in glimpses and in an order that are drawn anew for each ``epoch``,
    which is to be set before the first batch of it.
    """

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        targets: Tensor,
        preprocessing: Preprocessing,
        *,
        seed: int | None,
    ) -> None:
        self._images = images
        self._targets = targets
        self._preprocessing = preprocessing
        self._seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        """All pictures are validated with; a rest of them would be too few to learn from."""
        whole, rest = divmod(len(self._images), BATCH_SIZE)
        return whole + (rest > 0 and (self._seed is None or whole == 0))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        shown = ShownPictures(self._images, self._preprocessing, self._seed, self.epoch)
        order = np.arange(len(self._images))
        if self._seed is not None:
            order = np.random.default_rng((self._seed, self.epoch)).permutation(order)
        for number in range(len(self)):
            images = order[number * BATCH_SIZE : (number + 1) * BATCH_SIZE]
            yield torch.from_numpy(shown.gather(images)).float(), self._targets[images]


class WordNamer(nn.Module):
    """An encoder that learns, and a layer that names the words by its pooled features."""

    def __init__(self, encoder: LearningEncoder, frequencies: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.size, len(frequencies))
        # Begin with how frequent each word is.
        nn.init.normal_(self.head.weight, std=0.01)
        with torch.no_grad():
            self.head.bias.copy_(torch.logit(frequencies, eps=1e-3))

    def forward(self, maps: Tensor) -> Tensor:
        """The words' logits (B, W) from the maps (B, C, Q, Q) of the frozen stages."""
        return cast(Tensor, self.head(F.dropout(self.encoder(maps), DROPOUT, self.training)))


class WordTuner(LightningModule):
    """Trains what is above the frozen stages.

    Args:
        encoder: the network that learns.
        frequencies: (W,) the words' mean targets.
        settings: how far and how fast.
        batches: those of the training pictures.
    """

    def __init__(
        self,
        encoder: LearningEncoder,
        frequencies: Tensor,
        settings: TuningSettings,
        batches: WordBatches,
    ) -> None:
        super().__init__()
        self.namer = WordNamer(encoder, frequencies)
        self._settings = settings
        self._batches = batches
        self._rules = Optimization(
            lr=HEAD_RATE * settings.lr,
            encoder_lr=settings.lr,
            weight_decay=0.0,
            schedule="cosine",
            warmup_epochs=0.8,
            final_lr_fraction=0.02,
            gradient_clip=LARGEST_GRADIENT,
            averaging=0.998,
        )
        averaged = self._rules.averaged(self.namer)
        assert averaged is not None
        self.averaged = averaged

    @property
    def tuned(self) -> nn.Module:
        """The network with the mean of the weights."""
        return cast(WordNamer, self.averaged.module).encoder.network

    def on_fit_start(self) -> None:
        """Compile the frozen stages for the device, on which the module is by now."""
        self._lower = self.namer.encoder.frozen_stages(self.device)

    def on_train_epoch_start(self) -> None:
        """Tell the batches, which know nothing of what was before a checkpoint."""
        self._batches.epoch = self.current_epoch

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean over the pictures of the cross-entropy of all words."""
        loss = self._loss(self.namer, batch)
        if not torch.isfinite(loss):
            raise _DivergedError(f"the loss is {loss:.3g} at step {self.global_step}: lower --lr")
        self.log("loss", loss, prog_bar=True, logger=False)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The same of the mean weights."""
        loss = self._loss(cast(WordNamer, self.averaged.module), batch)
        self.log("val loss", loss, prog_bar=True, logger=False, batch_size=len(batch[0]))

    def on_validation_epoch_end(self) -> None:
        """Say how it goes."""
        loss = float(self.trainer.callback_metrics["val loss"])
        self.print(f"epoch {self.current_epoch + 1}/{self._settings.epochs}  val loss {loss:.3f}")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Move the weights, then their mean."""
        super().optimizer_step(*args, **kwargs)
        self.averaged.update_parameters(self.namer)

    def configure_optimizers(self) -> Any:
        """Adam, faster for the new layer, and a cosine after a warm-up."""
        optimizer = self._rules.optimizer(self.namer.head, self.namer.encoder)
        scheduler = self._rules.scheduler(
            optimizer, steps_per_epoch=len(self._batches), epochs=self._settings.epochs
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def _loss(self, namer: WordNamer, batch: tuple[Tensor, Tensor]) -> Tensor:
        pixels, targets_BW = batch
        logits_BW = namer(self._lower(pixels))
        losses_BW = F.binary_cross_entropy_with_logits(logits_BW, targets_BW, reduction="none")
        return losses_BW.sum(dim=1).mean()
