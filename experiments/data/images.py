"""Images from files, and images cut to a size."""

from pathlib import Path

import numpy as np
from PIL import Image


class CorruptImageError(Exception):
    """An image that cannot be decoded; the message names it."""


def decode(path: Path, mode: str) -> np.ndarray:
    """Read an image file: uint8 `[height, width, channels]`.

    Args:
      path: the file.
      mode: Pillow's, `"L"` for one channel or `"RGB"` for three.

    Raises:
      CorruptImageError: Pillow cannot read it.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert(mode))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptImageError(f"{path} is no readable image ({type(error).__name__}).") from None
    return pixels if pixels.ndim == 3 else pixels[..., None]


def cut_square(image: np.ndarray, side: int) -> np.ndarray:
    """Scale the shorter side of `[height, width, channels]` to `side` and cut out the middle."""
    height, width, channels = image.shape
    if (height, width) == (side, side):
        return image
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    scaled = np.asarray(picture.resize(size, Image.Resampling.BILINEAR)).reshape(
        size[1], size[0], channels
    )
    top, left = (size[1] - side) // 2, (size[0] - side) // 2
    return scaled[top : top + side, left : left + side]
