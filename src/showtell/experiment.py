"""A run from start to scores: training, resuming, and the files that describe it."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml
from lightning.pytorch import Trainer

from showtell import runs
from showtell.caption import Run, keep_expected, load_run
from showtell.config import build
from showtell.cpu_matmul import use_onednn_matmul
from showtell.data.batches import FeatureSource
from showtell.data.datamodule import CaptionDataModule
from showtell.data.records import evenly_spaced
from showtell.errors import UserError
from showtell.evaluation import (
    SAMPLED_IMAGES,
    Evaluation,
    changed_files,
    sampled_feature_alarms,
    score_split,
)
from showtell.files import write_atomically
from showtell.inputs import Config, features_of, seen_features_of
from showtell.locks import open_locked
from showtell.memory import keep_freed_memory
from showtell.metrics.alarms import (
    Alarm,
    coverage_alarms,
    shared_images_alarms,
)
from showtell.metrics.scores import final_metrics
from showtell.parts import Parts, Settings, prepare
from showtell.tables import print_alarms, print_scores
from showtell.text.vocabulary import Vocabulary
from showtell.tracking import BEST_CAPTIONS, CaptionRow, Tracker
from showtell.training import ranks
from showtell.training.alarms import CollapseAlarms, raise_alarms
from showtell.training.checkpoints import AtomicCheckpointIO
from showtell.training.examples import EpochExamples
from showtell.training.module import CaptioningModule
from showtell.training.pruning import trial_callbacks
from showtell.training.trainer import TrainerSettings
from showtell.training.validation import GeneratedCaptions
from showtell.types import SPLITS, CaptionData, CaptionedImage, Split
from showtell.vision.features import FeatureStore
from showtell.vision.weights import is_published

# Scored after every epoch; METEOR and the rest only at the end of the run and by `evaluate`.
EPOCH_METRICS = ("BLEU", "CIDEr")
SHOWN_IMAGES = 32


def train(config: Config, data: CaptionData) -> Path:
    """Train a new run on ``data`` as the checked ``config`` says; return its folder.

    Raises:
        UserError: for any mistake that the user can fix; a run that had begun is marked failed.
    """
    with _in_process_group(config):
        ranks.from_first(lambda: _check_folder(config))
        parts = prepare(config, data)
        folder = ranks.from_first(lambda: _begin(config, parts))
        with _exclusive(folder):
            _run(config, parts, folder, checkpoint=None)
        return folder


def resume(folder: Path, config: Config, data: CaptionData) -> Path:
    """Resume the run in ``folder`` exactly at its last checkpoint.

    Raises:
        UserError: there is nothing to resume, or the data are not those it started with.
    """
    with _in_process_group(config):
        runs.read_record(folder)  # the lock below would create a missing folder
        with _exclusive(folder):
            ranks.from_first(lambda: _check_resumable(folder, config))
            # The run has a copy of its encoder's weights, whose file may be gone; and it needs no
            # start_from any more.
            own = runs.encoder_weights(folder)
            weights = config["encoder"]["weights"] if own is None else str(own)
            encoder = {**config["encoder"], "weights": weights}
            parts = prepare({**config, "start_from": None, "encoder": encoder}, data)
            ranks.from_first(lambda: _reopen(folder, config, parts))
            _run(config, parts, folder, checkpoint=folder / runs.LAST_CHECKPOINT)
        return folder


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Lock a run against other trainings, such as those of a sweep that is started twice.

    Raises:
        UserError: another process is training it, or its vocabulary is missing.
    """
    if ranks.rank() > 0:  # rank 0 holds the lock for all
        yield
        return
    words = folder / runs.VOCABULARY  # written once, before the training
    if not words.is_file():
        raise UserError(f"{words} is missing: restore it from a copy, or start the run anew")
    lock = open_locked(words)
    if lock is None:
        raise UserError(
            f"{folder} is being trained by another process: wait for its end, or end it and resume"
        )
    with lock:
        yield


def _in_process_group(config: Config) -> AbstractContextManager[None]:
    """A context in which this process has joined the others that the configuration asks for."""
    trainer: TrainerSettings = Settings.of(config).trainer
    trainer.check_precision()
    return ranks.joined_process_group(trainer.processes, on_gpus=trainer.uses_gpu)


