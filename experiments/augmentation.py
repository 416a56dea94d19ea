"""Preparation of batches inside the compiled step: scale, augment, mix, smooth the labels."""

import dataclasses

import jax
import jax.numpy as jnp

from experiments.data import Dataset, Split
from experiments.step import Batch


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to training images, at random for each of them.

    Attributes:
      pad_crop: pixels of zeros around the image before a crop of its size; 0 for none.
      flip: mirror half of the images left to right.
      cutout: side of a square set to zero (DeVries and Taylor 2017, arXiv 1708.04552); 0 for none.
      mixup: parameter of the Beta distribution of Zhang et al. 2018, arXiv 1710.09412; 0 for none.
      resized_crop: least share of the area in a crop that is scaled to the image's size (Szegedy et
        al. 2015, arXiv 1409.4842; sides in ratios of 3/4 to 4/3); 0 for none.
      label_smoothing: share of the targets spread over all classes.
    """

    pad_crop: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0
    resized_crop: float = 0.0
    label_smoothing: float = 0.0


def prepare(dataset: Dataset, augmentation: Augmentation, split: Split, key: jax.Array) -> Batch:
    """Make a training batch of raw examples.

    Args:
      dataset: whose mean and deviation standardise the inputs.
      augmentation: what to do.
      split: the examples; images for all but mixup and label smoothing.
      key: the randomness.
    """
    inputs = dataset.standardise(split.inputs)
    keys = jax.random.split(key, 5)
    if augmentation.resized_crop:
        inputs = _resized_crop(inputs, augmentation.resized_crop, keys[0])
    if augmentation.pad_crop:
        inputs = _pad_crop(inputs, augmentation.pad_crop, keys[1])
    if augmentation.flip:
        mirrored = jax.random.bernoulli(keys[2], shape=(len(inputs), 1, 1, 1))
        inputs = jnp.where(mirrored, inputs[:, :, ::-1], inputs)
    if augmentation.cutout:
        inputs = _cutout(inputs, augmentation.cutout, keys[3])
    targets = jax.nn.one_hot(split.labels, dataset.num_classes)
    smoothing = augmentation.label_smoothing
    targets = (1 - smoothing) * targets + smoothing / dataset.num_classes
    if augmentation.mixup:
        share = jax.random.beta(keys[4], augmentation.mixup, augmentation.mixup)
        inputs = share * inputs + (1 - share) * inputs[::-1]
        targets = share * targets + (1 - share) * targets[::-1]
    return Batch(inputs, targets)


def _pad_crop(images: jax.Array, margin: int, key: jax.Array) -> jax.Array:
    count, height, width, channels = images.shape
    around = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    corners = jax.random.randint(key, (count, 2), 0, 2 * margin + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), (height, width, channels))

    return jax.vmap(crop)(jnp.pad(images, around), corners)


def _cutout(images: jax.Array, side: int, key: jax.Array) -> jax.Array:
    count, height, width, _ = images.shape
    rows, columns = jax.random.split(key)

    def outside(key: jax.Array, size: int) -> jax.Array:
        start = jax.random.randint(key, (count, 1), 0, size) - side // 2
        place = jnp.arange(size)
        return (place < start) | (place >= start + side)

    keep = outside(rows, height)[:, :, None] | outside(columns, width)[:, None, :]
    return images * keep[..., None]


def _resized_crop(images: jax.Array, least_area: float, key: jax.Array) -> jax.Array:
    count, height, width, channels = images.shape
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    area = jax.random.uniform(area_key, (count,), minval=least_area)
    log_ratio = jax.random.uniform(ratio_key, (count,), minval=-1, maxval=1) * jnp.log(4 / 3)
    ratio = jnp.exp(log_ratio / 2)
    shares = jnp.minimum(jnp.stack([jnp.sqrt(area) / ratio, jnp.sqrt(area) * ratio], 1), 1.0)
    size = jnp.array([height, width])
    corners = jax.random.uniform(place_key, (count, 2)) * (1 - shares) * size

    def crop(image: jax.Array, share: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.image.scale_and_translate(
            image, (height, width, channels), (0, 1), 1 / share, -corner / share, "linear"
        )

    return jax.vmap(crop)(images, shares, corners)
