"""The settings behind the things: sky, ground and clutter, never two alike.

Clutter (tufts, pebbles, clouds, bubbles, furniture on the wall) is smaller and paler than any
thing a caption speaks of, and outlined by no dark line, so that it disturbs without misleading.
The pen draws on the unit square here: (0, 0) is the top left corner, (1, 1) the bottom right.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image

from showtell.data.scenes.pen import Pen, Point, Rgb, arc, mix

HORIZON = 0.6
WHITE: Rgb = (255, 255, 255)


class Backdrop(NamedTuple):
    """The colours of the sky at the top and at the horizon, and what is drawn before it."""

    zenith: Rgb
    horizon: Rgb
    draw: Callable[[Pen, random.Random], None]


@functools.cache
def sky(name: str, width: int) -> Image.Image:
    """A square picture of ``width`` pixels holding the sky (or water) alone; draw on a copy."""
    zenith, horizon, _ = BACKDROPS[name]
    column = Image.new("RGB", (1, 32))
    for row in range(32):
        column.putpixel((0, row), mix(zenith, horizon, min(1.0, row / 31 / HORIZON)))
    return column.resize((width, width), Image.Resampling.BILINEAR)


def _meadow(pen: Pen, rng: random.Random) -> None:
    _clouds(pen, rng, WHITE)
    _sun(pen, rng, (255, 236, 150))
    pen.polygon(_hills(rng, 0.54, 0.04), (150, 200, 130))
    pen.polygon(_hills(rng, HORIZON, 0.02), (122, 184, 96))
    for x, y in _scatter(rng, 26):
        tuft = [
            (x - 0.012, y),
            (x - 0.006, y - 0.03),
            (x, y),
            (x + 0.008, y - 0.035),
            (x + 0.014, y),
        ]
        pen.line(tuft, (92, 156, 76), 0.006)


def _sea(pen: Pen, rng: random.Random) -> None:
    _clouds(pen, rng, (255, 244, 234))
    pen.polygon(_hills(rng, HORIZON, 0.004), (74, 148, 186))
    for depth in range(6):
        y = HORIZON + 0.03 + 0.065 * depth
        phase = rng.uniform(0, 6)
        crest = [(x / 30, y + 0.008 * math.sin(x * 0.9 + phase)) for x in range(31)]
        pen.line(crest, (110, 178, 208), 0.008)


def _reef(pen: Pen, rng: random.Random) -> None:
    for _ in range(3):
        x = rng.uniform(0, 0.9)
        beam = [(x, 0), (x + 0.08, 0), (x - 0.06, 1), (x - 0.24, 1)]
        pen.polygon(beam, (255, 255, 255, 22))
    pen.polygon(_hills(rng, 0.78, 0.025), (214, 198, 150))
    for _ in range(5):
        x, height = rng.uniform(0.02, 0.98), rng.uniform(0.1, 0.22)
        weed = [(x + 0.015 * math.sin(step * 1.2), 0.86 - height * step / 8) for step in range(9)]
        pen.line(weed, (62, 140, 116), 0.014)
    for x, y in _scatter(rng, 14, top=0.05, bottom=0.75):
        pen.ellipse(x, y, 0.009, 0.009, (214, 240, 244))
    _pebbles(pen, rng, (188, 170, 124), top=0.84)


def _desert(pen: Pen, rng: random.Random) -> None:
    _sun(pen, rng, (255, 250, 220))
    pen.polygon(_hills(rng, 0.55, 0.05), (226, 184, 124))
    pen.polygon(_hills(rng, HORIZON, 0.02), (236, 202, 146))
    for depth in range(5):
        y, start = 0.67 + 0.06 * depth, rng.uniform(0, 0.7)
        ripple = [(start + x / 60, y + 0.006 * math.sin(x * 0.7)) for x in range(16)]
        pen.line(ripple, (218, 178, 120), 0.006)
    _pebbles(pen, rng, (196, 156, 104), top=0.66)


def _snow(pen: Pen, rng: random.Random) -> None:
    pen.polygon(_hills(rng, 0.53, 0.05), (206, 218, 232))
    for _ in range(4):
        x, y, height = rng.uniform(0, 1), rng.uniform(0.53, 0.57), rng.uniform(0.06, 0.11)
        fir = [(x, y - height), (x + 0.35 * height, y), (x - 0.35 * height, y)]
        pen.polygon(fir, (150, 176, 178))
    pen.polygon(_hills(rng, HORIZON, 0.02), (238, 243, 250))
    for x, y in _scatter(rng, 60, top=0.02, bottom=0.98):
        radius = rng.uniform(0.004, 0.008)
        pen.ellipse(x, y, radius, radius, WHITE)


def _night(pen: Pen, rng: random.Random) -> None:
    for x, y in _scatter(rng, 45, top=0.02, bottom=0.55):
        radius = rng.uniform(0.002, 0.005)
        pen.ellipse(x, y, radius, radius, (210, 214, 236))
    x, y = rng.choice((rng.uniform(0.06, 0.14), rng.uniform(0.86, 0.94))), rng.uniform(0.08, 0.14)
    pen.polygon(
        [*arc(x, y, 0.06, 0.06, 50, 310), *arc(x + 0.035, y, 0.05, 0.05, 290, 70)], (236, 232, 206)
    )
    pen.polygon(_hills(rng, 0.56, 0.04), (38, 46, 78))
    pen.polygon(_hills(rng, HORIZON, 0.02), (54, 66, 92))
    _pebbles(pen, rng, (70, 82, 110), top=0.66)


def _room(pen: Pen, rng: random.Random) -> None:
    wall = rng.choice(((232, 222, 204), (212, 222, 214), (226, 212, 218), (214, 218, 230)))
    pen.polygon([(0, 0), (1, 0), (1, HORIZON), (0, HORIZON)], wall)
    stripe, gap = mix(wall, WHITE, 0.35), rng.uniform(0.1, 0.16)
    for step in range(int(1 / gap) + 1):
        pen.line([(step * gap, 0), (step * gap, HORIZON)], stripe, 0.012)
    _wall_picture(pen, rng)
    pen.polygon([(0, HORIZON), (1, HORIZON), (1, 1), (0, 1)], (190, 152, 112))
    for step in range(-6, 17):
        pen.line(
            [(0.5 + (step / 10 - 0.5) * 0.6, HORIZON), (0.5 + (step / 10 - 0.5) * 1.6, 1)],
            (174, 136, 98),
            0.006,
        )
    pen.line([(0, HORIZON), (1, HORIZON)], (246, 242, 234), 0.022)


def _wall_picture(pen: Pen, rng: random.Random) -> None:
    left, top, width = rng.uniform(0.02, 0.75), rng.uniform(0.04, 0.12), rng.uniform(0.14, 0.22)
    right, foot = left + width, top + 0.8 * width
    pen.polygon([(left, top), (right, top), (right, foot), (left, foot)], (176, 150, 118))
    rim = 0.015
    inner = [
        (left + rim, top + rim),
        (right - rim, top + rim),
        (right - rim, foot - rim),
        (left + rim, foot - rim),
    ]
    pen.polygon(inner, (206, 220, 224))
    hill = [inner[3], (left + width * rng.uniform(0.3, 0.7), top + 0.4 * width), inner[2]]
    pen.polygon(hill, (166, 190, 168))


def _hills(rng: random.Random, y: float, swing: float) -> list[Point]:
    """Land from a wavy line near ``y`` down to the bottom."""
    phase, waves = rng.uniform(0, 6), rng.uniform(3, 7)
    line = [(x / 24, y + swing * math.sin(waves * x / 24 + phase)) for x in range(25)]
    return [*line, (1, 1), (0, 1)]


def _scatter(
    rng: random.Random, count: int, top: float = 0.64, bottom: float = 0.99
) -> list[Point]:
    return [(rng.uniform(0, 1), rng.uniform(top, bottom)) for _ in range(count)]


def _pebbles(pen: Pen, rng: random.Random, colour: Rgb, top: float) -> None:
    for x, y in _scatter(rng, 18, top=top):
        pen.ellipse(x, y, rng.uniform(0.006, 0.014), 0.006, colour)


def _clouds(pen: Pen, rng: random.Random, colour: Rgb) -> None:
    for _ in range(rng.randint(1, 3)):
        x, y, width = rng.uniform(0, 1), rng.uniform(0.05, 0.35), rng.uniform(0.05, 0.09)
        for shift, radius in ((-1.0, 0.6), (0.0, 1.0), (1.0, 0.7)):
            pen.ellipse(x + shift * width, y, radius * width, 0.55 * radius * width, (*colour, 190))


def _sun(pen: Pen, rng: random.Random, colour: Rgb) -> None:
    x, y = rng.choice((rng.uniform(0.0, 0.12), rng.uniform(0.88, 1.0))), rng.uniform(0.02, 0.1)
    for radius, alpha in ((0.16, 60), (0.12, 90), (0.08, 255)):
        pen.ellipse(x, y, radius, radius, (*colour, alpha))


BACKDROPS = {
    "meadow": Backdrop((128, 188, 236), (214, 234, 246), _meadow),
    "sea": Backdrop((168, 206, 236), (250, 232, 214), _sea),
    "reef": Backdrop((90, 186, 200), (28, 110, 150), _reef),
    "desert": Backdrop((150, 204, 232), (252, 226, 180), _desert),
    "snow": Backdrop((178, 196, 218), (220, 228, 240), _snow),
    "night": Backdrop((16, 20, 50), (50, 58, 104), _night),
    "room": Backdrop((230, 224, 210), (230, 224, 210), _room),
}
