"""Builds the objects of an experiment from its configuration, in order of dependence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn

from showtell import runs
from showtell.caption import device_for, load_run
from showtell.config import build, target_of
from showtell.data.batches import FeatureSource, SourceOfEpoch
from showtell.decoding.reranked import RerankedBeamSearch
from showtell.decoding.search import Search
from showtell.errors import UserError
from showtell.inputs import Config, caption_views, features_of, seen_features_of
from showtell.locks import open_locked
from showtell.text.glove import Coverage, WordVectors, load_vectors
from showtell.text.settings import TextSettings
from showtell.text.tokenizer import tokenize
from showtell.text.vocabulary import Vocabulary
from showtell.training.callbacks import CallbackSettings
from showtell.training.objectives import CrossEntropy, PooledFeatures, SelfCritical
from showtell.training.optimization import Optimization
from showtell.training.trainer import TrainerSettings
from showtell.training.tuning import TuningSettings, tune
from showtell.types import CaptionData, CaptionedImage, FeatureKind, Split
from showtell.vision.encoder import Encoder
from showtell.vision.extract import file_contents
from showtell.vision.features import DrawnViews, FeatureStore
from showtell.vision.finetuning import TrainableStages
from showtell.vision.images import view_names
from showtell.vision.pictures import OnTheFlyFeatures, PixelSource, check_readable
from showtell.vision.weights import is_published

Images = dict[Split, tuple[CaptionedImage, ...]]
# Images whose features are read at a time in a pass over all: with four grids of 81 x 2560 per
# image that takes 0.2 GB.
_CHUNK = 64


@dataclass(frozen=True)
class Settings:
    """The groups of a configuration that are plain settings, as typed objects."""

    text: TextSettings
    search: Search
    objective: CrossEntropy | SelfCritical
    optimization: Optimization
    trainer: TrainerSettings
    callbacks: CallbackSettings

    @classmethod
    def of(cls, config: Config) -> Settings:
        """Build them from a checked configuration."""
        return cls(
            text=_build_within_range("text", config),
            search=_build_within_range("decoding", config),
            objective=_build_within_range("objective", config),
            optimization=_build_within_range("optim", config),
            trainer=_build_within_range("trainer", config),
            callbacks=_build_within_range("callbacks", config),
        )


class Sources(NamedTuple):
    """Where a training and its validations take features, or pixels, from."""

    # Knows the content hashes of all images, and has their features unless the encoder is trained.
    store: FeatureStore
    training: SourceOfEpoch
    validation: FeatureSource


@dataclass(frozen=True)
class Parts:
    """Everything that a training needs, built from a configuration."""

    settings: Settings
    data: CaptionData
    images: Images
    encoder: Encoder
    vocabulary: Vocabulary
    vectors: WordVectors | None
    decoder: nn.Module
    sources: Sources
    learning: TrainableStages | None  # the encoder, if it is trained too
    pooled: PooledFeatures  # of the training images, in the views that decoding uses

    @property
    def store(self) -> FeatureStore:
        """The feature store of the encoder that the training starts with."""
        return self.sources.store

    @property
    def watching(self) -> OnTheFlyFeatures | None:
        """The validation source of a trained encoder; None if the encoder is frozen."""
        seen = self.sources.validation
        return seen if isinstance(seen, OnTheFlyFeatures) else None

    @property
    def model_sizes(self) -> dict[str, int]:
        """The sizes that the model takes besides its configuration; needed to rebuild it."""
        return _sizes(self.vocabulary, self.encoder, self.settings.text)

    @property
    def image_counts(self) -> dict[str, int]:
        """Number of images per split."""
        return {name: len(chosen) for name, chosen in self.images.items()}

    @property
    def caption_counts(self) -> dict[str, int]:
        """Number of captions per split."""
        return {n: sum(len(i.captions) for i in chosen) for n, chosen in self.images.items()}

    @property
    def coverage(self) -> Coverage | None:
        """Shares of the words and of the tokens that have a pre-trained vector."""
        return None if self.vectors is None else _coverage(self.vectors, self.vocabulary)


def prepare(config: Config, data: CaptionData) -> Parts:
    """Build the parts in order of dependence.

    ``data`` is what ``config["data"]`` names: reading it needs no torch, so callers do that first.
    """
    settings, seen = Settings.of(config), caption_views(config)
    learns = settings.optimization.encoder_lr is not None
    seed_everything(config["seed"], workers=True, verbose=False)
    for note in data.notes:
        print(f"note: {note}")
    images = select_images(data, settings.trainer)
    encoder: Encoder = build("encoder", config["encoder"])
    kind: FeatureKind = target_of("model", config["model"]).feature_kind
    learning = TrainableStages(encoder, kind) if learns else None
    vocabulary = Vocabulary.from_captions(
        (tokenize(caption) for image in images["train"] for caption in image.captions),
        min_count=settings.text.min_count,
    )
    settings = replace(settings, search=settings.search.with_vocabulary(vocabulary))
    vectors = _word_vectors(settings.text, vocabulary)
    decoder = _build_within_range("model", config, **_sizes(vocabulary, encoder, settings.text))
    if vectors is not None:
        decoder.embedding.load_vectors(torch.from_numpy(vectors.matrix))
    if config["start_from"] is not None:
        start_from(Path(config["start_from"]), decoder, vocabulary, encoder)
    sources = (_shown if learns else _stored)(images, encoder, kind, config, seen)
    shown = partial(seen_features_of, images["train"], sources.store, encoder, kind, config, seen)
    if isinstance(settings.search, RerankedBeamSearch) and not learns:
        search = fitted_to(images["train"], settings.search, shown(), vocabulary)
        settings = replace(settings, search=search)
    return Parts(
        settings,
        data,
        images,
        encoder,
        vocabulary,
        vectors,
        decoder,
        sources,
        learning,
        pooled=lambda: _PooledFeatures(images["train"], shown()),
    )


def fitted_to(
    images: Sequence[CaptionedImage],
    search: RerankedBeamSearch,
    seen: FeatureSource,
    vocabulary: Vocabulary,
) -> RerankedBeamSearch:
    """The search fitted to the training ``images``.

    ``seen`` has their features in the views that decoding uses.
    """
    captions = [[vocabulary.encode(tokenize(c)) for c in image.captions] for image in images]
    return search.fitted(captions, _PooledFeatures(images, seen))


@dataclass(frozen=True, slots=True)
class _PooledFeatures:
    """Iterates over pooled features of the images, in order, in chunks (at most `_CHUNK`, D).

    Grid features are averaged over their regions. It can be iterated over repeatedly.
    """

    images: Sequence[CaptionedImage]
    seen: FeatureSource

    def __iter__(self) -> Iterator[Tensor]:
        for first in range(0, len(self.images), _CHUNK):
            yield self._pooled(self.images[first : first + _CHUNK])

    def _pooled(self, images: Sequence[CaptionedImage]) -> Tensor:
        # A function of its own, which frees the grids before the next ones are read.
        ids = [image.image_id for image in images]
        features = torch.from_numpy(self.seen.gather(self.seen.index(ids))).float()
        return features.mean(dim=1) if features.dim() == 3 else features


def _stored(
    images: Images, encoder: Encoder, kind: FeatureKind, config: Config, seen: Sequence[str]
) -> Sources:
    """Sources of features that are computed once, before the training."""
    store = features_of([*images["train"], *images["val"]], encoder, kind, config)
    others = [
        features_of(images["train"], encoder, kind, config, view=name)
        for name in view_names(config["trainer"]["views"])[1:]
    ]
    return Sources(
        store,
        training=partial(DrawnViews, [store, *others], config["seed"]),
        validation=seen_features_of(images["val"], store, encoder, kind, config, seen),
    )


def _shown(
    images: Images, encoder: Encoder, kind: FeatureKind, config: Config, seen: Sequence[str]
) -> Sources:
    """Sources for an encoder that is trained too: pixels, or features computed on the fly."""
    used = [*images["train"], *images["val"]]
    check_readable(used)
    store = FeatureStore.open(Path(config["features"]["root"]), encoder.identity, kind)
    return Sources(
        store.select(file_contents([(image.image_id, image.path) for image in used])),
        training=partial(PixelSource, images["train"], encoder.preprocessing, config["seed"]),
        validation=OnTheFlyFeatures(
            images["val"],
            kind,
            views=seen,
            batch_size=config["features"]["batch_size"],
            device=_this_device(config["trainer"]["accelerator"]),
        ),
    )


def _this_device(accelerator: str) -> torch.device:
    """The device of this process with its index: other threads would default to the first GPU."""
    device = device_for(accelerator)
    on_gpu = device.type == "cuda"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else device


def tune_encoder(
    config: Config, data: CaptionData, output: Path, *, epochs: int, lr: float, phrases: int
) -> None:
    """Tune the configured encoder to the captions of ``data``, and write its weights.

    Of ``config`` only the encoder, the seed and the trainer's accelerator and image limit are used.

    Raises:
        UserError: for a network or captions that cannot be tuned, a setting out of range, or an
            ``output`` that another process is tuning.
    """
    for note in data.notes:
        print(f"note: {note}")
    images = select_images(data, Settings.of(config).trainer)
    accelerator = config["trainer"]["accelerator"]
    device_for(accelerator)  # raises if it is not available
    try:
        settings = TuningSettings(epochs, lr, config["seed"], accelerator, phrases)
    except ValueError as error:
        raise UserError(f"showtell tune: {error}") from error
    file = output.with_suffix(".lock")
    lock = open_locked(file)
    if lock is None:
        raise UserError(f"{output} is being tuned by another process: name another --output")
    with lock:
        try:
            encoder = build("encoder", config["encoder"])
            given = config["encoder"]["weights"]
            is_own = given is not None and not is_published(Path(given))
            began_with = Path(given).name if is_own else None
            tune(encoder, images["train"], images["val"], output, settings, began_with)
        finally:
            file.unlink(missing_ok=True)


def start_from(folder: Path, decoder: nn.Module, vocabulary: Vocabulary, encoder: Encoder) -> None:
    """Load the best weights of the run in ``folder`` into ``decoder``.

    Raises:
        UserError: the run has another vocabulary, encoder or model.
    """
    run = load_run(folder, accelerator="cpu")  # only its weights are needed
    asked = f"start_from={folder}: the run has"
    own = runs.encoder_weights(run.folder)
    if run.vocabulary.tokens != vocabulary.tokens:
        raise UserError(f"{asked} other words; train on the captions and with the text of its own")
    identity = run.record["encoder"]["identity"]
    if identity != encoder.identity.to_json():
        weights = "" if own is None else f", and encoder.weights={own}"
        raise UserError(
            f"{asked} another encoder than {encoder.identity.key}; choose {identity['network']} as "
            f"it was trained with{weights}"
        )
    try:
        decoder.load_state_dict(run.decoder.state_dict())
    except RuntimeError as error:
        was = type(run.decoder).__name__
        raise UserError(
            f"{asked} a {was} of other sizes or kind than this {type(decoder).__name__}; choose "
            "the same model"
        ) from error


def select_images(data: CaptionData, settings: TrainerSettings) -> Images:
    """The images of each split that a run uses; raises UserError without train or val images."""
    images: Images = {name: data.split(name)[: settings.limit_images] for name in data.splits}
    if "train" not in images:
        raise UserError(f"{data.name} has no training images; add a train split to train on it")
    if settings.validate_on_train:
        return {"train": images["train"], "val": images["train"]}
    if "val" not in images:
        raise UserError(
            f"{data.name} has no validation images, which select the best weights; "
            "add a val split, or set trainer.validate_on_train=true to look only at learning"
        )
    return images


def _build_within_range(group: str, config: Config, **injected: Any) -> Any:
    """Build the object of a group; a value out of its range raises UserError."""
    try:
        return build(group, config[group], **injected)
    except (ValueError, RuntimeError) as error:  # PyTorch raises RuntimeError for sizes below 1
        raise UserError(f"{group}: {error}") from error


def _word_vectors(text: TextSettings, vocabulary: Vocabulary) -> WordVectors | None:
    if text.vectors is None:
        return None
    vectors = load_vectors(text.vectors, vocabulary.words, width=text.vector_width)
    print(f"note: {_coverage(vectors, vocabulary)}")
    if vectors.rejected:
        first = vectors.rejected[0]
        print(
            f"note: {len(vectors.rejected)} rows unused, the first at {first.where}: {first.reason}"
        )
    return vectors


def _coverage(vectors: WordVectors, vocabulary: Vocabulary) -> Coverage:
    return vectors.coverage(dict(zip(vocabulary.words, vocabulary.counts, strict=True)))


def _sizes(vocabulary: Vocabulary, encoder: Encoder, text: TextSettings) -> dict[str, int]:
    return {
        "vocabulary_size": len(vocabulary),
        "feature_size": encoder.identity.size,
        "vector_width": text.vector_width,
    }
