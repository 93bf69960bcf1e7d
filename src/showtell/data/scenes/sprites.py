"""How each kind of thing looks, drawn with a pen in the thing's own unit box (see pen.py)."""

from __future__ import annotations

import math
from collections.abc import Callable

from showtell.data.scenes.pen import Paint, Pen, Point, Rgb, Rgba, arc, mix

Sprite = Callable[[Pen, Paint], None]

INK: Rgb = (40, 36, 44)
WOOD: Rgb = (134, 88, 50)
LEAF: Rgb = (58, 140, 62)
GLASS: Rgb = (206, 232, 244)
SHINE: Rgba = (255, 255, 255, 150)


def ball(pen: Pen, paint: Paint) -> None:
    """A beach ball: dark seams, a highlight."""
    pen.ellipse(0, -0.5, 0.48, 0.48, paint.base, paint.dark)
    for bend in (0.16, -0.16):
        pen.line(arc(0, -0.5, abs(bend), 0.46, -90, 90 if bend > 0 else -270), paint.dark, 0.025)
    pen.ellipse(0, -0.93, 0.09, 0.04, paint.light)
    pen.ellipse(-0.22, -0.7, 0.1, 0.07, SHINE)


def balloon(pen: Pen, paint: Paint) -> None:
    """A toy balloon on a string."""
    string = [(0.03 * math.sin(step), -0.28 + 0.028 * step) for step in range(11)]
    pen.line(string, INK, 0.018)
    pen.polygon([(0, -0.31), (-0.06, -0.22), (0.06, -0.22)], paint.base, paint.dark)
    pen.ellipse(0, -0.65, 0.3, 0.35, paint.base, paint.dark)
    pen.ellipse(-0.11, -0.8, 0.06, 0.09, SHINE)


def basket(pen: Pen, paint: Paint) -> None:
    """The far rim and the handle; the woven front hides the lower part of what is inside."""
    pen.line(arc(0, -0.5, 0.4, 0.46, 180, 360), paint.dark, 0.09)
    pen.line(arc(0, -0.5, 0.4, 0.46, 180, 360), paint.base, 0.055)
    pen.ellipse(0, -0.5, 0.46, 0.1, paint.dark, paint.dark)


def basket_front(pen: Pen, paint: Paint) -> None:
    """The woven front of a basket."""
    outline = [(-0.46, -0.5), *arc(0, -0.5, 0.46, 0.1, 180, 0), (0.46, -0.5), (0.34, 0), (-0.34, 0)]
    pen.polygon(outline, paint.base, paint.dark)
    for step in range(1, 7):
        x = -0.46 + 0.92 * step / 7
        pen.line([(x, -0.42), (0.74 * x, -0.01)], paint.dark, 0.018)
    for y, half in ((-0.28, 0.4), (-0.14, 0.37)):
        pen.line([(-half, y), (half, y)], paint.dark, 0.018)


def bird(pen: Pen, paint: Paint) -> None:
    """A song bird with a raised wing."""
    pen.polygon([(-0.2, -0.36), (-0.5, -0.42), (-0.47, -0.24)], paint.dark, paint.dark)
    pen.line([(0.0, -0.15), (0.0, 0.0), (0.08, 0.0)], INK, 0.025)
    pen.line([(0.1, -0.15), (0.1, 0.0), (0.18, 0.0)], INK, 0.025)
    pen.ellipse(0, -0.33, 0.3, 0.21, paint.base, paint.dark)
    pen.polygon([(0.4, -0.6), (0.5, -0.54), (0.4, -0.5)], (240, 160, 40), INK)
    pen.ellipse(0.28, -0.56, 0.16, 0.16, paint.base, paint.dark)
    pen.polygon(
        [(0.1, -0.36), (-0.12, -0.36), (-0.3, -0.9), (0.04, -0.68)], paint.light, paint.dark
    )
    pen.ellipse(0.33, -0.6, 0.035, 0.035, INK)


def boat(pen: Pen, paint: Paint) -> None:
    """A sailing boat: hull and main sail in its colour, a white jib."""
    pen.line([(0, -0.98), (0, -0.2)], WOOD, 0.04)
    pen.polygon([(0.04, -0.94), (0.42, -0.3), (0.04, -0.3)], paint.base, paint.dark)
    pen.polygon([(-0.04, -0.86), (-0.32, -0.3), (-0.04, -0.3)], (250, 248, 240), paint.dark)
    hull = [(-0.48, -0.24), (0.48, -0.24), (0.32, 0), (-0.32, 0)]
    pen.polygon(hull, paint.base, paint.dark)
    pen.line([(-0.43, -0.17), (0.43, -0.17)], paint.light, 0.035)


