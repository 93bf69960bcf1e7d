"""The one path from a picture file to the network's input."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms import v2

from showtell.errors import UserError
from showtell.vision.images import (
    MAX_PIXELS,
    VIEWS,
    ImageError,
    Preprocessing,
    load_image,
    to_rgb,
)

UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def rule(size: int = 4, **changes: object) -> Preprocessing:
    fields = {"resize": "whole", "crop_fraction": 1, "interpolation": "bilinear", **UNIT}
    return Preprocessing(size=size, **(fields | changes))  # type: ignore[arg-type]


def quadrants() -> Image.Image:
    """Red and green above, blue and white below: every turn and flip of it looks different."""
    pixels = np.zeros((32, 48, 3), dtype=np.uint8)
    pixels[:16, :24] = 255, 0, 0
    pixels[:16, 24:] = 0, 255, 0
    pixels[16:, :24] = 0, 0, 255
    pixels[16:, 24:] = 255, 255, 255
    return Image.fromarray(pixels)


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    """Rounded colours (0 or 1 per channel): top left, top right, bottom left, bottom right."""
    pixels = np.asarray(image)
    return [tuple(pixels[y, x] // 128) for y, x in ((2, 2), (2, -3), (-3, 2), (-3, -3))]


# EXIF 2.3, tag 274: which transformation of the stored pixels shows the scene upright.
STORED_FOR_ORIENTATION = {
    1: [],
    2: [Image.Transpose.FLIP_LEFT_RIGHT],
    3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM],
    5: [Image.Transpose.TRANSPOSE],
    6: [Image.Transpose.ROTATE_90],  # to be turned clockwise, so stored turned anticlockwise
    7: [Image.Transpose.TRANSVERSE],
    8: [Image.Transpose.ROTATE_270],
}


@pytest.mark.parametrize("orientation", STORED_FOR_ORIENTATION)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    stored = quadrants()
    for step in STORED_FOR_ORIENTATION[orientation]:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    upright = load_image(tmp_path / "turned.jpg")
    assert upright.size == (48, 32)
    assert corners(upright) == [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_lose_the_picture(tmp_path: Path) -> None:
    quadrants().save(tmp_path / "odd.jpg", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff\xff\xff")
    assert load_image(tmp_path / "odd.jpg").size == (48, 32)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_the_three_formats_give_the_same_picture(tmp_path: Path, suffix: str) -> None:
    quadrants().save(tmp_path / f"picture.{suffix}", quality=95)
    image = load_image(tmp_path / f"picture.{suffix}")
    assert image.mode == "RGB"
    assert corners(image) == [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)]


@pytest.mark.parametrize("mode", ["L", "CMYK", "YCbCr"])
def test_other_colour_spaces_become_rgb(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (8, 8), (90, 90, 90)).convert(mode).save(tmp_path / "grey.jpg", quality=95)
    image = load_image(tmp_path / "grey.jpg")
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - 90).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_opaque_png_modes(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / "white.png")
    assert np.asarray(load_image(tmp_path / "white.png")).tolist() == [[[255] * 3] * 8] * 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    layer = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    layer.putpixel((1, 0), (0, 0, 0, 255))
    assert np.asarray(to_rgb(layer.convert(mode))).tolist() == [[[255] * 3, [0] * 3]]


def test_transparent_palette_entry_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=0)
    assert np.asarray(load_image(tmp_path / "palette.png")).tolist() == [[[255] * 3, [40, 50, 60]]]


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    assert np.asarray(load_image(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 1, 100, 255]


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert np.asarray(load_image(tmp_path / "moving.webp")).min() == 255


def bomb(path: Path) -> None:
    """A PNG of a hundred bytes whose header asks for 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9))
    )


def half_a_jpeg(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def broken_png(path: Path) -> None:
    quadrants().save(path, format="PNG")
    content = bytearray(path.read_bytes())
    content[45:60] = b"\xff" * 15
    path.write_bytes(content)


def tiff(path: Path) -> None:
    quadrants().save(path, format="TIFF")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_text("<html>404</html>"), "no JPEG, PNG or WebP"),
        (lambda path: path.mkdir(), "folder"),
        (lambda path: None, "no such picture"),
        (lambda path: path.symlink_to(path), "cannot be read \\("),
        (lambda path: path.write_bytes(b"\xff\xd8\xff"), "damaged|no JPEG"),
        (half_a_jpeg, "damaged"),
        (broken_png, "damaged"),
        (bomb, "million pixels"),
        (tiff, "no JPEG, PNG or WebP"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_read_is_named_in_one_sentence(tmp_path, make, reason) -> None:
    path = tmp_path / "picture.jpg"
    make(path)
    with pytest.raises(ImageError, match=reason) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_pictures_just_beyond_the_limit_are_refused_before_decoding() -> None:
    assert 80e6 < MAX_PIXELS < 100e6


def test_whole_keeps_the_borders_and_crop_loses_them() -> None:
    image = Image.new("RGB", (300, 100), "black")
    image.paste("white", (100, 0, 200, 100))  # the centred square is white
    assert rule(3)(image)[0, 1].tolist() == pytest.approx([0, 1, 0], abs=0.3)
    assert rule(3, resize="crop")(image).min() > 0.8


def test_values_by_hand() -> None:
    image = Image.new("RGB", (1, 1), (255, 0, 51))
    mean, std = (0.5, 0.25, 0.1), (0.5, 0.25, 0.2)
    tensor = rule(1, mean=mean, std=std)(image)
    assert tensor.dtype == torch.float32
    assert tensor.flatten().tolist() == pytest.approx([1.0, -1.0, 0.5])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_is_the_imagenet_protocol(interpolation: str) -> None:
    """torchvision resizes the shorter side and then crops whole pixels: the same, but for the
    half pixel and the border that rounding costs there. On a smooth picture that is little."""
    x, y = np.meshgrid(np.linspace(0, 3, 500), np.linspace(0, 2, 375))
    smooth = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=-1) * 100 + 128
    image = Image.fromarray(smooth.astype(np.uint8))
    ours = rule(299, resize="crop", crop_fraction=299 / 342, interpolation=interpolation)(image)
    theirs = v2.Compose(
        [
            v2.Resize(342, interpolation=v2.InterpolationMode(interpolation)),
            v2.CenterCrop(299),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )(image)
    assert (ours - theirs).abs().max() < 3 / 255


@pytest.mark.parametrize("size", [(1, 50_000), (50_000, 1), (1, 1)])
def test_extreme_shapes_cost_no_memory(size: tuple[int, int]) -> None:
    assert rule(8, resize="crop", crop_fraction=0.875)(Image.new("RGB", size)).shape == (3, 8, 8)


@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"]),
    resize=st.sampled_from(["whole", "crop"]),
    interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos"]),
)
def test_any_picture_becomes_a_normalised_square(width, height, mode, resize, interpolation):
    image = to_rgb(Image.new(mode, (width, height)))
    tensor = rule(5, resize=resize, interpolation=interpolation, **HALF)(image)
    assert tensor.shape == (3, 5, 5)
    assert tensor.is_contiguous()
    assert -1 <= tensor.min() <= tensor.max() <= 1


