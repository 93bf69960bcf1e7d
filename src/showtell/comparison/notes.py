"""Caveats that a reader of a comparison must know beside its numbers, a sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from showtell.comparison.rows import Row
from showtell.comparison.trainings import Training
from showtell.types import Split

# Entries of a result's signature that say what was scored; all others say how captions were
# written and scored. Whether candidates were pooled is among the settings that name a row.
_SCORED_ON = {
    *("metrics", "split", "split-sha256", "images", "references", "references-per-image"),
    *("references-sha256", "pool"),
}


def notes_on(rows: Sequence[Row], split: Split) -> Iterator[str]:
    """Sentences on what the significance test covers, and on all that makes the runs unequal."""
    trainings = [training for row in rows for training in row.trainings]
    yield from _on_seeds(rows)
    yield from _on_missing_scores(trainings)
    yield from _on_scoring(trainings)
    yield from _on_data(trainings)
    if split == "test":
        yield from _on_looks(trainings)


def _on_seeds(rows: Sequence[Row]) -> Iterator[str]:
    single = [row for row in rows if len(row.trainings) == 1]
    if single:
        who = "every row" if len(single) == len(rows) else "; ".join(map(_title, single))
        yield f"one seed only: {who}; how much another seed changes the scores is not known"
    if len(rows) == 1:
        return
    with_seeds = [len(rows[0].trainings) + len(row.trainings) > 2 for row in rows[1:]]
    if all(with_seeds):
        chance = "other images and other seeds"
    elif any(with_seeds):
        chance = "other images, and for other seeds where the row or the first has several"
    else:
        chance = "other images, not for other seeds"
    yield f"changes are against the first row; p and intervals allow for {chance}"


def _on_missing_scores(trainings: Sequence[Training]) -> Iterator[str]:
    scores = [training.scores for training in trainings]
    # METEOR is always wanted, but without Java no run has it, and there is no column to note.
    for name in dict.fromkeys([name for each in scores for name in each] + ["METEOR"]):
        without = [t for t, each in zip(trainings, scores, strict=True) if name not in each]
        if len(without) == len(trainings):
            yield f"{name} is left out: no run has it; `showtell evaluate` says what it needs"
        elif without:
            yield (
                f"{name} is left out where a run has none: {_named(without)}; `showtell evaluate` "
                "says what it needs"
            )


def _on_scoring(trainings: Sequence[Training]) -> Iterator[str]:
    trainings = [training for training in trainings if training.statistics is not None]
    signatures = [_signature(training) for training in trainings]
    only_of_some: dict[tuple[Training, ...], list[str]] = {}
    for fact in dict.fromkeys(fact for signature in signatures for fact in signature):
        if fact in _SCORED_ON:
            continue
        having = [(t, s[fact]) for t, s in zip(trainings, signatures, strict=True) if fact in s]
        those, values = zip(*having, strict=True)
        if len(set(values)) > 1:
            yield f"not scored alike: {fact} is {_told_apart(values, those)}"
        if len(those) < len(trainings):
            only_of_some.setdefault(those, []).append(fact)
    for those, facts in only_of_some.items():
        yield f"not scored alike: {', '.join(facts)} only in {_named(those)}"


def _on_data(trainings: Sequence[Training]) -> Iterator[str]:
    origins = [dict(training.record["data"].get("origin", {})) for training in trainings]
    for file in dict.fromkeys(file for origin in origins for file in origin):
        # A file that a run lacked, such as a list of test images, was not trained on.
        having = [(t, o[file]) for t, o in zip(trainings, origins, strict=True) if file in o]
        if len({checksum for _, checksum in having}) > 1:
            told = _told_apart([str(c)[:8] for _, c in having], [t for t, _ in having])
            yield f"not trained on the same data: {file} is {told}"


def _on_looks(trainings: Sequence[Training]) -> Iterator[str]:
    looks = [str(len(training.record.get("test_looks", []))) for training in trainings]
    if set(looks) != {"1"}:
        yield f"the test split should be looked at once; looks: {_told_apart(looks, trainings)}"


def _told_apart(values: Sequence[str], trainings: Sequence[Training]) -> str:
    """The trainings by value: ``3 in A, B; 5 in C``."""
    groups: dict[str, list[Training]] = {}
    for value, training in zip(values, trainings, strict=True):
        groups.setdefault(value, []).append(training)
    return "; ".join(f"{value} in {_named(those)}" for value, those in groups.items())


def _named(trainings: Sequence[Training]) -> str:
    """The names of at most three trainings, and the number of the rest."""
    names = [training.folder.name for training in trainings]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _title(row: Row) -> str:
    return " ".join(row.name)


def _signature(training: Training) -> dict[str, str]:
    signature = training.statistics.signature if training.statistics else ""
    pairs = (pair.partition(":") for pair in signature.split("|"))
    return {name: value for name, _, value in pairs}