def bowl(pen: Pen, paint: Paint) -> None:
    """The far side of a glass bowl with water in it."""
    pen.polygon(_bowl_outline(), (*mix(paint.base, GLASS, 0.35), 235), paint.dark)
    water = [(-0.47, -0.5), (0.47, -0.5), *arc(0, -0.42, 0.48, 0.42, 10, 170)]
    pen.polygon(water, (*mix(paint.base, GLASS, 0.15), 220))


def bowl_front(pen: Pen, paint: Paint) -> None:
    """Its rim and a reflection, over what is inside; the rim and the foot carry the colour."""
    pen.polygon([(-0.2, -0.04), (0.2, -0.04), (0.26, 0), (-0.26, 0)], paint.base, paint.dark)
    pen.polygon(
        [(-0.36, -0.82), (0.36, -0.82), (0.34, -0.72), (-0.34, -0.72)], paint.base, paint.dark
    )
    pen.line(arc(0, -0.42, 0.4, 0.34, 150, 205), SHINE, 0.05)


def _bowl_outline() -> list[Point]:
    return [(-0.34, -0.78), (0.34, -0.78), *arc(0, -0.42, 0.48, 0.42, -50, 230)]


def box(pen: Pen, paint: Paint) -> None:
    """A wooden crate seen a little from above."""
    pen.polygon(
        [(-0.44, -0.6), (-0.34, -0.76), (0.34, -0.76), (0.44, -0.6)], paint.light, paint.dark
    )
    pen.polygon([(-0.44, -0.6), (0.44, -0.6), (0.44, 0), (-0.44, 0)], paint.base, paint.dark)
    pen.line([(-0.36, -0.52), (0.36, -0.08)], paint.dark, 0.035)
    frame = [(-0.36, -0.52), (0.36, -0.52), (0.36, -0.08), (-0.36, -0.08), (-0.36, -0.52)]
    pen.line(frame, paint.dark, 0.035)


def car(pen: Pen, paint: Paint) -> None:
    """A saloon from the side."""
    cabin = [(-0.3, -0.36), (-0.2, -0.6), (0.12, -0.6), (0.27, -0.36)]
    pen.polygon(cabin, paint.base, paint.dark)
    pen.polygon([(-0.24, -0.37), (-0.17, -0.55), (-0.04, -0.55), (-0.04, -0.37)], GLASS, paint.dark)
    pen.polygon([(0.0, -0.37), (0.0, -0.55), (0.1, -0.55), (0.2, -0.37)], GLASS, paint.dark)
    body = [
        (-0.5, -0.12),
        (-0.49, -0.34),
        (-0.44, -0.38),
        (0.3, -0.37),
        (0.47, -0.31),
        (0.5, -0.12),
    ]
    pen.polygon(body, paint.base, paint.dark)
    pen.ellipse(0.44, -0.26, 0.035, 0.04, (255, 240, 170), paint.dark)
    for x in (-0.28, 0.28):
        pen.ellipse(x, -0.12, 0.12, 0.12, INK)
        pen.ellipse(x, -0.12, 0.055, 0.055, (190, 190, 196))


def cat(pen: Pen, paint: Paint) -> None:
    """A sitting cat that looks at you."""
    pen.line(arc(0.24, -0.2, 0.2, 0.17, 100, -60), paint.dark, 0.09)
    pen.line(arc(0.24, -0.2, 0.2, 0.17, 100, -60), paint.base, 0.055)
    pen.ellipse(0, -0.26, 0.26, 0.26, paint.base, paint.dark)
    for side in (-1, 1):
        pen.polygon(
            [(side * 0.04, -0.86), (side * 0.24, -1), (side * 0.25, -0.7)], paint.base, paint.dark
        )
        pen.polygon(
            [(side * 0.1, -0.86), (side * 0.2, -0.93), (side * 0.21, -0.78)], (240, 170, 180)
        )
        pen.ellipse(side * 0.11, -0.05, 0.09, 0.05, paint.light, paint.dark)
    pen.ellipse(0, -0.68, 0.27, 0.23, paint.base, paint.dark)
    for side in (-1, 1):
        pen.ellipse(side * 0.11, -0.72, 0.055, 0.065, (250, 250, 240), INK)
        pen.ellipse(side * 0.11, -0.72, 0.025, 0.05, INK)
        pen.line([(side * 0.06, -0.6), (side * 0.32, -0.63)], INK, 0.012)
        pen.line([(side * 0.06, -0.58), (side * 0.31, -0.55)], INK, 0.012)
    pen.polygon([(-0.035, -0.63), (0.035, -0.63), (0, -0.59)], (226, 110, 130), INK)