def test_json_round_trip() -> None:
    original = rule(299, resize="crop", crop_fraction=0.875, **HALF)
    assert Preprocessing.from_json(original.to_json()) == original
    assert hash(original) == hash(
        rule(299, resize="crop", crop_fraction=0.875, mean=[0.5] * 3, std=[0.5] * 3)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size=0"),
        ({"resize": "stretch"}, "resize=stretch"),
        ({"interpolation": "nearest"}, "interpolation=nearest"),
        ({"resize": "crop", "crop_fraction": 1.5}, "crop_fraction=1.5"),
        ({"crop_fraction": 0.875}, "no effect"),
        ({"corner": "upper_left"}, "corner=upper_left has no effect"),
        ({"resize": "crop", "corner": "middle"}, "corner=middle must be one of upper_left"),
        ({"std": (1.0, 1.0, 0.0)}, "stds above 0"),
        ({"mean": (0.5,)}, "3 values"),
    ],
)
def test_impossible_values_are_named(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rule(**{"size": 4, **change})


def test_a_mirrored_view_is_the_picture_turned_and_a_zoomed_one_its_middle() -> None:
    usual, random = rule(size=8), np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    turned = VIEWS["mirrored"](usual)
    torch.testing.assert_close(turned(picture), usual(picture).flip(2))
    torch.testing.assert_close(turned(picture), usual(ImageOps.mirror(picture)), atol=0.02, rtol=0)
    zoomed = VIEWS["zoomed"](usual)
    assert zoomed.view(60, 40) == pytest.approx((13, 3, 47, 37))
    torch.testing.assert_close(VIEWS["zoomed_mirrored"](usual)(picture), zoomed(picture).flip(2))


@pytest.mark.parametrize(
    ("corner", "box"),
    [
        ("upper_left", (0, 0, 34, 34)),
        ("upper_right", (26, 0, 60, 34)),
        ("lower_left", (0, 6, 34, 40)),
        ("lower_right", (26, 6, 60, 40)),
    ],
)
def test_a_corner_is_a_square_that_lies_there(corner: str, box: tuple[int, ...]) -> None:
    usual, random = rule(size=8), np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    seen = VIEWS[corner](usual)
    assert seen.view(60, 40) == pytest.approx(box)
    # At its edges the filter reads a little of what lies beside.
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(seen(picture)[inner], usual(picture.crop(box))[inner])
    torch.testing.assert_close(VIEWS[f"{corner}_mirrored"](usual)(picture), seen(picture).flip(2))
    assert Preprocessing.from_json(seen.to_json()) == seen


def test_what_was_stored_before_there_were_views_is_found() -> None:
    assert set(rule(size=8).to_json()) == {
        *("size", "resize", "crop_fraction", "interpolation", "mean", "std")
    }
    assert len({str(VIEWS[name](rule(size=8)).to_json()) for name in VIEWS}) == len(VIEWS) == 12


def test_a_random_crop_is_a_large_part_of_the_picture_in_either_direction() -> None:
    usual, random = rule(size=32), np.random.default_rng(1)
    # Red grows from left to right, green from top to bottom: a crop tells where it was taken.
    ramp = np.arange(256, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp[None, :], ramp[:, None], np.uint8(0)), axis=2)
    picture = Image.fromarray(pixels)
    areas, mirrored = [], 0
    for _ in range(300):
        red, green, _ = usual.normalised(usual.random_crop(picture, random))
        width, height = (
            float(t.amax() - t.amin()) * 32 / 31 for t in (red.mean(dim=0), green.mean(dim=1))
        )
        areas.append(width * height)
        mirrored += int(red[0, 0] > red[0, -1])
        assert float(red.min()) >= 0 and float(red.max()) <= 1
        assert 0.7 < width / height < 1.4
    assert 0.45 < min(areas) < 0.55 and 0.9 < max(areas) < 1.05
    assert 120 < mirrored < 180
    same = [usual.random_crop(picture, np.random.default_rng(3)) for _ in range(2)]
    np.testing.assert_array_equal(*same)


def test_only_what_is_mirrored_says_so() -> None:
    """Stores are found by what describes their preprocessing, older ones too."""
    for name, view in VIEWS.items():
        fields = view(rule(size=8)).to_json()
        assert ("mirrored" in fields) == name.endswith("mirrored")
        assert Preprocessing.from_json(fields) == view(rule(size=8))
