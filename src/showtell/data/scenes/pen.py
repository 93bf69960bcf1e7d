"""A pen that draws one thing in its own coordinates, wherever and however large it stands.

A thing fills the box x in [-0.5, 0.5], y in [-1, 0]: y grows downward and its foot is at y = 0.
Everything is a polygon, so turning and mirroring need no second way of drawing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import ImageDraw

Point = tuple[float, float]
Rgb = tuple[int, int, int]
Rgba = tuple[int, int, int, int]
Fill = Rgb | Rgba

ARC_STEPS = 32  # the largest ellipse is then at most 0.3 pixels off


@dataclass(frozen=True, slots=True)
class Paint:
    """One colour with the darker and the lighter tone that give a thing its volume."""

    base: Rgb
    dark: Rgb
    light: Rgb

    @classmethod
    def shaded(cls, base: Rgb) -> Paint:
        """Tones of ``base``: 40 % darker for outlines, 40 % of the way to white for highlights."""
        return cls(base, mix(base, (0, 0, 0), 0.4), mix(base, (255, 255, 255), 0.4))


def mix(start: Rgb, end: Rgb, share: float) -> Rgb:
    """The colour ``share`` of the way from ``start`` (0.0) to ``end`` (1.0)."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return red, green, blue


def arc(
    x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360
) -> list[Point]:
    """Points along an ellipse around (x, y), from ``start`` to ``end`` degrees, clockwise."""
    return [(x + rx * cos, y + ry * sin) for cos, sin in _unit_arc(start, end)]


@functools.cache  # a picture has hundreds of arcs, all of a few kinds
def _unit_arc(start: float, end: float) -> list[Point]:
    angles = [
        math.radians(start + (end - start) * step / ARC_STEPS) for step in range(ARC_STEPS + 1)
    ]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


@dataclass(frozen=True, slots=True)
class Pen:
    """Draws at a place of the canvas: foot at (x, y) pixels, ``size`` pixels to the unit."""

    canvas: ImageDraw.ImageDraw
    x: float
    y: float
    size: float
    turn_degrees: float = 0.0
    mirrored: bool = False

    def polygon(self, points: Iterable[Point], fill: Fill, outline: Fill | None = None) -> None:
        """A filled shape, with a line of constant relative width around it when outlined."""
        corners = self._pixels(points)
        self.canvas.polygon(corners, fill=fill)
        if outline is not None:
            width = max(2, round(0.028 * self.size))
            self.canvas.line([*corners, *corners[:2]], fill=outline, width=width, joint="curve")

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, fill: Fill, outline: Fill | None = None
    ) -> None:
        """An ellipse around (x, y)."""
        self.polygon(arc(x, y, rx, ry), fill, outline)

    def line(self, points: Iterable[Point], fill: Fill, width: float) -> None:
        """An open line, ``width`` in the thing's own unit."""
        pixels = max(1, round(width * self.size))
        self.canvas.line(self._pixels(points), fill=fill, width=pixels, joint="curve")

    def _pixels(self, points: Iterable[Point]) -> list[Point]:
        """From the thing's coordinates to the canvas: mirrored, then turned about its middle."""
        angle = math.radians(self.turn_degrees)
        right, down = self.size * math.cos(angle), self.size * math.sin(angle)
        side = -1 if self.mirrored else 1
        middle = self.y - self.size / 2
        return [
            (
                self.x + side * x * right - (y + 0.5) * down,
                middle + side * x * down + (y + 0.5) * right,
            )
            for x, y in points
        ]
