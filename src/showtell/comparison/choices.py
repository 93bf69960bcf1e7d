"""What was swept: the options that differ between configurations, and their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from showtell.comparison.settings import Settings, differences

# A search draws a new number for each run; a mean for each of more numbers would say nothing.
MOST_NUMBERS = 8
RANGES = 4
NOT_THERE = "not there"


@dataclass(frozen=True)
class Choice:
    """An option, or several that always change together.

    ``values`` has one for each configuration; ``levels`` are the distinct ones, numbers sorted.
    """

    name: str
    values: tuple[str, ...]
    levels: tuple[str, ...]


def choices_among(configurations: Sequence[Settings]) -> list[Choice]:
    """The choices in which the configurations differ.

    Options that always change together are one choice, named with a "+". A number with more than
    eight values is cut into four ranges of equally many values.
    """
    told = differences(configurations)
    names = list(dict.fromkeys(name for each in told for name in each))
    columns = {name: [each.get(name, NOT_THERE) for each in told] for name in names}
    swept = [_choice(name, values) for name, values in columns.items() if len(set(values)) > 1]
    together: dict[tuple[int, ...], list[Choice]] = {}
    for choice in swept:
        together.setdefault(_partition(choice.values), []).append(choice)
    return [_joined(choices) for choices in together.values()]


def _choice(name: str, values: Sequence[str]) -> Choice:
    numbers = {value: _number(value) for value in values}
    known = sorted({number for number in numbers.values() if number is not None})
    if len(known) > MOST_NUMBERS:
        label_of = _ranges(known)
        shown = {v: v if n is None else label_of[n] for v, n in numbers.items()}
        levels = [*label_of.values(), *(v for v in values if numbers[v] is None)]
        values = [shown[value] for value in values]
    else:
        # Values that are not numbers follow the numbers, in order of appearance.
        levels = sorted(values, key=lambda v: np.inf if (n := numbers[v]) is None else n)
    return Choice(name, tuple(values), tuple(dict.fromkeys(levels)))


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _ranges(numbers: Sequence[float]) -> dict[float, str]:
    """Number -> name of the range it lies in; ``numbers`` must be sorted."""
    parts = np.array_split(np.array(numbers), RANGES)
    return {n: f"{part[0]:.3g} to {part[-1]:.3g}" for part in parts for n in part.tolist()}


def _partition(values: Sequence[str]) -> tuple[int, ...]:
    """A key that is equal for choices that group the configurations in the same way."""
    first: dict[str, int] = {}
    return tuple(first.setdefault(value, len(first)) for value in values)


def _joined(choices: Sequence[Choice]) -> Choice:
    if len(choices) == 1:
        return choices[0]
    values = [", ".join(each) for each in zip(*(c.values for c in choices), strict=True)]
    return _ordered_as(choices[0], " + ".join(c.name for c in choices), values)


def _ordered_as(first: Choice, name: str, values: Sequence[str]) -> Choice:
    whole = dict(zip(first.values, values, strict=True))
    return Choice(name, tuple(values), tuple(whole[level] for level in first.levels))
