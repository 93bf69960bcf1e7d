"""Combines finished runs into one run folder that captions and is evaluated like any run."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from showtell import runs
from showtell.caption import Run, check_words, keep_expected, load_run, member_folders
from showtell.config import INJECTED, PLACES_OF_DATA, TARGET, build, check_node, compose
from showtell.decoding.ensemble import Ensemble, Spans
from showtell.decoding.reranked import RerankedBeamSearch
from showtell.decoding.search import Search
from showtell.errors import UserError
from showtell.evaluation import changed_files
from showtell.files import check_writable, write_atomically
from showtell.inputs import Config, caption_views, features_of, seen_features_of
from showtell.parts import Settings, fitted_to, select_images
from showtell.types import FeatureKind
from showtell.vision.encoder import Encoder, merge_encoders
from showtell.vision.images import view_names
from showtell.vision.weights import exact_file

# Overrides that say where the data is now.
PLACES = (*PLACES_OF_DATA, "features.root=")
ENSEMBLE = f"{Ensemble.__module__}.{Ensemble.__qualname__}"


def gather(
    members: Sequence[Path],
    output: Path,
    *,
    search: dict[str, Any] | None,
    views: str | None = None,
    mean_weights: bool = False,
    places: Sequence[str] = (),
) -> Path:
    """Make the run folder ``output`` of an ensemble: copies of ``members``, and what they share.

    The folder depends on nothing outside. An ensemble among the members is replaced by its own
    members. A single member gives the same run with another search or other views. If the members
    have different encoders, the ensemble's encoder joins them, and each member reads its part; a
    reranked search predicts from the part of the first run alone, because predicting from all would
    need features of the training images that nobody has stored. So a run whose encoder joins two
    networks should be the first: two predict better than one, three hardly (docs/tried.md).

    With ``mean_weights`` the result is one model instead, as fast as each member. If one of two
    runs started from the other, that interpolates between them (Wortsman et al. 2022, "Robust
    Fine-tuning of Zero-shot Models" and "Model Soups"); for runs trained independently it is noise.

    Args:
        members: run folders.
        output: the folder to make.
        search: the node of ``conf/decoding`` to caption with; None for that of the first run, and
            if that is a reranked one of a single model, for it with pooled candidates.
        views: the views of an image to use together; None for those of the first member.
        places: where the data set is now (``data.root=...``, ``features.root=...``).
        mean_weights: whether to average the weights of the members into one model.

    Raises:
        UserError: a member cannot be loaded, members differ in their vocabulary or in how they see
            images, a view does not exist, or ``output`` exists; with ``mean_weights`` also if
            they differ in model or encoder.
    """
    if output.exists():
        raise UserError(f"{output} exists; name another --output or remove it")
    check_writable(output)  # a reranked search takes minutes to fit
    given = [load_run(member) for member in members]
    loaded = [each for run in given for each in _members(run)]
    names = [name for run in given for name in run.record.get("members", [run.folder.name])]
    check_words(loaded)
    encoder, columns, first_columns = _merged_encoder(given)
    seconds = sum(run.record.get("training_seconds", 0.0) for run in loaded)
    if mean_weights:
        mean = _mean(loaded, is_one_encoder=encoder is None)
        mean.record[runs.MEAN_OF] = names
        loaded, names = [mean], [" + ".join(names)]
    search = search or _search_of(given[0])
    views = views or "+".join(given[0].views)
    try:
        view_names(views)
    except ValueError as error:
        raise UserError(f"--views: {error}") from error
    changes = {"decoding": search, "views": views}
    config = _moved_to(places, _current_config(members[0], encoder, changes))
    Settings.of(config)  # raises for a value out of its range
    if view_names(views) == given[0].views and _knows(given[0].search, search):
        fitted = given[0].search
    else:
        fitted = _fitted_search(config, given[0])
    if (
        encoder is not None
        and isinstance(fitted, RerankedBeamSearch)
        and fitted.expected is not None
    ):
        widened = fitted.expected.widened(first_columns, encoder.identity.size)
        fitted = fitted.with_expected(widened)
    record = {**_record(loaded, names), "decoding": search, "views": views}
    record["training_seconds"] = seconds
    runs.claim_folder(output)
    for number, run in enumerate(loaded, start=1):
        member = output / runs.MEMBERS / str(number)
        _copy(run.folder, member)
        if mean_weights:
            runs.save_weights(member, run.decoder)
            runs.write_json(member / runs.RECORD, run.record)
    loaded[0].vocabulary.save(output / runs.VOCABULARY)
    if encoder is not None:
        write_atomically(output / runs.LEARNED_ENCODER, exact_file(encoder.body))
        described = {"weights": None, "identity": encoder.identity.to_json()}
        record |= {"encoder": described, runs.COLUMNS: columns}
    elif weights := runs.encoder_weights(given[0].folder):
        runs.keep_encoder_weights(output, weights)
    keep_expected(output, fitted, record, loaded[0].vocabulary)
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    write_atomically(output / runs.CONFIG, text.encode())
    runs.write_json(output / runs.RECORD, record)  # last: a folder without it is not a run
    return output


def _search_of(run: Run) -> dict[str, Any]:
    """The node of the run's search, for an ensemble that begins with the run."""
    search: dict[str, Any] = run.record["decoding"]
    # A single model has had nothing to pool; an ensemble has chosen.
    is_open = isinstance(run.search, RerankedBeamSearch) and not runs.is_ensemble(run.record)
    return {**search, "pool": True} if is_open else search


def _members(run: Run) -> list[Run]:
    """The members of an ensemble; for another run, the run itself."""
    is_ensemble = "members" in run.record
    return [load_run(folder) for folder in member_folders(run.folder)] if is_ensemble else [run]


def _mean(loaded: Sequence[Run], *, is_one_encoder: bool) -> Run:
    """A copy of the first run with the mean of the weights of all."""
    first = loaded[0]
    states = [run.decoder.state_dict() for run in loaded]
    for run, state in zip(loaded, states, strict=True):
        own, others = ({name: t.shape for name, t in each.items()} for each in (states[0], state))
        if type(run.decoder) is not type(first.decoder) or own != others:
            raise UserError(
                f"{run.folder} and {first.folder} are different models; the mean of the weights is "
                "taken of runs of one model, of which one began with the other"
            )
    if not is_one_encoder:
        raise UserError(
            "the mean of the weights is taken of runs with one encoder; these have several"
        )
    mean = {name: sum(state[name] for state in states) / len(states) for name in states[0]}
    decoder = copy.deepcopy(first.decoder)
    decoder.load_state_dict(mean)
    return replace(first, decoder=decoder, record=dict(first.record))


def _merged_encoder(given: Sequence[Run]) -> tuple[Encoder | None, list[Spans], Sequence[int]]:
    """One encoder for all ``given`` runs, and which of its features each of their members reads.

    The third are the columns of the first run. None and empty lists if all have the same encoder
    and read all of its features.
    """
    identities = [run.record["encoder"].get("identity") for run in given]
    is_one = all(identity == identities[0] for identity in identities)
    if is_one and not any(runs.COLUMNS in run.record for run in given):
        return None, [], []
    encoder, own = merge_encoders([run.encoder for run in given])
    spans = [
        _spans([columns[each] for span in read for each in range(*span)])
        for run, columns in zip(given, own, strict=True)
        for read in _read(run, len(columns))
    ]
    return encoder, spans, own[0]


def _read(run: Run, size: int) -> Sequence[Spans]:
    """For each member of a run, or for the run itself, which of ``size`` features it reads."""
    if not isinstance(run.decoder, Ensemble):
        return [[(0, size)]]
    return run.decoder.columns or [[(0, size)]] * len(run.decoder.members)


def _spans(columns: Sequence[int]) -> Spans:
    """Consecutive columns as half-open spans: 4, 5, 6, 0, 1 gives (4, 7), (0, 2)."""
    starts = [at for at, column in enumerate(columns) if not at or column != columns[at - 1] + 1]
    ends = [*starts[1:], len(columns)]
    return [(columns[start], columns[end - 1] + 1) for start, end in zip(starts, ends, strict=True)]


def _knows(search: Search, asked: Mapping[str, Any]) -> bool:
    """Whether the fitted prediction of ``search`` can be used for the search ``asked`` for."""
    options = ("least_images", "rank")
    return isinstance(search, RerankedBeamSearch) and all(
        getattr(search, option) == asked.get(option) for option in options
    )


def _fitted_search(config: Config, run: Run) -> Search:
    """The search of ``config``, fitted if need be to the features of ``run``'s encoder.

    The encoder is loaded, and the data set of ``config`` read, only if the search must be fitted to
    the training images.

    Raises:
        UserError: an option is out of its range, or the data set is missing.
    """
    settings = Settings.of(config)
    search = settings.search
    if not isinstance(search, RerankedBeamSearch):
        return search
    data = build("data", config["data"])
    for note in changed_files(run.record, data):
        print(f"note: {note}")
    images = select_images(data, settings.trainer)["train"]
    # The features that a run was trained on are likely to be stored. Of the joined encoder of an
    # ensemble none are, and the means of its grids, which are all that is read, take little space.
    kind: FeatureKind = "pooled" if runs.COLUMNS in run.record else run.feature_kind
    store = features_of(images, run.encoder, kind, config)
    seen = seen_features_of(images, store, run.encoder, kind, config, caption_views(config))
    return fitted_to(images, search, seen, run.vocabulary)


def _copy(member: Path, folder: Path) -> None:
    for file in (*runs.DECODER, runs.EXPECTED):
        if (member / file).is_file():
            write_atomically(folder / file, (member / file).read_bytes())


def _record(loaded: Sequence[Run], names: Sequence[str]) -> dict[str, Any]:
    """``run.json`` of the ensemble: what its members share, and their names."""
    first = loaded[0].record
    alone = len(loaded) == 1
    return {
        "format": runs.FORMAT,
        "status": "finished",
        **runs.describe_origin(),
        "seed": first.get("seed") if alone else None,
        "data": first["data"],
        "encoder": first["encoder"],
        "text": first["text"],
        "model": first["model"] if alone else {TARGET: ENSEMBLE, "members": names},
        "model_sizes": {"vocabulary_size": len(loaded[0].vocabulary)},
        "members": list(names),
        **({runs.MEAN_OF: first[runs.MEAN_OF]} if alone and runs.MEAN_OF in first else {}),
    }


def _moved_to(places: Sequence[str], config: Config) -> dict[str, Any]:
    """``config`` with ``places``, such as ``data.root=FOLDER`` or ``features.root=FOLDER``.

    Raises:
        UserError: a place has another key, or no value.
    """
    moved = dict(config)
    for place in places:
        path, _, value = place.partition("=")
        group, _, key = path.partition(".")
        if f"{path}=" not in PLACES or key not in moved[group] or not value:
            known = [
                p for p in PLACES if p.split(".")[1].removesuffix("=") in moved[p.split(".")[0]]
            ]
            raise UserError(f"--data {place}: give {' or '.join(f'{p}PATH' for p in known)}")
        moved[group] = {**moved[group], key: value}
    return moved


def _current_config(member: Path, encoder: Encoder | None, changes: dict[str, Any]) -> Config:
    """The configuration of a member with some ``changes``, for `evaluate` to find its data.

    ``encoder`` is the joined encoder of several members; None if they share this member's.

    Groups that do not fit this version get their defaults, because only the training needed them.

    Raises:
        UserError: the data set or the encoder, which are still needed, do not fit this version.
    """
    saved = runs.read_config(member)
    for group in ("data", "encoder"):
        if problems := check_node(group, saved.get(group) or {}):
            raise UserError(
                f"{member / runs.CONFIG} was written by another version of showtell, whose commit "
                f"is in {runs.RECORD} beside it: use that one, or train anew ({problems[0]})"
            )
    usual = compose([])
    fitting = {
        key: value
        for key, value in saved.items()
        if key in usual and not (key in INJECTED and check_node(key, value))
    }
    config = {**usual, **fitting, **changes}
    if encoder is not None:
        names = encoder.identity.network.split("+")
        joined = compose(["encoder=joined"])["encoder"]
        seen = config["encoder"]["preprocessing"]
        config["encoder"] = {**joined, "networks": names, "preprocessing": seen}
    return config
