"""Image files of all modes arrive upright, on one scale and without a loss of digits."""

import io
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from experiments.app.data import from_folder, images
from experiments.app.data.images import Kind

_SIDE = 6
_RANGES = {"uint8": 255, "uint16": 65535, "float32": 1}


def _numbers(seed, *shape, dtype=np.uint8, largest=255):
    return np.random.default_rng(seed).integers(0, largest + 1, shape).astype(dtype)


def _on_white(shown, alpha):
    alpha = alpha[..., None] / 255
    return alpha * shown + (1 - alpha) * 255


# Each makes an image of a mode, and what it shows as `[height, width, channels]` in float64.


def _bits(seed):
    bits = _numbers(seed, _SIDE, _SIDE + 1, dtype=bool, largest=1)
    return Image.fromarray(bits), bits[..., None] * 255.0


def _grey(seed):
    grey = _numbers(seed, _SIDE, _SIDE + 1)
    return Image.fromarray(grey), grey[..., None]


def _grey_alpha(seed):
    pixels = _numbers(seed, _SIDE, _SIDE + 1, 2)
    return Image.fromarray(pixels, "LA"), _on_white(pixels[..., :1], pixels[..., 1])


def _palette(seed):
    palette, places = _numbers(seed, 16, 3), _numbers(seed, _SIDE, _SIDE + 1, largest=15)
    image = Image.fromarray(places, "P")
    image.putpalette(palette.tobytes())
    return image, palette[places]


def _palette_alpha(seed):
    image, shown = _palette(seed)
    alphas = _numbers(seed + 1, 16)
    image.info["transparency"] = alphas.tobytes()
    return image, _on_white(shown, alphas[np.asarray(image)])


def _palette_hole(seed):
    image, shown = _palette(seed)
    image.info["transparency"] = 3
    return image, np.where(np.asarray(image)[..., None] == 3, 255, shown)


def _colour(seed):
    pixels = _numbers(seed, _SIDE, _SIDE + 1, 3)
    return Image.fromarray(pixels), pixels


def _colour_alpha(seed):
    pixels = _numbers(seed, _SIDE, _SIDE + 1, 4)
    return Image.fromarray(pixels), _on_white(pixels[..., :3], pixels[..., 3])


def _opaque(seed):
    pixels = _numbers(seed, _SIDE, _SIDE + 1, 4)
    pixels[..., 3] = 255
    return Image.fromarray(pixels), pixels[..., :3]


def _inks(seed):
    pixels = _numbers(seed, _SIDE, _SIDE + 1, 4)
    white = 255.0 - pixels
    return Image.fromarray(pixels, "CMYK"), white[..., :3] * white[..., 3:] / 255


def _sixteen(seed, largest=65535):
    pixels = _numbers(seed, _SIDE, _SIDE + 1, dtype=np.uint16, largest=largest)
    return Image.fromarray(pixels), pixels[..., None]


def _twelve(seed):
    return _sixteen(seed, largest=4095)


def _sixteen_big(seed):
    _, shown = _sixteen(seed)
    raw = shown[..., 0].astype(">u2").tobytes()
    return Image.frombytes("I;16B", (_SIDE + 1, _SIDE), raw), shown


def _integers(seed):
    pixels = np.random.default_rng(seed).integers(-(2**31), 2**31, (_SIDE, _SIDE + 1), np.int32)
    return Image.fromarray(pixels), pixels[..., None]


def _floats(seed):
    pixels = np.random.default_rng(seed).normal(0, 3, (_SIDE, _SIDE + 1)).astype(np.float32)
    return Image.fromarray(pixels), pixels[..., None]


# How a mode is made, the formats that keep it without loss, and its kind.
_CASES = {
    "1": (_bits, ("png", "tiff", "bmp", "pbm"), Kind(1, "uint8")),
    "L": (_grey, ("png", "tiff", "bmp", "pgm"), Kind(1, "uint8")),
    "LA": (_grey_alpha, ("png", "tiff"), Kind(1, "uint8")),
    "P": (_palette, ("png", "tiff", "bmp", "gif"), Kind(3, "uint8")),
    "P with alpha": (_palette_alpha, ("png",), Kind(3, "uint8")),
    "P with a transparent colour": (_palette_hole, ("png", "gif"), Kind(3, "uint8")),
    "RGB": (_colour, ("png", "tiff", "bmp", "ppm"), Kind(3, "uint8")),
    "RGBA": (_colour_alpha, ("png", "tiff"), Kind(3, "uint8")),
    "opaque RGBA": (_opaque, ("png", "tiff"), Kind(3, "uint8")),
    "CMYK": (_inks, ("tiff",), Kind(3, "uint8")),
    "I;16": (_sixteen, ("png", "tiff", "pgm"), Kind(1, "uint16")),
    "12 bits": (_twelve, ("png", "tiff", "pgm"), Kind(1, "uint16")),
    "I;16B": (_sixteen_big, ("tiff",), Kind(1, "uint16")),
    "I": (_integers, ("tiff",), Kind(1, "int32")),
    "F": (_floats, ("tiff", "pfm"), Kind(1, "float32")),
}
_FILES = [(mode, ending) for mode, case in _CASES.items() for ending in case[1]]

