"""Fine-tuning an encoder: its upper layers learn to predict the words of an image's captions.

ImageNet teaches a network to tell 120 breeds of dogs apart, but not what dogs do. Here every
frequent word of the captions is a visual concept to detect, and its target is the share of an
image's captions that have it (Fang et al. 2015, "From Captions to Visual Concepts and Back"; Wu et
al. 2016, "What Value Do Explicit High Level Concepts Have in Vision to Language Problems?").
Frequent phrases can be included: "dog jumping over" says what a dog does. The layer that predicts
the words is dropped afterwards; the network below it is kept.

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
from showtell.vision.finetuning import TrainableStages
from showtell.vision.images import Preprocessing
from showtell.vision.pictures import PixelSource, check_readable
from showtell.vision.weights import facts_of, half_file

# A word in the captions of fewer training images is too rare to be learned visually, and one of
# more than half of them ("a", "in", "the") is grammar.
LEAST_PICTURES = 15
LARGEST_SHARE = 0.5
BATCH_SIZE = 32
DROPOUT = 0.3
LARGEST_GRADIENT = 5.0  # norm of all gradients together
# Learning rate of the layer that predicts the words, which is new, in units of the network's.
HEAD_RATE = 7.0
# Metadata entry of the weights file that records the tuning. One entry only: the order of several
# would differ each time.
TUNED_BY = "tuned_by"
# Checkpoint entry that identifies the tuning.
MADE_FOR = "made_for"


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """Settings of a tuning.

    Attributes:
        epochs: passes over the training images, each with newly drawn crops.
        lr: peak learning rate of Adam for the network.
        seed: seed of the crops, dropout and the new layer.
        accelerator: ``auto``, or one that must be available.
        phrases: longest phrase to predict, in words; 1: single words only.
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

    The weights are the EMA of the last steps, in half precision, to be used as ``encoder.weights``.
    They are also loaded into the networks of ``encoder``, whose identity is then out of date. After
    each epoch the cross-entropy of the words of ``validation`` is printed, in nats per image;
    nothing is selected by it.

    An interrupted tuning resumes after its last complete epoch and ends with the same weights:
    until it is done, each network has a checkpoint beside ``output``.

    ``began_with`` is the file of the initial weights, to be recorded in ``output``; None if they
    are published ones.

    Raises:
        UserError: for a network that cannot be split, an image that cannot be read, captions
            without frequent words, a loss that is not finite, or checkpoints of another tuning.
    """
    parts = parts_of(encoder)
    networks = [TrainableStages(part, "pooled") for part in parts]
    words = frequent_words(training, settings.phrases)
    if not words:
        raise UserError(
            f"no word stands in the captions of {LEAST_PICTURES} training pictures and of at most "
            f"{LARGEST_SHARE:.0%} of them: there is too little to tune an encoder to"
        )
    silence_hints()
    targets = [word_targets(images, words, settings.phrases) for images in (training, validation)]
    keep_freed_memory()
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
    done = [tuning.epochs() for tuning in tunings]  # raises before any work is done
    check_readable([*training, *validation])
    named = "words" if settings.phrases == 1 else f"phrases of 1 to {settings.phrases} words"
    print(f"note: {len(words)} {named} to be seen in {len(training)} training pictures")
    try:
        for part, network, tuning, epochs in zip(parts, networks, tunings, done, strict=True):
            if epochs:
                print(
                    f"note: goes on after epoch {epochs} of {settings.epochs}: {tuning.checkpoint}"
                )
            # Seeded for each network, so that each is tuned as if it were alone.
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
        _remove_checkpoints(tunings)  # none can resume: all need a lower rate
        raise
    write_atomically(output, half_file(encoder.body, {TUNED_BY: json.dumps(facts)}))
    _remove_checkpoints(tunings)


def tuned_by_of(file: Path) -> list[dict[str, Any]]:
    """The settings of each tuning of the weights in ``file``; empty if none is recorded.

    Each has ``epochs``, ``lr``, ``seed`` and ``phrases`` of `TuningSettings`; ``network`` and
    ``size``, the side of its input images in pixels, which older files lack; and ``weights``, the
    file of the initial weights, unless these were published ones. Networks tuned together have one
    entry with their names joined by ``+``; networks joined afterwards have one entry each. For an
    encoder trained in a run these are the tunings before that.

    Raises:
        UserError: the file is damaged, or its record is not one of tunings.
    """
    facts = facts_of(file)
    try:
        if runs.LEARNED_IN in facts:
            facts = json.loads(facts[runs.LEARNED_IN])["before"]
        told = json.loads(facts.get(TUNED_BY, "[]"))
        # A record without ``phrases`` is older than that setting.
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
    """A hash of everything that determines a tuning."""
    told = json.dumps(given, sort_keys=True).encode()
    return hashlib.sha256(told + targets.numpy().tobytes()).hexdigest()


class _Tuning(Callback):
    """Saves a checkpoint of a network's tuning after each epoch.

    Args:
        checkpoint: the file.
        made_for: identifies the tuning; the checkpoint of another one is refused.
    """

    def __init__(self, checkpoint: Path, made_for: str) -> None:
        self.checkpoint = checkpoint
        self._made_for = made_for

    def epochs(self) -> int:
        """The number of epochs completed in the checkpoint; 0 if there is no checkpoint.

        Raises:
            UserError: the checkpoint is damaged, or belongs to another tuning.
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
        """Record which tuning the checkpoint belongs to."""
        checkpoint[MADE_FOR] = self._made_for

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the checkpoint."""
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
    """The words that are neither too rare nor too frequent to be learned, most frequent first.

    Sequences of up to ``phrases`` words, joined by spaces, count as words too.
    """
    pictures = Counter(word for image in images for word in _words_of(image, phrases))
    most = LARGEST_SHARE * len(images)
    # Ties are sorted alphabetically, because the order of sets differs between processes.
    ranked = sorted(pictures.items(), key=lambda item: (-item[1], item[0]))
    return [word for word, n in ranked if LEAST_PICTURES <= n <= most]


def word_targets(images: Sequence[CaptionedImage], words: Sequence[str], phrases: int) -> Tensor:
    """The share (images, W) of each image's captions that have each word or phrase.

    ``words`` must not hold sequences of more than ``phrases`` words.
    """
    column = {word: number for number, word in enumerate(words)}
    targets = torch.zeros(len(images), len(words))
    for row, image in zip(targets, images, strict=True):
        for word, captions in _words_of(image, phrases).items():
            if word in column:
                row[column[word]] = captions / len(image.captions)
    return targets


def _words_of(image: CaptionedImage, longest: int) -> Counter[str]:
    """How many captions of an image have each word and each sequence of up to ``longest`` words."""
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
    """Batches of (pixels (B, S, S, 3), targets (B, W)), the images whole and in order.

    With a seed, for training, crops and order are drawn anew for each ``epoch``, which must be set
    before its first batch.
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
        """Training drops an incomplete last batch, unless it is the only one."""
        whole, rest = divmod(len(self._images), BATCH_SIZE)
        return whole + (rest > 0 and (self._seed is None or whole == 0))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        shown = PixelSource(self._images, self._preprocessing, self._seed, self.epoch)
        order = np.arange(len(self._images))
        if self._seed is not None:
            order = np.random.default_rng((self._seed, self.epoch)).permutation(order)
        for number in range(len(self)):
            images = order[number * BATCH_SIZE : (number + 1) * BATCH_SIZE]
            yield torch.from_numpy(shown.gather(images)).float(), self._targets[images]


