"""The one path from a picture file to the network's input, shared by training and captioning.

A picture read in two ways would get two captions, so nothing else in the project decodes, rotates,
resizes or normalises an image for a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from showtell.errors import UserError
from showtell.types import PICTURE_FORMATS

# Left, top, right and bottom in pixels.
Box = tuple[float, float, float, float]
ResizeRule = Literal["whole", "crop"]
Interpolation = Literal["bilinear", "bicubic", "lanczos"]
Corner = Literal["upper_left", "upper_right", "lower_left", "lower_right"]

# Pillow's own warning limit for decompression bombs: 268 MB at three bytes a pixel.
MAX_PIXELS = 89_478_485
# Side of a zoomed view relative to the usual crop: large enough to keep what captions mention.
_ZOOM = 0.85
# Position from the left and from the top, as fractions of the free space.
_CORNERS: Mapping[Corner, tuple[float, float]] = {
    "upper_left": (0, 0),
    "upper_right": (1, 0),
    "lower_left": (0, 1),
    "lower_right": (1, 1),
}
# Of a `random_crop`: the least fraction of the area, and the range of log aspect ratios.
_LEAST_AREA = 0.5
_SHAPES = (math.log(3 / 4), math.log(4 / 3))
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class ImageError(UserError):
    """A file that cannot be read as a picture; names the file, the reason and the remedy."""


def load_image(path: Path) -> Image.Image:
    """Read a JPEG, PNG or WebP file as an upright 8-bit RGB picture.

    The EXIF orientation is applied, transparency is composited onto white, 16-bit grey is scaled to
    8 bits, and of an animation the first frame is taken.

    Raises:
        ImageError: the file is missing, empty, truncated, not a picture, or larger than
            ``MAX_PIXELS``.
    """
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as image:
            _refuse_bomb(image, path)
            image.load()
            return to_rgb(image)
    except UserError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such picture; check the path") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(_bomb_message(path)) from None
    except Exception as error:
        # On a damaged file Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error
        # and more; whichever it is, the file cannot be decoded.
        raise ImageError(_damage_message(path, error)) from None


def _refuse_bomb(image: Image.Image, path: Path) -> None:
    # Only the header is parsed so far; no memory for pixels is allocated.
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(_bomb_message(path))


def _bomb_message(path: Path) -> str:
    limit = MAX_PIXELS // 1_000_000
    return f"{path}: the picture has more than {limit} million pixels; store it smaller"


def _damage_message(path: Path, error: Exception) -> str:
    if isinstance(error, IsADirectoryError):
        return f"{path}: this is a folder, not a picture; name the pictures inside it"
    if isinstance(error, PermissionError):
        return f"{path}: the file may not be read; change its permissions"
    if isinstance(error, UnidentifiedImageError):
        if path.stat().st_size == 0:
            return f"{path}: the file is empty; fetch it again or remove it"
        return f"{path}: this is no JPEG, PNG or WebP picture; convert it or remove it"
    if isinstance(error, OSError) and error.errno:
        return f"{path}: the file cannot be read ({error.strerror}); check its name and its place"
    return f"{path}: the picture is damaged ({error}); fetch it again or remove it"


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened picture to upright 8-bit RGB, as ``load_image`` does."""
    image = _upright(image)
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion clips at 255, which turns nearly all of it white.
        levels = np.asarray(image).astype(np.float64) / 257.0
        return Image.fromarray(levels.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    # Of an RGB picture, ``convert`` would make a copy.
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        # Asked first, because ``exif_transpose`` copies a picture that is upright already.
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:
        # Many cameras and editors write broken EXIF; the pixels are good, so keep them as stored.
        return image


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an upright RGB picture becomes a network's input.

    ``size`` is the side S of the square input in pixels. ``resize`` is "whole": the whole picture
    is stretched to S x S, because captions describe all of it; or "crop": a square is cut out whose
    side is ``crop_fraction``, in (0, 1], of the shorter side, from the centre or, if given, from a
    ``corner``. (ImageNet's protocol of resizing to 342 px and cropping 299 px is a centre crop of
    299/342.) ``mean`` and ``std`` are per channel, for values scaled to [0, 1]. ``mirrored`` flips
    left and right.

    Raises:
        UserError: a value out of its range, or a crop fraction or corner that would have no effect.
    """

    size: int
    resize: ResizeRule
    crop_fraction: float
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mirrored: bool = False
    corner: Corner | None = None

    def __post_init__(self) -> None:
        # Lists arrive here from YAML and JSON; a frozen, hashable value needs tuples of floats.
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        object.__setattr__(self, "crop_fraction", float(self.crop_fraction))
        for problem in _problems(self):
            raise UserError(f"encoder preprocessing: {problem}")

    def __call__(self, image: Image.Image) -> Tensor:
        """The picture as a normalised float32 tensor of shape (3, S, S)."""
        return self.normalised(self.pixels(image))

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """The cropped and resized picture (S, S, 3), not yet normalised."""
        return self._pixels(image, self.view(image.width, image.height), mirrored=self.mirrored)

    def random_crop(self, image: Image.Image, random: np.random.Generator) -> NDArray[np.uint8]:
        """A random crop of the view, flipped with probability 1/2, resized to (S, S, 3).

        It covers at least half of the view's area, and its aspect ratio differs from the view's by
        a factor of 3/4 to 4/3. That is milder than ImageNet training (Szegedy et al. 2015, "Going
        Deeper with Convolutions"), because captions describe all of a picture.
        """
        left, top, right, bottom = self.view(image.width, image.height)
        area, shape = random.uniform(_LEAST_AREA, 1), math.exp(random.uniform(*_SHAPES))
        wide, high = (min(1.0, math.sqrt(area * each)) for each in (shape, 1 / shape))
        x = left + random.uniform(0, 1 - wide) * (right - left)
        y = top + random.uniform(0, 1 - high) * (bottom - top)
        box = (x, y, x + wide * (right - left), y + high * (bottom - top))
        return self._pixels(image, box, mirrored=random.random() < 0.5)

    def _pixels(self, image: Image.Image, box: Box, *, mirrored: bool) -> NDArray[np.uint8]:
        seen = image.resize(
            (self.size, self.size),
            _FILTERS[self.interpolation],
            # Crop and resize in one step: resizing first would make gigabytes of a 1 x 50,000
            # picture. The mapping is the same up to half a pixel.
            box=box,
        )
        if mirrored:
            seen = seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.array(seen)

    def normalised(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Normalise pixels (S, S, 3) to the network's input (3, S, S), float32.

        The reference of what engines do within the network: see ``in_network``.
        """
        # In place and per channel, because arithmetic on the whole transposed view takes eight
        # times as long.
        channels = pixels.transpose(2, 0, 1)
        tensor = np.empty(channels.shape, dtype=np.float32)
        for out, values, mean, std in zip(tensor, channels, self.mean, self.std, strict=True):
            np.divide(values, np.float32(255), out=out)
            out -= np.float32(mean)
            out /= np.float32(std)
        return torch.from_numpy(tensor)

    def in_network(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """``normalised`` as a first layer on ``device``: (B, S, S, 3) -> (B, 3, S, S), float32.

        The same operations, hence on a CPU the same bits. They run before the permutation, so that
        memory stays channels-last, as convolutions want it: otherwise it is reordered twice, a
        fortieth of a small network's time.
        """
        # A single number if all channels share it: that vectorizes, three numbers do not.
        mean, std = (
            torch.tensor(values if len(set(values)) > 1 else values[:1], device=device)
            for values in (self.mean, self.std)
        )
        return lambda pixels: ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)

    def view(self, width: int, height: int) -> Box:
        """The part of a picture that the network sees: left, top, right, bottom in pixels."""
        if self.resize == "whole":
            return (0, 0, width, height)
        side = min(width, height) * self.crop_fraction
        # Its relative place between the outermost ones, in each direction.
        x, y = (0.5, 0.5) if self.corner is None else _CORNERS[self.corner]
        left, top = x * (width - side), y * (height - side)
        return (left, top, left + side, top + side)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary for JSON; ``from_json`` gives an equal object back."""
        fields = asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        # Later fields are left out at their defaults: keys of existing stores depend on this JSON.
        return {k: v for k, v in fields.items() if v or k not in ("mirrored", "corner")}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Inverse of ``to_json``."""
        return cls(**fields)


def _part(corner: Corner | None, *, mirrored: bool) -> Callable[[Preprocessing], Preprocessing]:
    return lambda usual: replace(
        usual,
        resize="crop",
        crop_fraction=_ZOOM * usual.crop_fraction,
        corner=corner,
        mirrored=mirrored,
    )


# Views of a picture, by name. Captions hold for all of them, except for "left" and "right", which
# one caption in 250 mentions, and for what a crop leaves out.
VIEWS: Mapping[str, Callable[[Preprocessing], Preprocessing]] = {
    "original": lambda usual: usual,
    "mirrored": lambda usual: replace(usual, mirrored=True),
    "zoomed": _part(None, mirrored=False),
    "zoomed_mirrored": _part(None, mirrored=True),
    **{corner: _part(corner, mirrored=False) for corner in _CORNERS},
    **{f"{corner}_mirrored": _part(corner, mirrored=True) for corner in _CORNERS},
}


def view_names(views: str) -> tuple[str, ...]:
    """The names joined by ``+`` in ``views``, checked.

    Raises:
        ValueError: an unknown or repeated view, or the first is not ``original``.
    """
    names = tuple(views.split("+"))
    for name in names:
        if name not in VIEWS:
            raise ValueError(f"views={views}: {name} is none of {', '.join(VIEWS)}")
    if names[0] != "original" or len(set(names)) < len(names):
        raise ValueError(f"views={views}: begin with original, and name each view once")
    return names


def _problems(rule: Preprocessing) -> list[str]:
    checks = {
        f"size={rule.size} must be at least 1 px": rule.size >= 1,
        f"resize={rule.resize} must be whole or crop": rule.resize in get_args(ResizeRule),
        f"interpolation={rule.interpolation} must be one of {', '.join(_FILTERS)}": (
            rule.interpolation in _FILTERS
        ),
        f"crop_fraction={rule.crop_fraction} must be above 0 and at most 1": (
            0 < rule.crop_fraction <= 1
        ),
        f"crop_fraction={rule.crop_fraction} has no effect with resize=whole; set it to 1": (
            rule.resize != "whole" or rule.crop_fraction == 1
        ),
        f"corner={rule.corner} must be one of {', '.join(_CORNERS)}": (
            rule.corner is None or rule.corner in _CORNERS
        ),
        f"corner={rule.corner} has no effect with resize=whole; leave it out": (
            rule.resize != "whole" or rule.corner is None
        ),
        "mean and std must each have 3 values, the stds above 0": (
            len(rule.mean) == len(rule.std) == 3 and min(rule.std) > 0
        ),
    }
    return [problem for problem, holds in checks.items() if not holds]
