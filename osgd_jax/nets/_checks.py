"""Checks of arguments that several nets share; each raises a ValueError that names the argument."""

from collections.abc import Sequence
from typing import SupportsIndex


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        known = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}={value!r} must be {known}.")


def check_positive(name: str, value: int) -> None:
    """Raise a ValueError unless `value` is an integer of at least one."""
    # NumPy's integers, too.
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or value.__index__() < 1:
        raise ValueError(f"{name}={value!r} must be an integer of at least 1.")


def check_interface(num_classes: int, num_outputs: int, in_channels: int) -> None:
    """Raise a ValueError unless the numbers that every net takes are positive integers."""
    check_positive("num_classes", num_classes)
    check_positive("num_outputs", num_outputs)
    check_positive("in_channels", in_channels)


def check_levels(widths: Sequence[int], blocks: Sequence[int]) -> None:
    """Raise a ValueError unless both have one positive integer for each level."""
    if not widths or len(widths) != len(blocks):
        raise ValueError(
            f"widths={tuple(widths)} and blocks={tuple(blocks)} must have one entry for each level"
            " of resolution."
        )
    for name, values in (("widths", widths), ("blocks", blocks)):
        for level, value in enumerate(values):
            check_positive(f"{name}[{level}]", value)


def check_input(shape: tuple[int, ...], spatial_dims: int, in_channels: int) -> None:
    """Raise a ValueError unless `shape` is `[batch, *spatial, in_channels]`."""
    if len(shape) != spatial_dims + 2 or shape[-1] != in_channels:
        spatial = ", length" if spatial_dims == 1 else ", height, width"
        raise ValueError(
            f"x of shape {shape} must have the shape [batch{spatial}, {in_channels}]"
            f" (spatial_dims={spatial_dims}, in_channels={in_channels}, channels last)."
        )
