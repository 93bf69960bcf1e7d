"""From the facts of a scene to its picture: where things stand, then light, noise and pixels."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from showtell.data.scenes.backdrops import BACKDROPS, sky
from showtell.data.scenes.facts import SETTINGS, Relation, Scene, Thing
from showtell.data.scenes.pen import Paint, Pen, Rgb
from showtell.data.scenes.sprites import FRONTS, REST_HEIGHT, SPRITES

IMAGE_PIXELS = 224
OVERSAMPLING = 2  # drawn this much larger and averaged down: smooth edges
SIZE_PIXELS = {"small": 48.0, "large": 94.0}
# Three large things side by side would not fit; the ratio of small to large stays.
CROWD_SCALE = {1: 1.0, 2: 0.95, 3: 0.68}
GROUND, AIR = 204.0, 104.0  # y of a foot on the ground, and of the foot of a thing above another
RGB: dict[str, Rgb] = {
    "red": (212, 36, 40),
    "orange": (244, 128, 28),
    "yellow": (250, 214, 44),
    "green": (40, 156, 64),
    "blue": (40, 92, 212),
    "purple": (128, 56, 172),
    "pink": (246, 138, 186),
    "white": (246, 246, 244),
}


@dataclass(frozen=True, slots=True)
class Spot:
    """Where one thing is: the middle of its foot and its size in pixels, and what carries it."""

    x: float
    y: float
    size: float
    support: Literal["ground", "air", "host"]


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """An RGB picture of 224 x 224 pixels; the same scene and random state give the same picture."""
    picture = sky(scene.setting, IMAGE_PIXELS * OVERSAMPLING).copy()
    canvas = ImageDraw.Draw(picture, "RGBA")
    BACKDROPS[scene.setting].draw(Pen(canvas, 0, 0, picture.width), rng)
    _draw_things(canvas, scene, rng)
    return _photograph(picture.reduce(OVERSAMPLING), rng)


def _draw_things(canvas: ImageDraw.ImageDraw, scene: Scene, rng: random.Random) -> None:
    paints = {thing: _paint(thing.colour, rng) for thing in scene.things}
    fronts = []
    for thing, spot in _layout(scene, rng):
        sway_degrees = 9 if spot.support == "air" else 2
        pen = Pen(
            canvas,
            spot.x * OVERSAMPLING,
            spot.y * OVERSAMPLING,
            spot.size * OVERSAMPLING,
            turn_degrees=rng.uniform(-sway_degrees, sway_degrees),
            mirrored=rng.random() < 0.5,
        )
        if spot.support == "ground":  # its shadow
            pen.ellipse(0, -0.01, 0.5, 0.07, (20, 24, 40, 70))
        SPRITES[thing.kind](pen, paints[thing])
        if thing.kind in FRONTS:
            fronts.append((FRONTS[thing.kind], pen, paints[thing]))
    for front, pen, paint in fronts:
        front(pen, paint)


def _paint(colour: str, rng: random.Random) -> Paint:
    """The colour as this picture has it: no two reds are quite the same."""
    red, green, blue = (min(255, max(0, tone + rng.randint(-10, 10))) for tone in RGB[colour])
    return Paint.shaded((red, green, blue))


def _layout(scene: Scene, rng: random.Random) -> list[tuple[Thing, Spot]]:
    """Every single thing with its spot, the farthest first."""
    if scene.other is None:
        return [(scene.subject, spot) for spot in _row(scene, rng)]
    if scene.relation is Relation.LEFT_OF:
        left = _level_spot(scene, scene.subject, rng.uniform(52, 64), rng)
        right = _level_spot(scene, scene.other, rng.uniform(160, 172), rng)
        return [(scene.subject, left), (scene.other, right)]
    host = _level_spot(scene, scene.other, rng.uniform(85, 139), rng)
    if scene.relation is Relation.ABOVE:
        spots = _row(scene, rng, middle=host.x)
    else:
        foot = host.y - REST_HEIGHT[scene.other.kind] * host.size
        x = host.x + rng.uniform(-4, 4)
        spots = [Spot(x, foot, SIZE_PIXELS[scene.subject.size], support="host")]
    return [(scene.other, host), *((scene.subject, spot) for spot in spots)]


def _level_spot(scene: Scene, thing: Thing, x: float, rng: random.Random) -> Spot:
    """A spot on the ground for what stands there, in mid-air for what flies."""
    size = SIZE_PIXELS[thing.size] * CROWD_SCALE[thing.count]
    y = GROUND + rng.uniform(-8, 8)
    if thing.kind in SETTINGS[scene.setting].ground:
        return Spot(x, y, size, support="ground")
    return Spot(x, y - (GROUND - size) / 1.8, size, support="air")


def _row(scene: Scene, rng: random.Random, middle: float | None = None) -> list[Spot]:
    """Spots for the subject's one to three things side by side, in the sky when above another."""
    count = scene.subject.count
    if middle is None:
        middle = rng.uniform(75, 149)
    centres = {1: (middle,), 2: (rng.uniform(58, 70), rng.uniform(154, 166)), 3: (38, 112, 186)}
    spots = []
    for centre in centres[count]:
        spot = _level_spot(scene, scene.subject, centre + rng.uniform(-3, 3), rng)
        if scene.relation is Relation.ABOVE:
            spot = replace(spot, y=rng.uniform(spot.size + 8, AIR))
        spots.append(spot)
    return spots


def _photograph(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The light of the hour and the noise of a sensor, so that no two pictures share a pixel."""
    generator = np.random.default_rng(rng.getrandbits(64))
    height_width = (picture.height, picture.width, 1)  # in brightness alone, like film grain
    grain = generator.standard_normal(height_width, dtype=np.float32)
    light, deviation = np.float32(rng.uniform(0.88, 1.06)), np.float32(rng.uniform(2.5, 7.0))
    pixels = np.asarray(picture, dtype=np.float32) * light + grain * deviation
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