def _begin(config: Config, parts: Parts) -> Path:
    """Make and describe the folder of a new run, and raise alarms about its inputs."""
    folder = _new_folder(config)
    _describe(folder, config, parts)
    raise_alarms(folder, _input_alarms(config, parts), when="before the training")
    return folder


def _check_resumable(folder: Path, config: Config) -> None:
    """Refuse a run that has no checkpoint or nothing left to do."""
    record = runs.read_record(folder, needs=["data"])
    checkpoint = folder / runs.LAST_CHECKPOINT
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint} is missing: there is nothing to resume; start the run anew")
    saved = runs.read_config(folder)
    if record.get("status") == "finished" and not _allows_more(config, saved):
        raise UserError(
            f"{folder} has finished: raise trainer.max_epochs to train on, or callbacks.patience "
            "where it stopped early"
        )


def _reopen(folder: Path, config: Config, parts: Parts) -> None:
    """Check that a run can be resumed with these ``parts``, and remove results that may change."""
    _check_same_input(folder, runs.read_record(folder), parts)
    _write_config(folder, config)
    _keep_expected(folder, config, parts)  # as fitted on this machine, which validates with it
    _remove_results(folder)


def _input_alarms(config: Config, parts: Parts) -> Iterator[Alarm]:
    """Alarms about features, word vectors and splits, before the training."""
    training, validation = parts.images["train"], parts.images["val"]
    sample = evenly_spaced(training, SAMPLED_IMAGES)
    store = parts.store
    if parts.learning is not None:  # nothing is stored yet
        store = features_of(sample, parts.encoder, store.kind, config)
    yield from sampled_feature_alarms(sample, store)
    if parts.coverage is not None and parts.coverage.tokens is not None:
        yield from coverage_alarms(parts.coverage.tokens, parts.coverage.missing)
    if not parts.settings.trainer.validate_on_train:
        yield from shared_images_alarms(
            {image.image_id: image.captions for image in training},
            {image.image_id: image.captions for image in validation},
            contents=parts.store.contents,
        )


def _allows_more(config: Config, saved: Config) -> bool:
    """Whether a finished training may go further under ``config`` than under its ``saved`` one."""
    longer = config["trainer"]["max_epochs"] > saved["trainer"]["max_epochs"]
    return bool(longer or config["callbacks"]["patience"] != saved["callbacks"]["patience"])


def _run(config: Config, parts: Parts, folder: Path, *, checkpoint: Path | None) -> None:
    """Train, then score the best weights on the validation split."""
    if ranks.rank() > 0:  # only rank 0 writes and prints
        _fit(config, parts, folder, None, checkpoint)
        return
    split: Split = "train" if parts.settings.trainer.validate_on_train else "val"
    with _recorded(config, folder) as tracker:
        with _timed(folder):
            trainer = _fit(config, parts, folder, tracker, checkpoint)
        images = parts.images
        run = load_run(folder, accelerator=config["trainer"]["accelerator"])
        store, seen = _seen_at_the_end(config, parts, run)
        found = score_split(
            run,
            images["val"],
            split,
            store,
            images["train"],
            seen=seen,
            metrics=final_metrics(),
            with_yardsticks=False,
        )
        tracker.log_captions(
            BEST_CAPTIONS,
            _rows(images["val"], found),
            step=trainer.global_step - 1,
            epoch=trainer.current_epoch - 1,
        )
        tracker.summarize({f"best/{name}": value for name, value in found.scores.scores.items()})
        tracker.log_captioner(
            {file.as_posix(): folder / file for file in runs.captioner_files(folder)}
        )
        print_scores(f"{parts.data.name} {split}, {len(found.captions)} images", found.scores)
        print_alarms(found.alarms)


def _seen_at_the_end(config: Config, parts: Parts, run: Run) -> tuple[FeatureStore, FeatureSource]:
    """Features of the validation images by the encoder that was saved with the best weights."""
    if parts.learning is None:
        return parts.store, parts.sources.validation
    images = parts.images["val"]
    store = features_of(images, run.encoder, run.feature_kind, config)
    seen = seen_features_of(images, store, run.encoder, run.feature_kind, config, run.views)
    return store.select(parts.store.contents), seen