# What is shown of the stored rows and columns: where the first row and the first column of the file
# belong, as the EXIF standard has it.
_UPRIGHT = {
    1: lambda stored: stored,  # top, left
    2: lambda stored: stored[:, ::-1],  # top, right
    3: lambda stored: stored[::-1, ::-1],  # bottom, right
    4: lambda stored: stored[::-1],  # bottom, left
    5: lambda stored: stored.swapaxes(0, 1),  # left, top
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],  # right, top
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda stored: stored.swapaxes(0, 1)[::-1],  # left, bottom
}


def _oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _write(path, image, orientation=1):
    keeps = path.suffix in (".png", ".tiff")
    image.save(path, **({"exif": _oriented(orientation)} if keeps else {}))
    return orientation if keeps else 1


def _assert_shows(found, shown, kind, own):
    """Pixels of `own` kind, read as `kind`, are those shown, within the rounding of blending."""
    assert found.dtype == kind.dtype
    factor = 1 if own.dtype == kind.dtype else _RANGES[kind.dtype] / _RANGES[own.dtype]
    wanted = np.broadcast_to(factor * shown.astype(np.float64), found.shape)
    blended = own.dtype == "uint8" and np.any(shown % 1)
    allowed = 1.01 * factor if blended else 1e-7 * np.abs(wanted)
    assert (np.abs(found - wanted) <= allowed).all()


@pytest.mark.parametrize(("mode", "ending"), _FILES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_file_shows_what_was_put_into_it(tmp_path, mode, ending, orientation):
    make, _, kind = _CASES[mode]
    image, shown = make(orientation)
    path = tmp_path / f"x.{ending}"
    turned = _write(path, image, orientation)
    assert images.header(path, "x").kind == kind
    _assert_shows(images.read(path, kind, "x"), _UPRIGHT[turned](shown), kind, kind)


@pytest.mark.parametrize("ending", ["gif", "tiff", "png"])
def test_of_several_frames_the_first_is_read(tmp_path, ending):
    (image, shown), (later, _) = _grey(0), _grey(1)
    image.save(tmp_path / f"x.{ending}", save_all=True, append_images=[later])
    found = images.read(tmp_path / f"x.{ending}", Kind(1, "uint8"), "x")
    np.testing.assert_array_equal(found, shown)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_photographs_are_upright(tmp_path, ending, orientation):
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :16], stored[16:, 32:] = (255, 0, 0), (0, 0, 255)
    exif = _oriented(orientation)
    Image.fromarray(stored).save(tmp_path / f"x.{ending}", quality=100, exif=exif)
    found = images.read(tmp_path / f"x.{ending}", Kind(3, "uint8"), "x")
    wanted = _UPRIGHT[orientation](stored)
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).mean() < 8


_MIXED = [file for file in _FILES if file[0] != "I"]
_DRAWN = st.tuples(st.sampled_from(_MIXED), st.integers(0, 99), st.integers(1, 8))


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(st.lists(_DRAWN, min_size=1, max_size=6))
def test_any_modes_in_any_order_arrive_on_one_scale_in_the_widest_kind(drawn):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "class"
        folder.mkdir()
        written = []
        for index, ((mode, ending), seed, orientation) in enumerate(drawn):
            image, shown = _CASES[mode][0](seed)
            turned = _write(folder / f"{index}.{ending}", image, orientation)
            written.append((_UPRIGHT[turned](shown), _CASES[mode][2]))
        found = from_folder.open_splits(Path(name))
        kinds = [own for _, own in written]
        order = ["uint8", "uint16", "float32"]
        assert found.kind.channels == max(own.channels for own in kinds)
        assert found.kind.dtype == order[max(order.index(own.dtype) for own in kinds)]
        for index, (shown, own) in enumerate(written):
            pixels, label = found.sources["train"][index]
            assert label == 0
            assert pixels.shape == (*shown.shape[:2], found.kind.channels)
            _assert_shows(pixels, shown, found.kind, own)


