"""One small net of every family, for the tests that all families share."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from osgd_jax import nets


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of nets at small sizes.

    Attributes:
      make: the constructor.
      sizes: `sizes(k)` are the arguments of the net that has only the outputs 0 … k of the net of
        four. None where the sizes do not depend on k.
      fixed: further arguments.
      tokens: the input is tokens, not images or signals.
    """

    make: Callable[..., Any]
    sizes: Callable[[int], dict[str, Any]] | None = None
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    tokens: bool = False


def _width_sizes(k: int) -> dict[str, Any]:
    width = 2**k
    fractions = tuple(2.0 ** (j - k) for j in range(k + 1))
    return {"widths": (width, 2 * width), "blocks": (1, 1), "fractions": fractions}


def _branched_sizes(k: int) -> dict[str, Any]:
    blocks = ((1,), (2,), (2, 1), (2, 2))[k]
    return {"widths": (4, 8)[: len(blocks)], "blocks": blocks}


def _nested_sizes(k: int) -> dict[str, Any]:
    width = 2 * (k + 1)
    fractions = tuple((j + 1) / (k + 1) for j in range(k + 1))
    return {"widths": (width, 2 * width), "blocks": (1, 1), "fractions": fractions}


def _transformer_sizes(k: int) -> dict[str, Any]:
    return {"width": 8, "num_heads": 2, "depth": k + 1}


def _width_transformer_sizes(k: int) -> dict[str, Any]:
    heads = 2**k
    fractions = tuple(2.0 ** (j - k) for j in range(k + 1))
    return {"width": 4 * heads, "num_heads": heads, "depth": 1, "fractions": fractions}


def _nested_transformer_sizes(k: int) -> dict[str, Any]:
    heads = k + 1
    fractions = tuple((j + 1) / heads for j in range(heads))
    return {"width": 4 * heads, "num_heads": heads, "depth": 1, "fractions": fractions}


IMAGE_FAMILIES = {
    "branched": Family(nets.BranchedResNet, _branched_sizes),
    "msdnet": Family(
        nets.MSDNet,
        fixed={
            "channels": 4,
            "growth_rate": 2,
            "growth_factors": (1, 2),
            "bottleneck_factors": (1, 2),
            "base": 1,
            "step": 1,
        },
    ),
    "width-nested": Family(nets.WidthNestedResNet, _width_sizes),
    "depth-nested": Family(nets.DepthNestedResNet, fixed={"widths": (4, 8), "blocks": (1, 1)}),
    "nested": Family(nets.NestedResNet, _nested_sizes),
}
TRANSFORMERS = {
    "branched-transformer": Family(nets.BranchedTransformer, _transformer_sizes, tokens=True),
    "width-nested-transformer": Family(
        nets.WidthNestedTransformer, _width_transformer_sizes, {"mlp_ratio": 2}, tokens=True
    ),
    "depth-nested-transformer": Family(
        nets.DepthNestedTransformer, fixed={"width": 8, "num_heads": 2, "depth": 1}, tokens=True
    ),
    "nested-transformer": Family(
        nets.NestedTransformer, _nested_transformer_sizes, {"mlp_ratio": 2}, tokens=True
    ),
}
FAMILIES = IMAGE_FAMILIES | TRANSFORMERS

# Families with what else there is to choose: `(family, arguments)`.
NORMS = [(family, {"norm": norm}) for family in IMAGE_FAMILIES for norm in ("batch", "group")]
NORMS += [(family, {}) for family in TRANSFORMERS]
NORMS_AND_DIMS = [
    (family, {**chosen, **axes})
    for family, chosen in NORMS
    for axes in ([{}] if family in TRANSFORMERS else [{"spatial_dims": 1}, {"spatial_dims": 2}])
]


def build(family: str, k: int, seed: int = 0, **kwargs: Any) -> Any:
    """The small net of `family` with the outputs 0 … k of the net with four outputs."""
    chosen = FAMILIES[family]
    sizes = chosen.sizes(k) if chosen.sizes else {}
    truncated = family == "msdnet"
    what = {"vocab_size": 3} if chosen.tokens else {"num_classes": 3, "in_channels": 2}
    net = chosen.make(
        num_outputs=4 if truncated else k + 1,
        **{**what, "rngs": nnx.Rngs(seed), **chosen.fixed, **sizes, **kwargs},
    )
    return net.subnetwork(k) if truncated else net


def randomise(net: Any, seed: int = 0) -> Any:
    """Shake all Variables, so that nothing is equal because of zeros and ones."""
    rng = np.random.default_rng(seed)
    state = nnx.state(net)

    def shake(array):  # in NumPy, so that nothing is compiled for each shape
        shaken = np.asarray(array) + rng.uniform(0.05, 0.3, array.shape)
        return jnp.asarray(shaken.astype(array.dtype))

    nnx.update(net, jax.tree.map(shake, state))
    return net


def example(spatial_dims: int, batch: int = 2, channels: int = 2) -> jax.Array:
    """A small input of the default float dtype."""
    shape = (batch, *(7, 6)[:spatial_dims], channels)
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), float)


def example_for(family: str, spatial_dims: int = 2, batch: int = 2, **_: Any) -> jax.Array:
    """A small input of a net that `build` makes with such arguments."""
    if FAMILIES[family].tokens:
        return jnp.asarray(np.random.default_rng(1).integers(0, 3, (batch, 7)))
    return example(spatial_dims, batch)


def train_call(net: Any) -> Callable[..., Any]:
    """A compiled `(state, x) → (logits, new batch statistics)` of a net in training mode."""
    graphdef, _ = nnx.split(net)

    @jax.jit
    def call(state, x):
        merged = nnx.merge(graphdef, state, copy=True)
        return merged(x), nnx.state(merged, nnx.BatchStat)

    return call


def advance_call(net: Any, k: int) -> Callable[..., Any]:
    """A compiled `(state, carry) → (logits, carry)` of stage k."""
    graphdef, _ = nnx.split(net)
    return jax.jit(lambda state, carry: nnx.merge(graphdef, state, copy=True).advance(k, carry))