@contextmanager
def _timed(folder: Path) -> Iterator[None]:
    """Add the duration of the block to ``training_seconds`` of ``run.json``.

    A killed process adds nothing.
    """
    began = perf_counter()
    try:
        yield
    finally:
        spent = runs.read_record(folder).get("training_seconds", 0.0) + perf_counter() - began
        runs.update_record(folder, training_seconds=round(spent, 1))


@contextmanager
def _recorded(config: Config, folder: Path) -> Iterator[Tracker]:
    """A tracker for the block; ``run.json`` and the tracker record how it ended."""
    record = runs.update_record(folder, status="running")
    status = "failed"
    try:
        with build(
            "tracking", config["tracking"], run_folder=folder, config=dict(config), origin=record
        ) as tracker:
            yield tracker
        status = "finished"
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
        status = "interrupted"
        if (folder / runs.LAST_CHECKPOINT).is_file():
            command = shlex.join(("python", "train.py", f"resume={folder}"))
            print(f"interrupted; go on with: {command}", file=sys.stderr)
        raise
    finally:
        runs.update_record(folder, status=status)


def _rows(images: Sequence[CaptionedImage], found: Evaluation) -> list[CaptionRow]:
    """Rows of evenly spaced images, the same ones for every run on this split."""
    return [
        CaptionRow(
            image=image.path,
            caption=found.captions[image.image_id],
            references=image.captions,
            scores=found.scores.per_image[image.image_id],
        )
        for image in evenly_spaced(images, SHOWN_IMAGES)
    ]


def _fit(
    config: Config, parts: Parts, folder: Path, tracker: Tracker | None, checkpoint: Path | None
) -> Trainer:
    """Train to the end, from the start or from ``checkpoint``; return the trainer.

    ``tracker`` is None on all ranks but 0.
    """
    use_onednn_matmul()
    settings = parts.settings
    datamodule = CaptionDataModule(
        parts.images,
        parts.store,
        parts.vocabulary,
        batch_size=settings.trainer.batch_size,
        seed=config["seed"],
        training=parts.sources.training,
        validation=parts.sources.validation,
        limit_batches=settings.trainer.limit_batches,
        rank=ranks.rank(),
        world_size=ranks.world_size(),
        pinned=settings.trainer.uses_gpu,
    )
    references = {image.image_id: image.captions for image in parts.images["val"]}
    generated = GeneratedCaptions(
        references,
        parts.vocabulary,
        max_length=settings.search.max_length,
        metrics=EPOCH_METRICS,
    )
    module = CaptioningModule(
        parts.decoder,
        settings.search,
        generated,
        objective=settings.objective.on(parts.images["train"], parts.vocabulary, parts.pooled),
        optimization=settings.optimization,
        text=settings.text,
        steps_per_epoch=len(datamodule.train_batches),
        max_epochs=settings.trainer.max_epochs,
        encoder=parts.learning,
        validation=parts.watching,
    )
    alarms = CollapseAlarms(
        folder,
        references,
        max_length=settings.search.max_length,
        trained_on_validation=settings.trainer.validate_on_train,
    )
    trainer: Trainer = settings.trainer.build(
        folder,
        callbacks=[
            alarms,
            *([] if tracker is None else [EpochExamples(tracker, parts.images["val"])]),
            *trial_callbacks(config.get("search", {}), folder, monitor=settings.callbacks.monitor),
            *settings.callbacks.build(folder),
        ],
        loggers=[] if tracker is None else tracker.loggers,
        gradient_clip=settings.optimization.gradient_clip,
    )
    if checkpoint is not None and tracker is not None:
        tracker.rewind(AtomicCheckpointIO().load_checkpoint(checkpoint)["global_step"])
    # Not before the objective is made: some read the features of all images for that, in blocks of
    # changing sizes, for which glibc took 19.8 GB in place of 2.6 (docs/performance.md).
    keep_freed_memory()
    with ranks.delayed_errors():
        trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
    ranks.leave_process_group()
    return trainer