@pytest.mark.parametrize("other", ["L", "RGB", "I;16", "F"])
def test_integers_without_a_range_are_not_mixed_with_others(tmp_path, other):
    (tmp_path / "class").mkdir()
    _integers(0)[0].save(tmp_path / "class" / "1.tiff")
    _CASES[other][0](0)[0].save(tmp_path / "class" / "2.tiff")
    with pytest.raises(ValueError, match=r"int32.* are together.*convert all to one"):
        from_folder.open_splits(tmp_path)


@pytest.mark.parametrize(
    ("mode", "transparent"), [("1", 255), ("L", 7), ("RGB", (7, 8, 9)), ("I;16", 700)]
)
def test_a_transparent_colour_is_white(tmp_path, mode, transparent):
    image = Image.new(mode, (4, 4))
    image.putpixel((1, 2), transparent)
    image.save(tmp_path / "x.png", transparency=transparent)
    header = images.header(tmp_path / "x.png", "x")
    assert header.transparent
    found = images.read(tmp_path / "x.png", header.kind, "x")
    wanted = np.zeros_like(found)
    wanted[2, 1] = np.iinfo(found.dtype).max
    np.testing.assert_array_equal(found, wanted)


def _encoded(ending, orientation=1):
    made = io.BytesIO()
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (16, 12, 3), np.uint8))
    image.save(made, ending, exif=_oriented(orientation))
    return made.getvalue()


_BYTES = [_encoded(ending, 6) for ending in ("jpeg", "png", "webp", "tiff")]


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(st.sampled_from(_BYTES), st.data())
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_named_and_nothing_else(encoded, data):
    damaged = bytearray(encoded)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(1, len(damaged)))]
    message = ""
    try:
        images.read(io.BytesIO(damaged), Kind(3, "uint8"), "cat/1.jpg")
    except images.CorruptImageError as error:
        message = str(error)
    assert message == "" or message.startswith("cat/1.jpg is no readable image")


@pytest.mark.parametrize("ending", ["jpeg", "png", "webp"])
@pytest.mark.filterwarnings("ignore")
def test_exif_data_that_nobody_can_read_costs_no_image(ending):
    image, made = _colour(0)[0], io.BytesIO()
    image.save(made, ending, exif=b"Exif\0\0" + b"II*\0" + b"\xff" * 20)
    made.seek(0)
    assert images.read(made, Kind(3, "uint8"), "x").shape == (_SIDE, _SIDE + 1, 3)


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_pixels_that_are_not_finite_are_named(tmp_path, spoilt):
    pixels = np.zeros((4, 4), np.float32)
    pixels[1, 1] = spoilt
    Image.fromarray(pixels).save(tmp_path / "x.tiff")
    with pytest.raises(images.CorruptImageError, match="cat/1 has pixels that are not finite"):
        images.read(tmp_path / "x.tiff", Kind(1, "float32"), "cat/1")


@pytest.mark.parametrize(
    ("own", "kind"), [("F", "uint8"), ("F", "uint16"), ("I", "float32"), ("L", "int32")]
)
def test_one_file_without_a_place_on_the_scale_of_a_data_set_is_refused(tmp_path, own, kind):
    _CASES[own][0](0)[0].save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match=rf"x.tiff has .* scale of the others, {kind}; convert it"):
        images.read_image(tmp_path / "x.tiff", (4, 4, 1), kind)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("shape", [(9, 12), (12, 9), (5, 5), (6, 31)])
def test_a_ramp_stays_a_ramp_when_it_is_cut(dtype, channels, shape):
    # Linear interpolation of a plane is that plane, away from the borders.
    rows, columns = np.indices(shape)
    scale = {"uint8": 4, "uint16": 1500, "int32": 10**6, "float32": 0.01}[dtype]
    plane = np.stack([scale * (rows + columns + k) for k in range(channels)], -1).astype(dtype)
    side = 3
    found = images.cut_square(plane, side)
    assert found.shape == (side, side, channels)
    assert found.dtype == plane.dtype
    middle = found[1, 1].astype(np.float64)
    wanted = scale * ((shape[0] - 1) / 2 + (shape[1] - 1) / 2 + np.arange(channels))
    np.testing.assert_allclose(middle, wanted, atol=1.6 * scale)
    np.testing.assert_allclose(np.diff(middle), scale, atol=max(1, 1e-3 * scale))