class WordNamer(nn.Module):
    """A trainable encoder and a linear layer that predicts the words from its pooled features."""

    def __init__(self, encoder: TrainableStages, frequencies: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.size, len(frequencies))
        # At first predict the frequency of each word.
        nn.init.normal_(self.head.weight, std=0.01)
        with torch.no_grad():
            self.head.bias.copy_(torch.logit(frequencies, eps=1e-3))

    def forward(self, maps: Tensor) -> Tensor:
        """The words' logits (B, W) from the feature maps (B, C, Q, Q) of the frozen stages."""
        return cast(Tensor, self.head(F.dropout(self.encoder(maps), DROPOUT, self.training)))


class WordTuner(LightningModule):
    """Trains the layers above the frozen stages.

    Args:
        encoder: the network to tune.
        frequencies: (W,) the words' mean targets.
        settings: the settings of the tuning.
        batches: the batches of the training images.
    """

    def __init__(
        self,
        encoder: TrainableStages,
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
        """The network with the EMA of the weights."""
        return cast(WordNamer, self.averaged.module).encoder.network

    def on_fit_start(self) -> None:
        """Compile the frozen stages for the device that the module is on by now."""
        self._lower = self.namer.encoder.frozen_stages(self.device)

    def on_train_epoch_start(self) -> None:
        """Tell the batches their epoch, which a checkpoint does not restore."""
        self._batches.epoch = self.current_epoch

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Binary cross-entropy, summed over the words and averaged over the images, in nats."""
        loss = self._loss(self.namer, batch)
        if not torch.isfinite(loss):
            raise _DivergedError(f"the loss is {loss:.3g} at step {self.global_step}: lower --lr")
        self.log("loss", loss, prog_bar=True, logger=False)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The same loss with the EMA of the weights."""
        loss = self._loss(cast(WordNamer, self.averaged.module), batch)
        self.log("val loss", loss, prog_bar=True, logger=False, batch_size=len(batch[0]))

    def on_validation_epoch_end(self) -> None:
        """Print the validation loss."""
        loss = float(self.trainer.callback_metrics["val loss"])
        self.print(f"epoch {self.current_epoch + 1}/{self._settings.epochs}  val loss {loss:.3f}")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights, then their EMA."""
        super().optimizer_step(*args, **kwargs)
        self.averaged.update_parameters(self.namer)

    def configure_optimizers(self) -> Any:
        """Adam with a higher rate for the new layer, and a cosine schedule after a warm-up."""
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
