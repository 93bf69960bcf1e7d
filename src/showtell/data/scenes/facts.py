"""What is true of a drawn picture, and which split may show it.

A scene is a setting with one group of things, or with two groups in a relation. Its captions and
its pixels are both made from these facts, so every caption is right by construction.

Held-out compositions. A composition is one thing's colour and kind with the relation it stands
in, such as (red, ball, on). For every kind and relation one colour of the eight is kept for val
and another one for test. Training never shows either; each val or test picture shows at least
one composition of its own, and none of the other's. A model that memorises combinations fails
there, a model that sees colour, kind and relation does not.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

from showtell.types import Split

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SIZES = ("small", "large")
KINDS = (
    "ball", "balloon", "basket", "bird", "boat", "bowl", "box", "car", "cat", "crab",
    "cup", "fish", "flower", "house", "kite", "rocket", "star", "table", "tree",
)  # fmt: skip


class Relation(StrEnum):
    """How the subject of a scene stands to its other thing; ALONE means there is none."""

    ALONE = "alone"
    LEFT_OF = "left of"
    ABOVE = "above"
    ON = "on"
    INSIDE = "inside"


@dataclass(frozen=True, slots=True)
class Thing:
    """One to three things of the same kind, colour and size."""

    kind: str
    colour: str
    size: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Scene:
    """The facts of one picture: ``subject`` stands in ``relation`` to ``other``."""

    setting: str
    relation: Relation
    subject: Thing
    other: Thing | None = None

    @property
    def things(self) -> tuple[Thing, ...]:
        """The subject, and the other thing where there is one."""
        return (self.subject,) if self.other is None else (self.subject, self.other)


@dataclass(frozen=True, slots=True)
class Setting:
    """What can be met at a place: standing on its ground, up in its air, held by a thing."""

    ground: tuple[str, ...]
    air: tuple[str, ...]
    held: tuple[str, ...] = ()


SETTINGS = {
    "meadow": Setting(
        ground=("ball", "basket", "box", "car", "cat", "flower", "house", "table", "tree"),
        air=("balloon", "bird", "kite"),
        held=("ball", "bird", "cat", "cup", "flower"),
    ),
    "sea": Setting(ground=("boat",), air=("balloon", "bird", "kite")),
    "reef": Setting(ground=("ball", "box", "crab"), air=("fish",), held=("crab",)),
    "desert": Setting(
        ground=("ball", "box", "car", "house", "tree"),
        air=("balloon", "bird", "kite", "rocket"),
        held=("ball", "bird", "cup"),
    ),
    "snow": Setting(
        ground=("ball", "box", "car", "cat", "house", "tree"),
        air=("balloon", "bird", "kite"),
        held=("ball", "bird", "cat"),
    ),
    "night": Setting(ground=("car", "cat", "house", "tree"), air=("balloon", "rocket", "star")),
    "room": Setting(
        ground=("ball", "basket", "bowl", "box", "cat", "cup", "table"),
        air=("balloon", "star"),
        held=("ball", "cat", "crab", "cup", "fish", "flower"),
    ),
}

# What a host can carry or contain without the picture becoming hard to read.
CARRIED: dict[str, tuple[str, ...]] = {
    "box": ("ball", "bird", "cat", "crab", "cup"),
    "table": ("ball", "bird", "cat", "cup"),
}
CONTAINED: dict[str, tuple[str, ...]] = {
    "basket": ("ball", "cat", "flower"),
    "bowl": ("ball", "crab", "fish"),
}

# Met alone too rarely for training to be sure of showing their plural.
SINGLE = ("basket", "bowl", "box", "cup", "flower", "table")


def home(colour: str, kind: str, relation: Relation) -> Split:
    """The split a composition belongs to; what belongs to train may appear in every split.

    The sum runs through all eight residues as the colour does, so each kind and relation keeps
    six colours in training, and a kind met in several relations is trained in all eight.
    """
    turn = COLOURS.index(colour) + 3 * KINDS.index(kind) + list(Relation).index(relation)
    held_out: dict[int, Split] = {0: "val", 4: "test"}
    return held_out.get(turn % len(COLOURS), "train")


def imagine(*, seed: int, split: Split, index: int) -> Scene:
    """The facts of picture ``index`` of a split: always the same for the same arguments."""
    rng = random.Random(f"{seed}/{split}/{index}/facts")
    while True:
        scene = _any_scene(rng)
        homes = {home(thing.colour, thing.kind, scene.relation) for thing in scene.things}
        if homes | {"train"} == {"train", split}:
            return scene


def _any_scene(rng: random.Random) -> Scene:
    name = rng.choice(list(SETTINGS))
    pairs = {relation: _pairs(SETTINGS[name], relation) for relation in Relation}
    relation = rng.choice([relation for relation in Relation if pairs[relation]])
    kind, other_kind = rng.choice(pairs[relation])
    colour, other_colour = rng.sample(COLOURS, 2)
    size, other_size = _sizes(relation, rng)
    crowded = relation in (Relation.ALONE, Relation.ABOVE) and kind not in SINGLE
    count = rng.choice((1, 2, 3)) if crowded else 1
    subject = Thing(kind, colour, size, count)
    other = Thing(other_kind, other_colour, other_size) if other_kind else None
    return Scene(name, relation, subject, other)


def _pairs(setting: Setting, relation: Relation) -> list[tuple[str, str | None]]:
    """The kinds of subject and other thing that can stand in a relation at a setting."""
    match relation:
        case Relation.ALONE:
            return [(kind, None) for kind in setting.ground + setting.air]
        case Relation.LEFT_OF:  # on one level, else it would be above or below as well
            levels = (setting.ground, setting.air)
            return [(a, b) for level in levels for a in level for b in level if a != b]
        case Relation.ABOVE:
            return [(a, b) for a in setting.air for b in setting.ground]
        case Relation.ON:
            return _hosted(setting, CARRIED)
        case Relation.INSIDE:
            return _hosted(setting, CONTAINED)


def _hosted(setting: Setting, hosts: dict[str, tuple[str, ...]]) -> list[tuple[str, str | None]]:
    present = [host for host in hosts if host in setting.ground]
    return [(kind, host) for host in present for kind in hosts[host] if kind in setting.held]


def _sizes(relation: Relation, rng: random.Random) -> tuple[str, str]:
    if relation is Relation.INSIDE:  # what is contained has to fit
        return "small", "large"
    if relation is Relation.ON:
        return rng.choice(SIZES), "large"
    return rng.choice(SIZES), rng.choice(SIZES)
