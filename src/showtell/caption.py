"""Captions new images with a trained run; no data set needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from showtell import runs
from showtell.config import build, check_node
from showtell.cpu_matmul import use_onednn_matmul
from showtell.data.image_folders import is_image_name
from showtell.decoding.beam import BeamSearch, Hypothesis
from showtell.decoding.constraints import RULES
from showtell.decoding.ensemble import Ensemble
from showtell.decoding.expected import ExpectedNgrams
from showtell.decoding.reranked import RerankedBeamSearch
from showtell.decoding.sampling import Sampling
from showtell.decoding.search import Search
from showtell.errors import UserError
from showtell.models.decoder import AttentiveDecoder, StepDecoder
from showtell.runs import COLUMNS, MEMBERS, RECORD, VOCABULARY, load_weights, locate, read_record
from showtell.text.tokenizer import detokenize, tokenize
from showtell.text.vocabulary import BEGIN, Vocabulary
from showtell.types import FeatureKind
from showtell.vision.encoder import Encoder, EncoderIdentity, rebuild_encoder
from showtell.vision.extract import encode
from showtell.vision.images import ImageError, view_names

BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Captioned:
    """The result for one image: a caption, or the reason why there is none."""

    path: Path
    caption: str | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class CaptionAttention:
    """The words of a caption, with the decoder's attention over the encoder's view for each."""

    words: tuple[str, ...]
    weights: npt.NDArray[np.float32]  # (words, rows, columns), the sum of a word is at most 1


@dataclass(frozen=True)
class Run:
    """A trained captioner: decoder with the best weights, vocabulary, search and encoder."""

    folder: Path
    record: dict[str, Any]
    decoder: nn.Module
    vocabulary: Vocabulary
    search: Search
    views: tuple[str, ...]  # of an image, used together
    encoder_weights: str | None
    # The encoder, once it is built; copies of a run share it.
    _built: list[Encoder] = field(default_factory=list, repr=False, compare=False)

    @property
    def encoder(self) -> Encoder:
        """The encoder that the run was trained with, built at first use.

        Raises:
            UserError: its weights are not available, or are not those of the training.
        """
        if not self._built:
            self._built.append(self._build_encoder())
        return self._built[0]

    def _build_encoder(self) -> Encoder:
        try:
            identity = EncoderIdentity.from_json(self.record["encoder"]["identity"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.folder / RECORD} describes no encoder ({error!r}); restore it from a copy"
            ) from error
        return rebuild_encoder(identity, weights=self.encoder_weights)

    @property
    def feature_kind(self) -> FeatureKind:
        """The features that the decoder reads: ``pooled`` or ``grid``."""
        return cast(StepDecoder, self.decoder).feature_kind

    @property
    def device(self) -> torch.device:
        """The device of the decoder."""
        return next(self.decoder.parameters()).device

    def with_beam(self, beam_size: int | None) -> Run:
        """A copy of this run with another beam size; None keeps the run's own.

        Raises:
            UserError: the run's search has no single beam size.
        """
        if beam_size is None:
            return self
        if not isinstance(self.search, BeamSearch | RerankedBeamSearch):
            raise UserError(
                f"{self.folder} captions by {type(self.search).__name__}, which has no one beam: "
                "leave the beam size out"
            )
        return replace(self, search=replace(self.search, beam_size=beam_size))

    def with_sampling(self, **options: Any) -> Run:
        """A copy of this run that draws captions by `Sampling`, under the rules of its search.

        Args:
            options: ``temperature``, ``top_k``, ``top_p`` and ``seed`` of `Sampling`.
        """
        rules = {name: getattr(self.search, name) for name in RULES}
        search = Sampling(**rules, **options).with_vocabulary(self.vocabulary)
        return replace(self, search=search)

    def write(self, features: Tensor) -> list[str]:
        """One caption per image from features (B, D) or (B, R, D)."""
        return [self.text_of(hypothesis) for hypothesis in self.decode(features)]

    def _write_several(self, features: Tensor, samples: int | None) -> list[list[str]]:
        """The captions of each image: one from the search, or ``samples`` drawn ones."""
        if samples is None:
            return [[caption] for caption in self.write(features)]
        assert isinstance(self.search, Sampling), "the run does not draw: see with_sampling"
        decoder = cast(StepDecoder, self.decoder)
        drawn = self.search.several(decoder, features.to(self.device), samples)
        return [[self.text_of(hypothesis) for hypothesis in each] for each in drawn]

    def decode(self, features: Tensor) -> list[Hypothesis]:
        """One hypothesis per image from features (B, D) or (B, R, D).

        Features in float16, as stores have them, are converted to float32 on the decoder's device.
        """
        return self.search(cast(StepDecoder, self.decoder), features.to(self.device).float())

    def text_of(self, hypothesis: Hypothesis) -> str:
        """The detokenized text of a hypothesis."""
        return detokenize(self.vocabulary.decode(hypothesis.token_ids))

    def caption(self, images: Sequence[str | Path], *, beam_size: int | None = None) -> list[str]:
        """One caption per image file, in order.

        Raises:
            ImageError: for the first file that is not a readable image.
            UserError: ``beam_size`` is given and the run's search has no single beam size.
            ValueError: ``beam_size`` is below 1.
        """
        captions = []
        for result in self.with_beam(beam_size).caption_files(images):
            if result.caption is None:
                raise ImageError(result.problem or "")
            captions.append(result.caption)
        return captions

    def caption_files(
        self, paths: Iterable[str | Path], *, samples: int | None = None
    ) -> Iterator[Captioned]:
        """Caption image files in order, batch by batch; an unreadable one does not stop the rest.

        With ``samples`` every image is yielded that many times, each time with a newly drawn
        caption; the run must come from `with_sampling`.
        """
        pictures = map(Path, paths)
        while chunk := list(islice(pictures, BATCH_SIZE)):
            encoded = self._encode(chunk, views=self.views)
            readable = [features for features in encoded if not isinstance(features, ImageError)]
            written = self._write_several(torch.stack(readable), samples) if readable else ()
            captions = iter(written)
            for path, features in zip(chunk, encoded, strict=True):
                if isinstance(features, ImageError):
                    yield Captioned(path, None, str(features))
                else:
                    yield from (Captioned(path, caption, None) for caption in next(captions))

    def attend(
        self, images: Sequence[str | Path], captions: Sequence[str] | None = None
    ) -> list[CaptionAttention]:
        """The decoder's attention for every word of a caption: one entry per image file, in order.

        Args:
            captions: captions to force, one per image; None for the run's own.

        Raises:
            UserError: the model of this run has no attention.
            ImageError: for the first file that is not a readable image.
        """
        if not isinstance(self.decoder, AttentiveDecoder):
            raise UserError(
                f"{self.folder}: {type(self.decoder).__name__} looks at the picture as a whole; "
                "train a model with attention, such as attention_glove"
            )
        if captions is None:
            captions = self.caption(images)
        return [
            self._attend(self.decoder, Path(image), tokenize(caption))
            for image, caption in zip(images, captions, strict=True)
        ]

    @torch.inference_mode()
    def _attend(self, decoder: AttentiveDecoder, path: Path, words: list[str]) -> CaptionAttention:
        (features_RD,) = self._encode([path], views=self.views[:1])  # a single view to draw on
        if isinstance(features_RD, ImageError):
            raise features_RD
        token_ids = torch.tensor([BEGIN, *self.vocabulary.encode(words)], device=features_RD.device)
        weights_TR = decoder.attend(features_RD, token_ids).float().cpu()
        identity = self.encoder.identity
        # The last row is the attention for END.
        weights = weights_TR[:-1].view(len(words), identity.rows, identity.columns)
        return CaptionAttention(tuple(words), weights.numpy())

    def _encode(self, paths: Sequence[Path], *, views: Sequence[str]) -> list[Tensor | ImageError]:
        """Features (D,) or (R, D) of each file on the decoder's device, or why there are none."""
        encoded = encode(
            paths,
            self.encoder,
            kind=self.feature_kind,
            batch_size=len(paths),
            device=self.device,
            views=views,
        )
        return [
            entry
            if isinstance(entry, ImageError)
            else torch.from_numpy(entry).float().to(self.device)
            for entry in encoded
        ]


