"""Preparation of batches inside the compiled step: scale, augment, smooth the labels."""

import dataclasses

import jax
import jax.numpy as jnp

from experiments.app.data import Dataset, Split
from experiments.app.settings import require
from experiments.app.step import Batch


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of training examples, drawn for each one.

    Attributes:
      pad_crop: pixels of zeros around an image before a random crop of its size.
      flip: mirror half of the images left to right.
      resized_crop: least share of the area in a random crop that is scaled to the image's size
        (Szegedy et al. 2015, arXiv 1409.4842; sides in ratios of 3/4 to 4/3); 0 for none.
      label_smoothing: share of the targets spread over all classes.
    """

    pad_crop: int = 0
    flip: bool = False
    resized_crop: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self):
        require(self, fields=("pad_crop",), at_least=0)
        require(self, fields=("resized_crop",), at_least=0, at_most=1)
        require(self, fields=("label_smoothing",), at_least=0, below=1)

    def check(self, dataset: Dataset) -> None:
        """Raise a ValueError if this needs images and the data set has none."""
        images = ("pad_crop", "flip", "resized_crop")
        if len(dataset.input_shape) != 3 and any(getattr(self, field) for field in images):
            raise ValueError(f"{', '.join(images)} are for images; {dataset.name} has none.")


def prepare(dataset: Dataset, augmentation: Augmentation, split: Split, key: jax.Array) -> Batch:
    """Make a training batch of raw examples.

    Args:
      dataset: whose mean and deviation standardise the inputs.
      augmentation: what to do.
      split: the examples.
      key: the randomness.
    """
    inputs = dataset.standardise(split.inputs)
    crop_key, shift_key, flip_key = jax.random.split(key, 3)
    if augmentation.resized_crop:
        inputs = _resized_crop(inputs, augmentation.resized_crop, crop_key)
    if augmentation.pad_crop:
        inputs = _pad_crop(inputs, augmentation.pad_crop, shift_key)
    if augmentation.flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(len(inputs), 1, 1, 1))
        inputs = jnp.where(mirrored, inputs[:, :, ::-1], inputs)
    targets = jax.nn.one_hot(split.labels, dataset.num_classes)
    smoothing = augmentation.label_smoothing
    return Batch(inputs, (1 - smoothing) * targets + smoothing / dataset.num_classes)


def _pad_crop(images: jax.Array, margin: int, key: jax.Array) -> jax.Array:
    count, height, width, channels = images.shape
    around = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    corners = jax.random.randint(key, (count, 2), 0, 2 * margin + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), (height, width, channels))

    return jax.vmap(crop)(jnp.pad(images, around), corners)


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