def crab(pen: Pen, paint: Paint) -> None:
    """A crab with raised claws."""
    for side in (-1, 1):
        for reach, foot in ((0.36, 0.0), (0.44, -0.06), (0.48, -0.14)):
            knee = (side * reach, -0.22)
            pen.line([(side * 0.2, -0.2), knee, (side * (reach + 0.02), foot)], paint.dark, 0.045)
        pen.line([(side * 0.24, -0.32), (side * 0.38, -0.44)], paint.dark, 0.07)
        pen.polygon(arc(side * 0.38, -0.56, 0.12, 0.13, -60, 240), paint.base, paint.dark)
        pen.polygon([(side * 0.38, -0.54), (side * 0.33, -0.72), (side * 0.43, -0.72)], paint.dark)
        pen.line([(side * 0.09, -0.4), (side * 0.1, -0.54)], paint.dark, 0.035)
    pen.ellipse(0, -0.26, 0.31, 0.19, paint.base, paint.dark)
    for side in (-1, 1):
        pen.ellipse(side * 0.1, -0.56, 0.05, 0.05, (255, 255, 255), INK)
        pen.ellipse(side * 0.1, -0.56, 0.022, 0.022, INK)
    pen.line(arc(0, -0.26, 0.12, 0.08, 20, 160), paint.dark, 0.025)


def cup(pen: Pen, paint: Paint) -> None:
    """A mug with a handle."""
    pen.line(arc(0.26, -0.38, 0.18, 0.18, -100, 100), paint.dark, 0.11)
    pen.line(arc(0.26, -0.38, 0.18, 0.18, -100, 100), paint.base, 0.065)
    sides = [(-0.36, -0.72), (0.3, -0.72), (0.24, 0), (-0.3, 0)]
    pen.polygon(sides, paint.base, paint.dark)
    pen.ellipse(-0.03, -0.72, 0.33, 0.08, paint.light, paint.dark)
    pen.ellipse(-0.03, -0.71, 0.26, 0.05, (96, 60, 40))
    pen.line([(-0.24, -0.58), (-0.21, -0.16)], SHINE, 0.05)


def fish(pen: Pen, paint: Paint) -> None:
    """A fish from the side, with scales."""
    pen.polygon(
        [(-0.24, -0.5), (-0.5, -0.74), (-0.44, -0.5), (-0.5, -0.26)], paint.base, paint.dark
    )
    pen.polygon([(-0.12, -0.7), (0.06, -0.88), (0.2, -0.7)], paint.dark, paint.dark)
    pen.ellipse(0.1, -0.5, 0.38, 0.26, paint.base, paint.dark)
    for x in (-0.12, 0.0, 0.12):
        pen.line(arc(x, -0.5, 0.07, 0.16, -80, 80), paint.dark, 0.02)
    pen.polygon([(0.06, -0.42), (-0.08, -0.32), (0.12, -0.3)], paint.light, paint.dark)
    pen.ellipse(0.32, -0.56, 0.055, 0.055, (255, 255, 255), INK)
    pen.ellipse(0.335, -0.56, 0.026, 0.026, INK)


def flower(pen: Pen, paint: Paint) -> None:
    """Six petals on a stem with two leaves."""
    pen.line([(0, -0.6), (0.02, -0.3), (0, 0)], LEAF, 0.05)
    for side in (-1, 1):
        leaf = [(0, -0.12), (side * 0.14, -0.3), (side * 0.3, -0.3), (side * 0.18, -0.14)]
        pen.polygon(leaf, LEAF, mix(LEAF, INK, 0.5))
    for petal in range(6):
        angle = math.radians(60 * petal)
        x, y = 0.19 * math.cos(angle), 0.19 * math.sin(angle)
        pen.ellipse(x, y - 0.68, 0.125, 0.125, paint.base, paint.dark)
    pen.ellipse(0, -0.68, 0.11, 0.11, (120, 76, 40), INK)


def house(pen: Pen, paint: Paint) -> None:
    """A cottage: walls in its colour under a roof of the dark tone."""
    pen.polygon([(0.2, -0.96), (0.32, -0.96), (0.32, -0.6), (0.2, -0.6)], (150, 90, 76), INK)
    pen.polygon([(-0.4, -0.54), (0.4, -0.54), (0.4, 0), (-0.4, 0)], paint.base, paint.dark)
    pen.polygon(
        [(-0.5, -0.52), (0, -0.96), (0.5, -0.52)], mix(paint.base, paint.dark, 0.2), paint.dark
    )
    pen.polygon([(-0.09, -0.3), (0.09, -0.3), (0.09, 0), (-0.09, 0)], WOOD, INK)
    for x in (-0.26, 0.26):
        pane = [(x - 0.09, -0.42), (x + 0.09, -0.42), (x + 0.09, -0.22), (x - 0.09, -0.22)]
        pen.polygon(pane, (255, 244, 190), paint.dark)
        pen.line([(x, -0.42), (x, -0.22)], paint.dark, 0.02)


