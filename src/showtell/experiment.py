"""From a configuration to a trained, scored run folder: the steps in their order."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from showtell import runs
from showtell.caption import Run, device_for, load_run
from showtell.config import build, target_of
from showtell.data.datamodule import CaptionDataModule
from showtell.decoding.beam import BeamSearch
from showtell.errors import UserError
from showtell.files import write_atomically
from showtell.metrics.scores import CaptionScores, score_captions
from showtell.text.glove import WordVectors, load_vectors
from showtell.text.settings import TextSettings
from showtell.text.tokenizer import tokenize
from showtell.text.vocabulary import Vocabulary
from showtell.tracking import CaptionRow, Tracker
from showtell.training.callbacks import CallbackSettings
from showtell.training.checkpoints import AtomicCheckpointIO
from showtell.training.module import CaptioningModule
from showtell.training.optimization import Optimization
from showtell.training.trainer import TrainerSettings
from showtell.training.validation import GeneratedCaptions
from showtell.types import CaptionData, CaptionedImage, FeatureKind, Split
from showtell.vision.encoder import Encoder
from showtell.vision.extract import ensure_features
from showtell.vision.features import FeatureStore

Config = Mapping[str, Any]
Images = dict[Split, tuple[CaptionedImage, ...]]

# Scored after every epoch; METEOR and the rest wait for the end of the run and for `evaluate`.
EPOCH_METRICS = ("BLEU", "CIDEr")
DECODING_BATCH = 250
SHOWN_IMAGES = 32


@dataclass(frozen=True)
class Settings:
    """The groups of a configuration that are plain settings, as typed objects."""

    text: TextSettings
    search: BeamSearch
    optimization: Optimization
    trainer: TrainerSettings
    callbacks: CallbackSettings

    @classmethod
    def of(cls, config: Config) -> Settings:
        """Built from a checked configuration."""
        return cls(
            text=_build_within_range("text", config),
            search=_build_within_range("decoding", config),
            optimization=_build_within_range("optim", config),
            trainer=_build_within_range("trainer", config),
            callbacks=_build_within_range("callbacks", config),
        )


@dataclass(frozen=True)
class Parts:
    """Everything a training is made of, built from a configuration."""

    settings: Settings
    data: CaptionData
    images: Images
    encoder: Encoder
    vocabulary: Vocabulary
    vectors: WordVectors | None
    decoder: nn.Module
    store: FeatureStore


def train(config: Config) -> Path:
    """Train a new run as the checked ``config`` says; return its folder.

    Raises:
        UserError: for whatever the user can mend; a run that had begun is marked failed.
    """
    _check_folder(config)
    parts = prepare(config)
    folder = _new_folder(config)
    _describe(folder, config, parts)
    _run(config, parts, folder, checkpoint=None)
    return folder


def resume(folder: Path, config: Config) -> Path:
    """Continue the run in ``folder`` exactly where its last checkpoint left it.

    Raises:
        UserError: when there is nothing to continue, or the data are not those it began with.
    """
    record = runs.read_record(folder, needs=["data"])
    checkpoint = folder / runs.LAST_CHECKPOINT
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint} is missing: there is nothing to resume; start the run anew")
    saved = yaml.safe_load((folder / runs.CONFIG).read_text())
    if record.get("status") == "finished" and not _allows_more(config, saved):
        raise UserError(
            f"{folder} has finished: raise trainer.max_epochs to train on, or callbacks.patience "
            "where it stopped early"
        )
    parts = prepare(config)
    _check_same_data(folder, record, parts)
    _write_config(folder, config)
    _run(config, parts, folder, checkpoint=checkpoint)
    return folder


def _allows_more(config: Config, saved: Config) -> bool:
    """Whether a finished training may go further under ``config`` than under its ``saved`` one."""
    longer = config["trainer"]["max_epochs"] > saved["trainer"]["max_epochs"]
    return longer or config["callbacks"]["patience"] != saved["callbacks"]["patience"]


def evaluate(folder: Path, split: Split, config: Config) -> CaptionScores:
    """Score the best weights of the run in ``folder`` on a split; write and print the scores.

    Raises:
        UserError: when the data set lacks the split, or the run cannot be loaded.
    """
    run = load_run(folder)
    data: CaptionData = build("data", config["data"])
    images = data.split(split)
    if not images:
        raise UserError(f"{data.name} has no {split} images; it has {', '.join(data.splits)}")
    for note in (*data.notes, *_changed(run.record, data)):
        print(f"note: {note}")
    store = features_of(images, run.encoder, run.feature_kind, config)
    scores, _ = score_split(run, images, split, store)
    print_scores(f"{data.name} {split}, {len(images)} images", scores)
    return scores


def extract(config: Config) -> Path:
    """Fill the feature store with what the configured model reads; return its folder."""
    data: CaptionData = build("data", config["data"])
    encoder: Encoder = build("encoder", config["encoder"])
    kind = target_of("model", config["model"]).feature_kind
    return features_of(data.images, encoder, kind, config).folder


def prepare(config: Config) -> Parts:
    """Build the parts in the order in which they depend on each other."""
    settings = Settings.of(config)
    seed_everything(config["seed"], workers=True, verbose=False)
    data: CaptionData = build("data", config["data"])
    for note in data.notes:
        print(f"note: {note}")
    images = select_images(data, settings.trainer)
    encoder: Encoder = build("encoder", config["encoder"])
    vocabulary = Vocabulary.from_captions(
        (tokenize(caption) for image in images["train"] for caption in image.captions),
        min_count=settings.text.min_count,
    )
    vectors = _word_vectors(settings.text, vocabulary)
    decoder = _build_within_range("model", config, **_sizes(vocabulary, encoder, settings.text))
    if vectors is not None:
        decoder.embedding.load_vectors(torch.from_numpy(vectors.matrix))
    used = [*images["train"], *images["val"]]
    store = features_of(used, encoder, decoder.feature_kind, config)
    return Parts(settings, data, images, encoder, vocabulary, vectors, decoder, store)


def select_images(data: CaptionData, settings: TrainerSettings) -> Images:
    """The images of each split that this run uses; training and validation must have some."""
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


def features_of(
    images: Iterable[CaptionedImage], encoder: Encoder, kind: FeatureKind, config: Config
) -> FeatureStore:
    """The stored features of ``images``; those not yet stored are made first."""
    stores = ensure_features(
        [(image.image_id, image.path) for image in images],
        encoder,
        [kind],
        root=Path(config["features"]["root"]),
        batch_size=config["features"]["batch_size"],
        device=device_for(config["trainer"]["accelerator"]),
        progress=True,
    )
    return stores[kind]


def score_split(
    run: Run, images: Sequence[CaptionedImage], split: Split, store: FeatureStore
) -> tuple[CaptionScores, dict[str, str]]:
    """Caption every image of a split once, score all, and write both files into the run folder."""
    captions = _write_captions(run, images, store)
    references = {image.image_id: image.captions for image in images}
    scores = score_captions(captions, references)
    runs.write_json(
        run.folder / f"captions-{split}.json",
        [{"image_id": image_id, "caption": caption} for image_id, caption in captions.items()],
    )
    runs.write_json(run.folder / f"scores-{split}.json", scores.to_json())
    return scores, captions


def _write_captions(
    run: Run, images: Sequence[CaptionedImage], store: FeatureStore
) -> dict[str, str]:
    """One caption per image, decoded in batches."""
    captions: dict[str, str] = {}
    for first in range(0, len(images), DECODING_BATCH):
        image_ids = [image.image_id for image in images[first : first + DECODING_BATCH]]
        features = torch.from_numpy(store.gather(store.index(image_ids))).float()
        captions.update(zip(image_ids, run.write(features), strict=True))
    return captions


def print_scores(title: str, scores: CaptionScores) -> None:
    """A table of corpus scores for people, times 100 as papers print them."""
    table = Table(title=f"{title}, scores x 100", box=SIMPLE_HEAD, title_justify="left")
    for name in scores.scores:
        table.add_column(name, justify="right")
    table.add_row(*(f"{100 * value:.1f}" for value in scores.scores.values()))
    console = Console()
    console.print(table)
    for name, remedy in scores.skipped.items():
        console.print(f"{name} was skipped: {remedy}", highlight=False)


def _run(config: Config, parts: Parts, folder: Path, *, checkpoint: Path | None) -> None:
    """Fit, then score the best weights on the validation split."""
    with _recorded(config, folder) as tracker:
        step = _fit(config, parts, folder, tracker, checkpoint)
        scores, captions = score_split(load_run(folder), parts.images["val"], "val", parts.store)
        tracker.log_captions(step, _rows(parts.images["val"], captions, scores))
        tracker.summarize({f"best/{name}": value for name, value in scores.scores.items()})
        print_scores(f"{parts.data.name} val, {len(captions)} images", scores)


@contextmanager
def _recorded(config: Config, folder: Path) -> Iterator[Tracker]:
    """A tracker for what is done inside; ``run.json`` and the dashboard tell how it ended."""
    record = runs.update_record(folder, status="running")
    status = "failed"
    try:
        with build(
            "tracking", config["tracking"], run_folder=folder, config=dict(config), origin=record
        ) as tracker:
            yield tracker
        status = "finished"
    except (KeyboardInterrupt, SystemExit):  # Lightning makes the second of the first
        status = "interrupted"
        if (folder / runs.LAST_CHECKPOINT).is_file():
            print(f"interrupted; go on with resume={folder}", file=sys.stderr)
        raise
    finally:
        runs.update_record(folder, status=status)


def _rows(
    images: Sequence[CaptionedImage], captions: Mapping[str, str], scores: CaptionScores
) -> list[CaptionRow]:
    """A table of evenly spaced images: the same ones for every run on this split."""
    shown = images[:: max(1, len(images) // SHOWN_IMAGES)][:SHOWN_IMAGES]
    return [
        CaptionRow(
            image=image.path,
            caption=captions[image.image_id],
            references=image.captions,
            scores=scores.per_image[image.image_id],
        )
        for image in shown
    ]


def _fit(
    config: Config, parts: Parts, folder: Path, tracker: Tracker, checkpoint: Path | None
) -> int:
    """Train to the end, or on from ``checkpoint``; return the number of optimizer steps."""
    settings = parts.settings
    datamodule = CaptionDataModule(
        parts.images,
        parts.store,
        parts.vocabulary,
        batch_size=settings.trainer.batch_size,
        seed=config["seed"],
    )
    generated = GeneratedCaptions(
        {image.image_id: image.captions for image in parts.images["val"]},
        parts.vocabulary,
        max_length=settings.search.max_length,
        metrics=EPOCH_METRICS,
    )
    module = CaptioningModule(
        parts.decoder,
        settings.search,
        generated,
        optimization=settings.optimization,
        text=settings.text,
        steps_per_epoch=settings.trainer.steps_per_epoch(len(datamodule.train_batches)),
        max_epochs=settings.trainer.max_epochs,
    )
    trainer: Trainer = settings.trainer.build(
        folder,
        callbacks=settings.callbacks.build(folder),
        loggers=tracker.loggers,
        gradient_clip=settings.optimization.gradient_clip,
    )
    if checkpoint is not None:
        tracker.rewind(AtomicCheckpointIO().load_checkpoint(checkpoint)["global_step"])
    trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
    return trainer.global_step


def _build_within_range(group: str, config: Config, **injected: Any) -> Any:
    """The object of a group; values of the right type may still be out of their range."""
    try:
        return build(group, config[group], **injected)
    except (ValueError, RuntimeError) as error:  # the second is PyTorch's of sizes below 1
        raise UserError(f"{group}: {error}") from error


def _word_vectors(text: TextSettings, vocabulary: Vocabulary) -> WordVectors | None:
    if text.vectors is None:
        return None
    vectors = load_vectors(text.vectors, vocabulary.words, width=text.vector_width)
    print(f"note: {vectors.coverage(_counts(vocabulary))}")
    return vectors


def _sizes(vocabulary: Vocabulary, encoder: Encoder, text: TextSettings) -> dict[str, int]:
    return {
        "vocabulary_size": len(vocabulary),
        "feature_size": encoder.identity.size,
        "vector_width": text.vector_width,
    }


def _check_same_data(folder: Path, record: Mapping[str, Any], parts: Parts) -> None:
    """A resumed run must read the captions and the images it began with."""
    same_words = Vocabulary.load(folder / runs.VOCABULARY).tokens == parts.vocabulary.tokens
    same_images = record["data"]["images"] == _image_counts(parts.images)
    changed = _changed(record, parts.data)
    if changed or not (same_words and same_images):
        what = changed[0] if changed else "there are other images or captions now"
        raise UserError(
            f"{folder} cannot go on: {what}; restore the data set it began with, point data.root "
            "at a copy, or start a new run"
        )


def _changed(record: Mapping[str, Any], data: CaptionData) -> list[str]:
    """A sentence for each text file that is not as it was when the run was trained."""
    before: dict[str, str] = record["data"]["origin"]
    return [
        f"{name} is not the file this run was trained with"
        for name, checksum in data.origin.items()
        if before.get(name, checksum) != checksum
    ]


def _check_folder(config: Config) -> None:
    """Refuse a folder that is taken before minutes are spent on features."""
    folder = config["output"]["folder"]
    if folder is not None and Path(folder).exists():
        raise UserError(f"output.folder={folder} exists; name another, or remove it")


def _new_folder(config: Config) -> Path:
    output = config["output"]
    if output["folder"] is not None:
        return runs.claim_folder(Path(output["folder"]))
    return runs.create_run_folder(Path(output["root"]), config["name"])


def _describe(folder: Path, config: Config, parts: Parts) -> None:
    """Write what a run folder holds before its first step."""
    parts.vocabulary.save(folder / runs.VOCABULARY)
    _write_config(folder, config)
    record = {
        "format": runs.FORMAT,
        "status": "prepared",
        **runs.describe_origin(),
        "seed": config["seed"],
        "data": {
            "name": parts.data.name,
            "origin": parts.data.origin,
            "images": _image_counts(parts.images),
            "captions": {
                name: sum(len(image.captions) for image in images)
                for name, images in parts.images.items()
            },
        },
        "encoder": {
            "weights": config["encoder"]["weights"],
            "identity": parts.encoder.identity.to_json(),
        },
        "text": {**config["text"], "coverage": _coverage(parts)},
        "model": config["model"],
        "model_sizes": _sizes(parts.vocabulary, parts.encoder, parts.settings.text),
        "decoding": config["decoding"],
    }
    runs.write_json(folder / runs.RECORD, record)


def _write_config(folder: Path, config: Config) -> None:
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    write_atomically(folder / runs.CONFIG, text.encode())


def _image_counts(images: Images) -> dict[str, int]:
    return {name: len(chosen) for name, chosen in images.items()}


def _counts(vocabulary: Vocabulary) -> dict[str, int]:
    return dict(zip(vocabulary.words, vocabulary.counts, strict=True))


def _coverage(parts: Parts) -> dict[str, float | None] | None:
    """Shares of the words and of their occurrences that have a pre-trained vector."""
    if parts.vectors is None:
        return None
    coverage = parts.vectors.coverage(_counts(parts.vocabulary))
    return {"words": coverage.words, "tokens": coverage.tokens}
