"""Five captions of one scene, the way five people would write them.

They differ in pattern, in synonyms and in what they leave out; they never disagree, because each
word is chosen from the facts of the scene. They overlap about as much as people's captions do.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from showtell.data.scenes.facts import Relation, Scene, Thing

CAPTIONS_PER_IMAGE = 5
COLOUR_SHARE = 0.9  # how often a thing's colour is said, and below its size
SIZE_SHARE = 0.35


class Verb(NamedTuple):
    """``it sits``, ``they sit``, ``a thing sitting``."""

    singular: str
    plural: str
    participle: str


FLOAT = Verb("floats", "float", "floating")
FLY = Verb("flies", "fly", "flying")
PARK = Verb("is parked", "are parked", "parked")
SHINE = Verb("shines", "shine", "shining")
SIT = Verb("sits", "sit", "sitting")
STAND = Verb("stands", "stand", "standing")
SWIM = Verb("swims", "swim", "swimming")

# Of several words for one idea the first is the commonest: see _pick.
NOUNS = {"box": ("box", "crate")}  # any other kind is its own noun
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("big", "large", "huge")}
NUMBER_WORDS = {2: ("two", "a couple of"), 3: ("three",)}
PLACES = {
    "meadow": ("in a meadow", "in a green meadow", "in the countryside"),
    "sea": ("at sea", "out at sea", "on the blue ocean"),
    "reef": ("under water", "under the sea", "at the bottom of the ocean"),
    "desert": ("in the desert", "in a sandy desert", "in the hot desert"),
    "snow": ("in the snow", "on a snowy day", "in winter"),
    "night": ("at night", "on a dark night", "under the night sky"),
    "room": ("in a room", "indoors", "at home"),
}
RELATION_WORDS = {
    Relation.LEFT_OF: ("next to", "beside", "to the left of"),
    Relation.ABOVE: ("above", "over"),
    Relation.ON: ("on", "on top of"),
    Relation.INSIDE: ("in", "inside"),
}
# The same relation, told from the other thing.
CONVERSE_WORDS = {
    Relation.LEFT_OF: ("next to", "beside", "to the right of"),
    Relation.ABOVE: ("below", "under"),
    Relation.ON: ("under", "below"),
}

ACTING = {
    "ball": SIT, "balloon": FLOAT, "basket": STAND, "bird": FLY, "boat": FLOAT, "bowl": STAND,
    "box": STAND, "car": PARK, "cat": SIT, "crab": SIT, "cup": STAND, "fish": SWIM,
    "flower": STAND, "house": STAND, "kite": FLY, "rocket": FLY, "star": SHINE, "table": STAND,
    "tree": STAND,
}  # fmt: skip


# {A} the subject, {B} the other thing, {is} and {acts} agree with A.
ALONE_PATTERNS = (
    "{A} {place}",
    "{A} {acting} {place}",
    "{A} {is} {acting} {place}",
    "{A} {acts} {place}",
    "there {is} {A} {place}",
    "{place} there {is} {A}",
    "{A} can be seen {place}",
    "the picture shows {A} {place}",
)
PAIR_PATTERNS = (
    "{A} {relation} {B}",
    "{A} {relation} {B} {place}",
    "{A} {is} {relation} {B} {place}",
    "{A} {acts} {relation} {B}",
    "{A} {is} {acting} {relation} {B} {place}",
    "there {is} {A} {relation} {B} {place}",
    "{place} {A} {acts} {relation} {B}",
    "{A} can be seen {relation} {B}",
    "the picture shows {A} {relation} {B}",
)
OWN_PATTERNS = {
    Relation.LEFT_OF: ("{A} and {B} {place}", "{B} {converse} {A}"),
    Relation.ABOVE: ("{B} {converse} {A}", "{B} {place} with {A} {relation} it"),
    Relation.ON: ("{B} {place} with {A} on it", "{B} {converse} {A}"),
    Relation.INSIDE: ("{B} {place} with {A} in it", "{B} holds {A}", "{A} {is} kept in {B}"),
}


def describe(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """Five different sentences, in Flickr8k's style: a capital first, a full stop set apart."""
    if scene.relation is Relation.ALONE:
        patterns: tuple[str, ...] = ALONE_PATTERNS
    else:
        patterns = PAIR_PATTERNS + OWN_PATTERNS[scene.relation]
    # Each pattern serves once. Two of them meet in "a car is parked": the later one is left out.
    shuffled = rng.sample(patterns, len(patterns))
    sentences = dict.fromkeys(_sentence(pattern, scene, rng) for pattern in shuffled)
    return tuple(sentences)[:CAPTIONS_PER_IMAGE]


def _sentence(pattern: str, scene: Scene, rng: random.Random) -> str:
    words = pattern.format_map(_slots(scene, rng))
    return f"{words[0].upper()}{words[1:]} ."


def _slots(scene: Scene, rng: random.Random) -> dict[str, str]:
    subject, other = scene.subject, scene.other
    verb = _verb(scene)
    slots = {
        "A": _noun_phrase(subject, rng),
        "is": "is" if subject.count == 1 else "are",
        "acts": verb.singular if subject.count == 1 else verb.plural,
        "acting": verb.participle,
        "place": _pick(PLACES[scene.setting], rng),
    }
    if other is not None:
        slots["B"] = _noun_phrase(other, rng)
        slots["relation"] = _pick(RELATION_WORDS[scene.relation], rng)
    if scene.relation in CONVERSE_WORDS:
        slots["converse"] = _pick(CONVERSE_WORDS[scene.relation], rng)
    return slots


def _verb(scene: Scene) -> Verb:
    bird_at_rest = scene.subject.kind == "bird" and scene.relation is Relation.ON
    return SIT if bird_at_rest else ACTING[scene.subject.kind]


def _noun_phrase(thing: Thing, rng: random.Random) -> str:
    """``a tiny red ball``: always the kind and the number, mostly the colour, at times the size."""
    noun = _pick(NOUNS.get(thing.kind, (thing.kind,)), rng)
    words = [noun if thing.count == 1 or noun == "fish" else f"{noun}s"]
    if rng.random() < COLOUR_SHARE:
        words.insert(0, thing.colour)
    if rng.random() < SIZE_SHARE:
        words.insert(0, _pick(SIZE_WORDS[thing.size], rng))
    if thing.count > 1:
        words.insert(0, _pick(NUMBER_WORDS[thing.count], rng))
    else:
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    return " ".join(words)


def _pick(words: Sequence[str], rng: random.Random) -> str:
    """One of several words for one idea, by Zipf's law: the second half as likely as the first."""
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    return rng.choices(words, weights)[0]
