"""Tuning an encoder: its upper layers learn which words people say of a picture.

ImageNet teaches a network to tell 120 breeds of dogs apart, and nothing of what dogs do. Here each
frequent word of the captions is something to be seen in a picture, as often as its captions say it
(words as visual concepts: Fang et al. 2015, "From Captions to Visual Concepts and Back"; Wu et al.
2016, "What Value Do Explicit High Level Concepts Have in Vision to Language Problems?"). The layer
that names the words is dropped afterwards; what is kept is what it was given to read.

Dimension key: B images, S input side, C channels, Q side of a map, D feature size, W words.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader

from showtell.cores import available_cores
from showtell.errors import UserError
from showtell.memory import keep_freed_memory
from showtell.text.tokenizer import tokenize
from showtell.training.optimization import Optimization
from showtell.training.trainer import silence_hints
from showtell.types import CaptionedImage
from showtell.vision.efficientnet import EfficientNetLite
from showtell.vision.encoder import Encoder, SideBySide
from showtell.vision.frozen import frozen
from showtell.vision.images import Preprocessing, load_image
from showtell.vision.weights import save_half

# A word of fewer training pictures is seen too seldom to be learned by its looks, and one of more
# than half of them ("a", "in", "the") is grammar.
LEAST_PICTURES = 15
LARGEST_SHARE = 0.5
BATCH_SIZE = 32
# The network's stages that stay as they are: edges and textures need no captions.
FROZEN_STAGES = 4
DROPOUT = 0.3
LARGEST_GRADIENT = 5.0  # the norm of all together
# The layer that names the words knows nothing yet: its rate, in learning rates of the network.
HEAD_RATE = 7.0
# The entry of the file's metadata that says how it came about. One alone: several would stand in
# another order each time.
TUNED_BY = "tuned_by"


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """How far and how fast.

    Attributes:
        epochs: passes over the training pictures, each in a view drawn anew.
        lr: highest learning rate of Adam for the network.
        seed: of views, dropout and the new layer.
        accelerator: ``auto``, ``cpu``, or one that must be there.
    """

    epochs: int
    lr: float
    seed: int
    accelerator: str

    def __post_init__(self) -> None:
        if self.epochs < 1 or not 0 < self.lr < math.inf:
            raise ValueError("epochs must be at least 1, and lr above 0")


def tune(
    encoder: Encoder,
    training: Sequence[CaptionedImage],
    validation: Sequence[CaptionedImage],
    output: Path,
    settings: TuningSettings,
) -> None:
    """Tune ``encoder`` to the captions of ``training`` and write its weights to ``output``.

    They are the moving average of the last steps, in half precision, for ``encoder.weights``.
    Each epoch tells the cross-entropy of the words of ``validation``, in nats per picture; nothing
    is chosen by it.

    Raises:
        UserError: for a network that cannot be cut, a picture that cannot be read, captions without
            frequent words, or a loss that is not finite.
    """
    networks = networks_of(encoder)
    words = frequent_words(training)
    if not words:
        raise UserError(
            f"no word stands in the captions of {LEAST_PICTURES} training pictures and of at most "
            f"{LARGEST_SHARE:.0%} of them: there is too little to tune an encoder to"
        )
    silence_hints()
    keep_freed_memory()
    _check_readable([*training, *validation])
    print(f"note: {len(words)} words to be seen in {len(training)} training pictures")
    targets = word_targets(training, words), word_targets(validation, words)
    for network in networks:
        # Each as if it were alone.
        seed_everything(settings.seed, workers=True, verbose=False)
        tuner = WordTuner(network, encoder.preprocessing, targets[0].mean(dim=0), settings)
        _trainer(settings).fit(
            tuner,
            _batches(training, targets[0], encoder.preprocessing, seed=settings.seed),
            _batches(validation, targets[1], encoder.preprocessing, seed=None),
        )
        network.load_state_dict(tuner.tuned.state_dict())
    facts = {"epochs": settings.epochs, "lr": settings.lr, "seed": settings.seed}
    save_half(encoder.body, output, {TUNED_BY: json.dumps(facts)})


def networks_of(encoder: Encoder) -> list[EfficientNetLite]:
    """The network of an encoder, or those of one that joins several.

    Raises:
        UserError: when one of them cannot be cut into stages.
    """
    body = encoder.body
    networks = list(body.networks) if isinstance(body, SideBySide) else [body]
    if not all(isinstance(network, EfficientNetLite) for network in networks):
        raise UserError(
            f"{encoder.identity.network} cannot be tuned; choose encoder=efficientnet_lite0, "
            "efficientnet_lite1 or efficientnet_lite2, or encoder=joined of these"
        )
    return cast(list[EfficientNetLite], networks)


def _trainer(settings: TuningSettings) -> Trainer:
    return Trainer(
        accelerator=settings.accelerator,
        devices=1,
        max_epochs=settings.epochs,
        gradient_clip_val=LARGEST_GRADIENT,
        deterministic="warn",
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


def _check_readable(images: Sequence[CaptionedImage]) -> None:
    """Read every picture once: one that is damaged would end the work at any epoch of it.

    Raises:
        ImageError: the first that cannot be read.
    """
    with ThreadPoolExecutor(available_cores()) as threads:
        for _ in threads.map(lambda image: load_image(image.path).size, images):
            pass


def frequent_words(images: Sequence[CaptionedImage]) -> list[str]:
    """The words that can be learned by their looks, the most frequent first."""
    pictures = Counter(word for image in images for word in _words_of(image))
    most = LARGEST_SHARE * len(images)
    return [word for word, n in pictures.most_common() if LEAST_PICTURES <= n <= most]


def word_targets(images: Sequence[CaptionedImage], words: Sequence[str]) -> Tensor:
    """The share of each image's captions that have each word, (images, W)."""
    column = {word: number for number, word in enumerate(words)}
    targets = torch.zeros(len(images), len(words))
    for row, image in zip(targets, images, strict=True):
        for word, captions in _words_of(image).items():
            if word in column:
                row[column[word]] = captions / len(image.captions)
    return targets


