"""The ways to get several outputs on text that the study compares."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.app.methods import Scope
from osgd_jax import nets

OUTPUTS = 3
Update = Literal["adamw", "sgd"]
# Learning rates to choose from.
UPDATES: Mapping[Update, tuple[float, ...]] = MappingProxyType(
    {"adamw": (1e-3, 3e-3, 1e-2), "sgd": (0.1, 0.3, 1.0)}
)


class MatFormer(nnx.Module):
    """A Transformer whose MLPs are cut to their first units (Devvrit et al. 2023, 2310.07707).

    Each output is a separate forward pass; attention, embedding and head are whole in all.

    Args:
      fractions: of the units, for each output.
      sizes: of the Transformer.
    """

    def __init__(self, fractions: tuple[float, ...], **sizes: Any):
        self.net = nets.BranchedTransformer(num_outputs=1, **sizes)
        self.fractions = fractions
        self.num_outputs = len(fractions)

    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, ...]:
        """Logits of each output, `[batch, length, vocab_size]`."""
        return tuple(self.cut(fraction)(tokens)[0] for fraction in self.fractions)

    def cut(self, fraction: float) -> nets.BranchedTransformer:
        """The Transformer with so much of its MLPs."""
        graphdef, state = nnx.split(self.net)

        def smaller(path: Any, leaf: jax.Array) -> jax.Array:
            name = jax.tree_util.keystr(path)
            if "mlp" not in name or "kernel" not in name:
                return leaf
            if "out" in name:
                return leaf[: round(fraction * len(leaf))]
            gate, up = jnp.split(leaf, 2, axis=1)
            units = round(fraction * gate.shape[1])
            return jnp.concatenate([gate[:, :units], up[:, :units]], axis=1)

        return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(smaller, state))


class Way(NamedTuple):
    """A way to get K outputs.

    Attributes:
      net: a key of `NETS`.
      optimizer: how the losses are balanced, as for `python -m experiments.train`.
      order: of OSGD.
      scope: which parameters are balanced together.
      update: the optimizer after it.
      output: train this output alone; all if None.
    """

    net: str
    optimizer: str = "sgd"
    order: str = "first_to_last"
    scope: Scope = "all"
    update: Update = "adamw"
    output: int | None = None


# Widths and depths by which the last outputs have about equal multiply-adds.
NETS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "width": functools.partial(nets.WidthNestedTransformer, width=96, num_heads=6, depth=4),
        "depth": functools.partial(nets.DepthNestedTransformer, width=64, num_heads=4, depth=1),
        "both": functools.partial(nets.NestedTransformer, width=64, num_heads=4, depth=1),
        "branched": functools.partial(
            nets.BranchedTransformer, width=64, num_heads=4, depth=4, num_outputs=OUTPUTS
        ),
        "matformer": functools.partial(MatFormer, (0.25, 0.5, 1.0), width=64, num_heads=4, depth=4),
    }
)

BALANCES: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "sum": {},
        "osgd, first to last": {"optimizer": "osgd"},
        "osgd, last to first": {"optimizer": "osgd", "order": "last_to_first"},
        "pcd": {"optimizer": "pcd", "scope": "shared"},
        "aligned_mtl": {"optimizer": "aligned_mtl", "scope": "shared"},
    }
)


def named(balance: str, update: Update) -> str:
    """The way by which the width-nested net is trained so."""
    return "width" if (balance, update) == ("sum", "adamw") else f"width, {balance}, {update}"


WAYS: Mapping[str, Way] = MappingProxyType(
    {
        **{net: Way(net) for net in NETS},
        **{
            f"{net}, output {k + 1} alone": Way(net, output=k)
            for net in ("width", "branched")
            for k in range(OUTPUTS)
        },
        **{
            named(balance, update): Way("width", **changes, update=update)
            for update in UPDATES
            for balance, changes in BALANCES.items()
            if (balance, update) != ("sum", "adamw")
        },
    }
)
