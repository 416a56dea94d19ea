"""More outputs for trained nets."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, SupportsIndex, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from osgd_jax._validation import check_positive, check_rngs
from osgd_jax.nets.base import AnytimeNet

NetT = TypeVar("NetT", bound=AnytimeNet)


def grow(net: NetT, num_outputs: int, *, rngs: nnx.Rngs, **sizes: Any) -> NetT:
    """Return a net with more outputs whose first stages are copies of the net's.

    The existing outputs stay equal bit for bit, in training and evaluation mode, at the same cost,
    and `subnetwork` returns the old net. `osgd_jax.AnytimePredictor` compiles the stage of the old
    last output again, because later stages read from it. Its logits are then equal up to rounding;
    those of earlier outputs are equal bit for bit. New stages read the old ones as in any net of
    the family:

    * `BranchedResNet`, `BranchedTransformer`: more blocks after the trunk. Each new output gets as
      many as the last stage has, in the last level of resolution. `widths=` and `blocks=`, or
      `depth=`, describe another trunk, which must begin with the net's.
    * `MSDNet`: more layers, `step` for each new output as before, unless `step=` is given. Scales
      are dropped at the same pace until only the coarsest is left.
    * `WidthNestedResNet`, `WidthNestedTransformer`: more stripes. Each new output doubles the
      channels, unless `widths=` or `width=` gives those of the last one.
    * `NestedResNet`, `NestedTransformer`: a new block after each block, and √2 times the channels,
      unless `widths=` or `width=` gives those of the last output.
    * `DepthNestedResNet`, `DepthNestedTransformer`: a new block after each block.

    To choose the size of each of several new outputs, add one at a time.

    There are three ways to train the result ("Add an output without changing the others",
    docs/how_to/grow.md): *frozen*, only the new stages, so that old outputs never change; *held*,
    all parameters, by steps orthogonal to the gradients of the old outputs' losses
    (`osgd_jax.orthogonalize(hold=…)`); *joint*, all parameters on all losses.

    Args:
      net: a net of one of the families above, or one of its subnetworks.
      num_outputs: number of outputs of the result.
      rngs: source of the initial parameters of the new stages.
      **sizes: of the result, as listed above, with the meaning that they have for the family's
        constructor.

    Returns:
      A net that shares no array with `net`, so that training it, also with donated buffers, does
      not change `net`. Old stages keep shardings, dtypes and training or evaluation mode; new
      stages are in training mode.

    Raises:
      ValueError: `net` is not of a family, `num_outputs` is not larger than the net's, `rngs` is
        not an `nnx.Rngs`, or the net cannot grow to the sizes.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> net = nets.DepthNestedResNet(
      ...     num_classes=3, num_outputs=1, in_channels=1, widths=(4,), blocks=(1,),
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> grown = nets.grow(net, 2, rngs=nnx.Rngs(1))
      >>> x = jnp.ones((2, 4, 4, 1))
      >>> [bool((old == new).all()) for old, new in zip(net(x), grown(x), strict=False)]
      [True]
    """
    old = net.num_outputs if isinstance(net, AnytimeNet) else 0
    if not old or net.stage_sizes is None or net.stage_sizes.num_outputs < old:
        raise ValueError(
            f"net={type(net).__name__}(…) must be a net of a family of osgd_jax.nets, such as"
            " nets.BranchedResNet, with the stages that the family made."
        )
    if check_positive("num_outputs", num_outputs) <= old:
        raise ValueError(
            f"num_outputs={num_outputs} must be larger than the net's {old}; net.subnetwork(k) has"
            " fewer."
        )
    check_rngs(rngs)
    _, *growable = inspect.signature(net.stage_sizes.grown).parameters
    unknown = sizes.keys() - set(growable)
    if unknown:
        known = " and ".join(f"{name}=" for name in growable) or "no sizes"
        raise ValueError(
            f"{unknown.pop()}= must not be given: {type(net).__name__} takes {known} to grow."
        )
    grown_sizes = net.stage_sizes.first(old).grown(num_outputs, **sizes)
    graphdef, state = nnx.split(net)
    grown = nnx.merge(graphdef, jax.tree.map(jnp.copy, state))
    source = grown_sizes.changed(rngs=rngs)
    new = [net.make_stage(k, source) for k in range(old, num_outputs)]
    grown.stages = nnx.List([*grown.stages, *new])
    grown.stage_sizes = grown_sizes
    return grown


@dataclasses.dataclass(frozen=True)
class _StagesFrom:
    first: int

    def __call__(self, path: tuple[Any, ...], value: Any) -> bool:
        del value
        return "stages" in path and path[path.index("stages") + 1] >= self.first


def stages_from(first: int) -> Callable[[Any, Any], bool]:
    """Return a filter, as Flax NNX takes them, for the Variables of the stages from `first` on.

    `nnx.All(nnx.Param, stages_from(k))` are the parameters that output k and later ones add, to
    differentiate (`nnx.DiffState`), to optimize (`nnx.Optimizer(wrt=…)`) or to split off
    (`nnx.split`).

    Args:
      first: index of a stage.

    Returns:
      A function of a path and a Variable that tells whether the stage has the Variable.

    Raises:
      ValueError: `first` is not an integer of at least 0.

    Example:
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> net = nets.BranchedResNet(
      ...     num_classes=3, num_outputs=2, in_channels=1, widths=(4,), blocks=(2,),
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> new = nnx.state(net, nnx.All(nnx.Param, nets.stages_from(1)))
      >>> list(new["stages"])
      [1]
    """
    if isinstance(first, bool) or not isinstance(first, SupportsIndex) or first.__index__() < 0:
        raise ValueError(f"first={first!r} must be the index of a stage, an integer from 0 on.")
    return _StagesFrom(first.__index__())