def _check_same_input(folder: Path, record: Mapping[str, Any], parts: Parts) -> None:
    """Raise UserError unless captions, images and encoder are those that the run started with."""
    same_words = Vocabulary.load(folder / runs.VOCABULARY).tokens == parts.vocabulary.tokens
    same_images = record["data"]["images"] == parts.image_counts
    changed = changed_files(record, parts.data)
    if changed or not (same_words and same_images):
        what = changed[0] if changed else "there are other images or captions now"
        raise UserError(
            f"{folder} cannot go on: {what}; restore the data set it began with, point data.root "
            "at a copy, or start a new run"
        )
    if record["data"]["images_sha256"] != parts.store.images_sha256:
        raise UserError(
            f"{folder} cannot go on: the pictures are not those it began with; restore them, point "
            "data.root at a copy, or start a new run"
        )
    identity, now = record["encoder"]["identity"], parts.encoder.identity.to_json()
    if parts.learning is not None:  # the checkpoint has its weights
        identity, now = ({**each, "weights": None} for each in (identity, now))
    if identity != now:
        raise UserError(
            f"{folder} cannot go on: {parts.encoder.identity.key} is another encoder than the one "
            "it began with; install the weights it was trained with, or start a new run"
        )


def _remove_results(folder: Path) -> None:
    """Remove scores and reports, because they are of the best weights so far, which may change."""
    for pattern in ("captions-*.json", "scores-*.json", "statistics-*.safetensors", "report.html"):
        for file in folder.glob(pattern):
            file.unlink()
    for split in SPLITS:
        runs.write_alarms(folder, split, [])


def _check_folder(config: Config) -> None:
    """Refuse an output folder that exists, before minutes are spent on features."""
    folder = config["output"]["folder"]
    if folder is not None and Path(folder).exists():
        raise UserError(f"output.folder={folder} exists; name another, or remove it")


def _new_folder(config: Config) -> Path:
    output = config["output"]
    if output["folder"] is not None:
        return runs.claim_folder(Path(output["folder"]))
    return runs.create_run_folder(Path(output["root"]), config["name"])


def _keep_expected(folder: Path, config: Config, parts: Parts) -> None:
    seen = {"encoder": {"identity": parts.encoder.identity.to_json()}, "views": config["views"]}
    keep_expected(folder, parts.settings.search, seen, parts.vocabulary)


def _describe(folder: Path, config: Config, parts: Parts) -> None:
    """Write the files that a run folder has before the first training step."""
    parts.vocabulary.save(folder / runs.VOCABULARY)
    _write_config(folder, config)
    _keep_expected(folder, config, parts)
    weights = Path(config["encoder"]["weights"] or "")
    if weights.is_file() and not is_published(weights):  # others may not have them
        runs.keep_encoder_weights(folder, weights)
    record = {
        "format": runs.FORMAT,
        "status": "prepared",
        **runs.describe_origin(),
        "seed": config["seed"],
        "data": {
            "name": parts.data.name,
            "origin": parts.data.origin,
            "images": parts.image_counts,
            "captions": parts.caption_counts,
            "images_sha256": parts.store.images_sha256,
        },
        "encoder": {
            "weights": config["encoder"]["weights"],
            "identity": parts.encoder.identity.to_json(),
            **({} if parts.learning is None else {runs.BEGAN_WITH: parts.encoder.identity.weights}),
        },
        "text": {**config["text"], **_described_vectors(parts)},
        "start": _described_start(config["start_from"]),
        "model": config["model"],
        "model_sizes": parts.model_sizes,
        "decoding": config["decoding"],
        "views": config["views"],
    }
    runs.write_json(folder / runs.RECORD, record)


def _described_start(folder: str | None) -> dict[str, Any] | None:
    """The run that this one starts from: name, hash of its weights, configuration."""
    if folder is None:
        return None
    run = runs.locate(folder)
    sha256 = hashlib.sha256((run / runs.BEST_WEIGHTS).read_bytes()).hexdigest()
    return {"run": run.name, "weights_sha256": sha256, "config": runs.read_config(run)}


def _write_config(folder: Path, config: Config) -> None:
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    write_atomically(folder / runs.CONFIG, text.encode())


def _described_vectors(parts: Parts) -> dict[str, Any]:
    """The hash of the pre-trained word vectors, and their coverage of the captions."""
    if parts.vectors is None or parts.coverage is None:
        return {}
    shares = {"words": parts.coverage.words, "tokens": parts.coverage.tokens}
    return {"vectors_sha256": parts.vectors.sha256, "coverage": shares}