def kite(pen: Pen, paint: Paint) -> None:
    """A diamond with a tail."""
    tail = [(0.1 * math.sin(1.3 * step), -0.3 + 0.03 * step) for step in range(11)]
    pen.line(tail, INK, 0.018)
    for x, y in (tail[4], tail[8]):
        pen.polygon(
            [
                (x - 0.08, y - 0.04),
                (x + 0.08, y + 0.04),
                (x + 0.08, y - 0.04),
                (x - 0.08, y + 0.04),
            ],
            paint.base,
            paint.dark,
        )
    top, right, foot, left = (0, -1), (0.34, -0.7), (0, -0.28), (-0.34, -0.7)
    pen.polygon([top, right, foot, left], paint.base, paint.dark)
    pen.polygon([top, right, (0, -0.7)], paint.light)
    pen.polygon([foot, left, (0, -0.7)], paint.light)
    pen.line([top, foot], paint.dark, 0.022)
    pen.line([left, right], paint.dark, 0.022)


def rocket(pen: Pen, paint: Paint) -> None:
    """A space rocket under power."""
    pen.polygon([(-0.1, -0.2), (0, 0), (0.1, -0.2)], (255, 200, 70), (240, 120, 40))
    for side in (-1, 1):
        fin = [(side * 0.14, -0.46), (side * 0.34, -0.16), (side * 0.12, -0.2)]
        pen.polygon(fin, paint.dark, paint.dark)
    hull = [
        (-0.13, -0.18),
        (-0.2, -0.5),
        (-0.13, -0.8),
        (0, -1),
        (0.13, -0.8),
        (0.2, -0.5),
        (0.13, -0.18),
    ]
    pen.polygon(hull, paint.base, paint.dark)
    pen.polygon([(-0.13, -0.8), (0, -1), (0.13, -0.8)], paint.light, paint.dark)
    pen.ellipse(0, -0.58, 0.095, 0.095, GLASS, INK)


def star(pen: Pen, paint: Paint) -> None:
    """A star with five points."""
    points = []
    for corner in range(10):
        radius = 0.5 if corner % 2 == 0 else 0.23
        angle = math.radians(36 * corner - 90)
        points.append((radius * math.cos(angle), radius * math.sin(angle) - 0.5))
    pen.polygon(points, paint.base, paint.dark)
    pen.polygon([points[9], points[0], (0, -0.5)], paint.light)
    pen.polygon([points[7], points[8], (0, -0.5)], paint.light)


def table(pen: Pen, paint: Paint) -> None:
    """A table with four legs."""
    for x in (-0.3, 0.3):
        pen.polygon(
            [(x - 0.03, -0.5), (x + 0.03, -0.5), (x + 0.03, -0.12), (x - 0.03, -0.12)], paint.dark
        )
    for x in (-0.42, 0.42):
        pen.polygon(
            [(x - 0.04, -0.5), (x + 0.04, -0.5), (x + 0.04, 0), (x - 0.04, 0)],
            paint.base,
            paint.dark,
        )
    pen.polygon([(-0.5, -0.52), (-0.4, -0.64), (0.4, -0.64), (0.5, -0.52)], paint.light, paint.dark)
    pen.polygon([(-0.5, -0.52), (0.5, -0.52), (0.5, -0.44), (-0.5, -0.44)], paint.base, paint.dark)


def tree(pen: Pen, paint: Paint) -> None:
    """A trunk under a round crown; the crown carries the colour."""
    pen.polygon([(-0.06, -0.45), (0.06, -0.45), (0.1, 0), (-0.1, 0)], WOOD, mix(WOOD, INK, 0.6))
    lobes = ((-0.24, -0.52, 0.22), (0.24, -0.52, 0.22), (-0.14, -0.76, 0.2), (0.14, -0.76, 0.2))
    for x, y, radius in lobes:
        pen.ellipse(x, y, radius, radius, paint.base, paint.dark)
    pen.ellipse(0, -0.62, 0.28, 0.26, paint.base)
    for x, y in ((-0.2, -0.66), (0.1, -0.8), (0.18, -0.52), (-0.06, -0.5)):
        pen.line(arc(x, y, 0.07, 0.05, 200, 340), paint.light, 0.03)


SPRITES: dict[str, Sprite] = {
    "ball": ball, "balloon": balloon, "basket": basket, "bird": bird, "boat": boat, "bowl": bowl,
    "box": box, "car": car, "cat": cat, "crab": crab, "cup": cup, "fish": fish, "flower": flower,
    "house": house, "kite": kite, "rocket": rocket, "star": star, "table": table, "tree": tree,
}  # fmt: skip

# What is drawn after the things inside a container, so that they are seen to be inside.
FRONTS: dict[str, Sprite] = {"basket": basket_front, "bowl": bowl_front}

# Height at which something stands on a host or in a container, and the room it has there.
REST_HEIGHT = {"basket": 0.22, "bowl": 0.14, "box": 0.68, "table": 0.58}
