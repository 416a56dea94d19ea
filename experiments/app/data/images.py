"""Images of files and records: their kind, their pixels upright and on one scale, cut to a size."""

import contextlib
import functools
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

with contextlib.suppress(ImportError):
    import pillow_heif  # pyright: ignore[reportMissingImports] - optional

    pillow_heif.register_heif_opener()

# Pixels of these have a known range, 0 to the largest number; those of the others are as they are.
_LARGEST = {"uint8": 255, "uint16": 65535}

# Formats that Pillow only writes, or only recognises.
_NOT_READ = {"BUFR", "GRIB", "HDF5", "MPEG", "PALM", "PDF"}

# Formats that begin with bytes by which no other file begins.
_UNMISTAKABLE = {"AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"}

HEIC_ENDINGS = {".heic", ".heif"}
HEIC_REMEDY = "pip install pillow-heif reads .heic"

# What follows the length of the first box of a HEIC file.
_HEIC_BRANDS = {b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")}


class CorruptImageError(Exception):
    """An image that cannot be decoded; the message names it."""


class Kind(NamedTuple):
    """Kind of pixels.

    Attributes:
      channels: 1 for grey, 3 for colour.
      dtype: uint8 (0 to 255), uint16 (0 to 65535), int32 or float32 (no range).
    """

    channels: int
    dtype: str

    def __str__(self) -> str:
        depth = {"uint8": "8-bit", "uint16": "16-bit", "int32": "32-bit", "float32": "float"}
        colour = {1: "grey", 3: "colour"}
        return (
            f"{depth.get(self.dtype, self.dtype)}"
            f" {colour.get(self.channels, f'{self.channels} channels')}"
        )


class Header(NamedTuple):
    """Description of an image in its file, before it is decoded.

    Attributes:
      mode: Pillow's.
      kind: of its pixels.
      side: the shorter one.
      transparent: it has an alpha channel or a transparent colour.
      halved: it has 16 bits a channel, of which Pillow reads the upper 8.
    """

    mode: str
    kind: Kind
    side: int
    transparent: bool
    halved: bool


@functools.cache
def _endings() -> set[str]:
    """Endings of the files that hold images, in lower case."""
    Image.preinit()  # the usual formats first: files are tried for each in turn
    known = Image.registered_extensions().items()
    return {ending for ending, name in known if name not in _NOT_READ}


def is_image(path: Path) -> bool:
    """Return whether a file holds an image, by its ending or, if that is unknown, by its content.

    Raw files of cameras (.cr2, .nef, .dng, …) are TIFF files of which Pillow reads a thumbnail, so
    a TIFF file needs its usual ending or none.
    """
    if path.suffix.lower() in _endings():
        return True
    formats = _UNMISTAKABLE & Image.OPEN.keys() - ({"TIFF"} if path.suffix else set())
    with contextlib.suppress(Exception), Image.open(path, formats=tuple(formats)):
        return True
    return False


def header(file: Path | io.BytesIO, name: str) -> Header:
    """Read what an image file says of itself.

    Raises:
      CorruptImageError: it is no image.
    """
    with _named(name, file), Image.open(file) as image:
        kind, layouts = _kind(image), [str(tile[3]) for tile in getattr(image, "tile", ())]
        return Header(
            mode=image.mode,
            kind=kind,
            side=min(image.size),
            transparent=image.has_transparency_data,
            halved=kind.dtype == "uint8" and any(";16" in layout for layout in layouts),
        )


def widest(kinds: Iterable[Kind]) -> Kind:
    """Return the kind that holds all of `kinds`: colour if one is, with the most digits of any.

    Raises:
      ValueError: 32-bit integers beside others; their range is not known.
    """
    kinds = set(kinds)
    dtypes = {kind.dtype for kind in kinds}
    if "int32" in dtypes and len(dtypes) > 1:
        raise ValueError(
            f"images of {', '.join(sorted(dtypes))} are together, and no file says which range"
            " 32-bit integers have; convert all to one of these."
        )
    order = ("uint8", "uint16", "int32", "float32")
    return Kind(max(kind.channels for kind in kinds), max(dtypes, key=order.index))


def read(file: Path | io.BytesIO, kind: Kind, name: str) -> np.ndarray:
    """Read an image: upright by its EXIF orientation, transparent parts on white.

    Args:
      file: a file or its bytes.
      kind: of the result. Colour becomes grey by ITU-R 601-2 luma. 8 and 16 bits are scaled to each
        other's range, and to 0 … 1 in float32. Floats and 32-bit integers stay as they are.
      name: of the image in messages.

    Returns:
      Pixels `[height, width, channels]`.

    Raises:
      CorruptImageError: it cannot be read, or has pixels that are not finite.
      ValueError: its numbers cannot be put on the scale of `kind`.
    """
    with _named(name, file), _opened(file) as opened, Image.open(opened) as image:
        image.load()
        with contextlib.suppress(Exception):  # EXIF data that nobody can read turns nothing
            ImageOps.exif_transpose(image, in_place=True)
        pixels = _pixels(image, kind.channels)
    if pixels.dtype == np.float32 and not np.isfinite(pixels).all():
        raise CorruptImageError(f"{name} has pixels that are not finite.")
    try:
        return _rescale(pixels, kind.dtype)
    except KeyError:
        raise ValueError(
            f"{name} has {pixels.dtype} pixels, which have no place on the scale of the others,"
            f" {kind.dtype}; convert it."
        ) from None


def read_image(path: Path, input_shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Read one image file as the images of a data set were read.

    Args:
      path: the file.
      input_shape: `Dataset.input_shape`, `(side, side, channels)`.
      dtype: `Dataset.dtype`.

    Returns:
      Pixels `[side, side, channels]`, for `Dataset.standardise`.

    Raises:
      CorruptImageError: it cannot be read, or has pixels that are not finite.
      ValueError: its numbers cannot be put on the scale of the data set.
    """
    side, _, channels = input_shape
    return cut_square(read(path, Kind(channels, dtype), str(path)), side)


def size_of(file: io.BytesIO, name: str) -> tuple[int, int]:
    """Return width and height of an image before it is decoded.

    Raises:
      CorruptImageError: it cannot be read.
    """
    with _named(name, file), Image.open(file) as image:
        return image.size


def cut_square(image: np.ndarray, side: int) -> np.ndarray:
    """Scale the shorter side of `[height, width, channels]` to `side` and cut out the middle."""
    height, width, channels = image.shape
    if (height, width) == (side, side):
        return image
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    if image.dtype == np.uint8 and channels == 3:
        scaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    else:
        wide = image.astype(np.int32) if image.dtype == np.uint16 else image
        pictures = [Image.fromarray(wide[..., channel]) for channel in range(channels)]
        resized = [picture.resize(size, Image.Resampling.BILINEAR) for picture in pictures]
        scaled = np.stack([np.asarray(each) for each in resized], -1).astype(image.dtype)
    top, left = (size[1] - side) // 2, (size[0] - side) // 2
    return scaled[top : top + side, left : left + side]


def _opened(file: Path | io.BytesIO) -> IO[bytes]:
    """Return the bytes of a file; Pillow 13.0, given a path, shears turned TIFFs."""
    return file.open("rb") if isinstance(file, Path) else file


@contextlib.contextmanager
def _named(name: str, file: Path | io.BytesIO) -> Iterator[None]:
    """Give errors of reading the image's name."""
    try:
        yield
    except Exception as error:  # each decoder fails on broken files in another way
        what = f"{name} is no readable image ({type(error).__name__})"
        remedy = f"; {HEIC_REMEDY}" if "HEIF" not in Image.OPEN and _is_heic(file) else ""
        raise CorruptImageError(f"{what}{remedy}.") from None


def _is_heic(file: Path | io.BytesIO) -> bool:
    """Return whether a file's content is HEIC, which also comes under other endings."""
    if isinstance(file, Path):
        with contextlib.suppress(OSError), file.open("rb") as opened:
            return opened.read(12)[4:] in _HEIC_BRANDS
    return False


def _kind(image: Image.Image) -> Kind:
    """Return the kind of an image's own pixels, by its mode."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return Kind(1, "uint16")  # Pillow scales PGM files of more than 8 bits to 16
    if image.mode in ("I", "F"):
        return Kind(1, {"I": "int32", "F": "float32"}[image.mode])
    return Kind(1 if image.mode in ("1", "L", "LA", "La") else 3, "uint8")


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    """Pixels `[height, width, channels]` in the image's own dtype."""
    own = _kind(image)
    if own.dtype == "uint8":
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            white.alpha_composite(image.convert("RGBA"))
            image = white
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        return pixels.reshape(*pixels.shape[:2], channels)
    pixels = np.asarray(image).astype(own.dtype)
    if own.dtype == "uint16" and "transparency" in image.info:
        pixels = np.where(pixels == image.info["transparency"], np.uint16(65535), pixels)
    return np.repeat(pixels[..., None], channels, axis=-1)


def _rescale(pixels: np.ndarray, dtype: str) -> np.ndarray:
    """Pixels from 0 to the largest of their dtype to those of another."""
    if pixels.dtype == dtype:
        return pixels
    largest = _LARGEST[str(pixels.dtype)]
    if dtype == "float32":
        return pixels / np.float32(largest)
    return np.rint(pixels * (_LARGEST[dtype] / largest)).astype(dtype)