def _words_of(image: CaptionedImage) -> Counter[str]:
    """How many captions of an image have each word."""
    return Counter(word for caption in image.captions for word in set(tokenize(caption)))


def _batches(
    images: Sequence[CaptionedImage],
    targets: Tensor,
    preprocessing: Preprocessing,
    *,
    seed: int | None,
) -> DataLoader[Any]:
    """Batches of (pictures (B, 3, S, S), targets (B, W)); with a seed, glimpses in random order."""
    random = np.random.default_rng(seed)
    threads = ThreadPoolExecutor(available_cores())

    def picture(number: int, draw: int) -> Tensor:
        image = load_image(images[number].path)
        if seed is None:
            return preprocessing(image)
        pixels = preprocessing.glimpse(image, np.random.default_rng(draw))
        return preprocessing.normalised(pixels)

    def gather(numbers: list[int]) -> tuple[Tensor, Tensor]:
        draws = random.integers(2**63, size=len(numbers)).tolist()  # before threads race for them
        return torch.stack(list(threads.map(picture, numbers, draws))), targets[numbers]

    order = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(
        range(len(images)),  # type: ignore[arg-type]  # a sequence is a data set
        batch_size=BATCH_SIZE,
        shuffle=seed is not None,
        drop_last=seed is not None and len(images) > BATCH_SIZE,
        generator=order,
        collate_fn=gather,
    )


class WordNamer(nn.Module):
    """The upper stages of a network, and a layer that names the words by its mean features."""

    def __init__(self, network: EfficientNetLite, frequencies: Tensor) -> None:
        super().__init__()
        self.network = network
        self.head = nn.Linear(network.conv_head.out_channels, len(frequencies))
        # Begin with how frequent each word is.
        nn.init.normal_(self.head.weight, std=0.01)
        with torch.no_grad():
            self.head.bias.copy_(torch.logit(frequencies, eps=1e-3))

    def forward(self, maps: Tensor) -> Tensor:
        """The words' logits (B, W) from the maps (B, C, Q, Q) of the frozen stages."""
        features_BD = self.network.upper(maps, FROZEN_STAGES).mean(dim=(2, 3))
        return cast(Tensor, self.head(F.dropout(features_BD, DROPOUT, self.training)))

    def train(self, mode: bool = True) -> Self:
        """Normalise as ImageNet's pictures were: batches here are small and of one kind."""
        super().train(mode)
        self.network.eval()
        return self


class WordTuner(LightningModule):
    """Trains what is above the frozen stages; ``frequencies`` (W,) are the words' mean targets."""

    def __init__(
        self,
        network: EfficientNetLite,
        preprocessing: Preprocessing,
        frequencies: Tensor,
        settings: TuningSettings,
    ) -> None:
        super().__init__()
        for part in network.upper_parts(FROZEN_STAGES):
            part.requires_grad_(True)
        self.namer = WordNamer(network, frequencies)
        self._settings = settings
        self._side = preprocessing.size
        self._rules = Optimization(
            lr=settings.lr,
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
        return cast(WordNamer, self.averaged.module).network

    def on_fit_start(self) -> None:
        """Compile the frozen stages for the device, on which the module is by now."""
        example = torch.zeros(1, 3, self._side, self._side, device=self.device)
        lower = partial(self.namer.network.lower, stages=FROZEN_STAGES)
        self._lower = frozen(lower, example)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean over the pictures of the cross-entropy of all words."""
        loss = self._loss(self.namer, batch)
        if not torch.isfinite(loss):
            raise UserError(f"the loss is {loss:.3g} at step {self.global_step}: lower --lr")
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
        trained = [p for p in self.namer.network.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": trained},
            {"params": self.namer.head.parameters(), "lr": HEAD_RATE * self._rules.lr},
        ]
        optimizer = torch.optim.Adam(groups, lr=self._rules.lr)
        steps = int(self.trainer.estimated_stepping_batches) // self._settings.epochs
        scheduler = self._rules.scheduler(
            optimizer, steps_per_epoch=steps, epochs=self._settings.epochs
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def _loss(self, namer: WordNamer, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, targets_BW = batch
        logits_BW = namer(self._lower(images))
        losses_BW = F.binary_cross_entropy_with_logits(logits_BW, targets_BW, reduction="none")
        return losses_BW.sum(dim=1).mean()