def load_run(
    path: str | Path, *, encoder_weights: str | None = None, accelerator: str = "auto"
) -> Run:
    """Load a run folder, or an ensemble's, on any machine, with or without its data set.

    ``encoder_weights`` names a file with the encoder's weights, to be used instead of the file in
    the folder or the published one; weights other than those of the training are refused.
    ``accelerator`` is that of `device_for`. On some CPUs the whole process uses another library for
    matrix products from then on: see `showtell.cpu_matmul`.

    Nothing in the folder is executed: JSON says which of this package's decoders to build, and
    the weights are safetensors.

    Raises:
        UserError: this is not a run folder, one of another version, or a damaged one.
    """
    use_onednn_matmul()
    folder = locate(path)
    record = read_record(folder, needs=("encoder", "model", "model_sizes", "decoding"))
    vocabulary = Vocabulary.load(folder / VOCABULARY)
    sizes = record["model_sizes"]
    if sizes.get("vocabulary_size") != len(vocabulary):
        raise UserError(
            f"{folder / VOCABULARY} holds {len(vocabulary)} tokens, {RECORD} speaks of "
            f"{sizes.get('vocabulary_size')}; restore it from a copy"
        )
    if "members" in record:
        decoder: nn.Module = _load_members(folder, record, vocabulary, accelerator)
    else:
        decoder = _build(folder, "model", record, **sizes)
        load_weights(folder, decoder)
    search: Search = _build(folder, "decoding", record)
    kept = encoder_weights or runs.encoder_weights(folder) or record["encoder"].get("weights")
    weights = None if kept is None else str(kept)
    decoder = decoder.eval().to(device_for(accelerator))
    search = search.with_vocabulary(vocabulary)
    if isinstance(search, RerankedBeamSearch):
        made_for = _made_for(record, vocabulary)
        search = search.with_expected(ExpectedNgrams.load(folder / runs.EXPECTED, made_for))
    return Run(folder, record, decoder, vocabulary, search, _views_of(folder, record), weights)


def keep_expected(
    folder: Path, search: Search, record: Mapping[str, Any], vocabulary: Vocabulary
) -> None:
    """Save the n-gram prediction of a reranked search into ``folder``; other searches have none.

    Of ``record``, the content of ``run.json``, the encoder and the views are used.
    """
    if isinstance(search, RerankedBeamSearch) and search.expected is not None:
        search.expected.save(folder / runs.EXPECTED, _made_for(record, vocabulary))


def _made_for(record: Mapping[str, Any], vocabulary: Vocabulary) -> str:
    """What an n-gram prediction belongs to: a hash of encoder, views and vocabulary."""
    seen = record["encoder"].get("identity"), record.get("views", "original")
    told = json.dumps([*seen, vocabulary.tokens], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _views_of(folder: Path, record: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        return view_names(str(record.get("views", "original")))
    except ValueError as error:
        raise UserError(f"{folder / RECORD}: {error}; restore it from a copy") from error


def member_folders(folder: Path) -> list[Path]:
    """The run folders inside an ensemble's folder; for a plain run, its own folder.

    Raises:
        UserError: this is not a run folder, or an ensemble's that does not name its members.
    """
    record = read_record(folder)
    if "members" not in record:
        return [folder]
    names = record["members"]
    if not isinstance(names, list) or not names:
        raise UserError(f"{folder / RECORD} names no members; restore it from a copy")
    return [folder / MEMBERS / str(number) for number in range(1, len(names) + 1)]


def check_words(members: Sequence[Run]) -> None:
    """Refuse runs that cannot form an ensemble.

    Raises:
        UserError: two have different vocabularies.
    """
    first = members[0]
    for run in members[1:]:
        if run.vocabulary.words != first.vocabulary.words:
            raise UserError(
                f"{run.folder} and {first.folder} have different words; an ensemble is made of "
                "runs that were trained on the same captions with the same text settings"
            )


def _load_members(
    folder: Path, record: Mapping[str, Any], vocabulary: Vocabulary, accelerator: str
) -> Ensemble:
    members = [load_run(member, accelerator=accelerator) for member in member_folders(folder)]
    check_words(members)
    if members[0].vocabulary.words != vocabulary.words:
        raise UserError(
            f"{folder / VOCABULARY} is not that of the members beside it; restore it from a copy"
        )
    encoder, columns = record["encoder"].get("identity"), record.get(COLUMNS)
    if columns is None:
        is_whole = all(run.record["encoder"].get("identity") == encoder for run in members)
    else:
        is_whole = _are_columns(columns, members, encoder)
    if not is_whole:
        raise UserError(
            f"{folder / RECORD} does not say what its members read of the encoder's features; "
            "restore it from a copy"
        )
    return Ensemble([run.decoder for run in members], columns)


def _are_columns(columns: Any, members: Sequence[Run], encoder: Any) -> bool:
    """Whether ``columns`` are valid spans, as wide in total as each member's features."""
    try:
        flat = [(start, stop) for spans in columns for start, stop in spans]
        in_range = all(
            type(start) is type(stop) is int and 0 <= start < stop <= encoder["size"]
            for start, stop in flat
        )
        widths = [sum(stop - start for start, stop in spans) for spans in columns]
        sizes = [run.record["model_sizes"]["feature_size"] for run in members]
        return in_range and widths == sizes
    except (KeyError, TypeError, ValueError):
        return False


def device_for(accelerator: str) -> torch.device:
    """The GPU if there is one and ``accelerator`` allows it, else the CPU.

    Raises:
        UserError: ``accelerator`` asks for a GPU and there is none.
    """
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator={accelerator}: PyTorch finds no GPU here; set it to auto or cpu"
        )
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def find_pictures(path: Path) -> list[Path]:
    """The file ``path`` itself, or the images directly inside the folder ``path``, sorted.

    Raises:
        UserError: a folder holds no image or cannot be listed.
    """
    try:
        if not path.is_dir():
            return [path]
        inside = sorted(p for p in path.iterdir() if is_image_name(p.name))
    except OSError as error:
        raise UserError(
            f"{path} cannot be listed ({error.strerror}); check its name and permissions"
        ) from error
    if not inside:
        raise UserError(f"{path} holds no picture; give a folder of JPEG, PNG or WebP files")
    return inside


def _build(folder: Path, group: str, record: dict[str, Any], **injected: Any) -> Any:
    problems = check_node(group, record[group])
    if problems:
        raise UserError(f"{folder / RECORD} does not fit this version of showtell: {problems[0]}")
    try:
        return build(group, record[group], **injected)
    except (TypeError, ValueError, RuntimeError) as error:  # raised by layers for invalid sizes
        raise UserError(
            f"{folder / RECORD} describes no {group} that can be built ({error}); restore it from "
            "a copy"
        ) from error
