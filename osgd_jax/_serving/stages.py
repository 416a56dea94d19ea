"""A net cut into stages, pure functions of weights and arrays that are compiled one by one."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.interpreters.partial_eval import dce_jaxpr

from osgd_jax._serving.placement import alone, copy_to_one_device
from osgd_jax.nets.cost import cost
from osgd_jax.nets.tracing import check_net, find_dtype
from osgd_jax.nets.transformers.base import Transformer

Input = jax.Array | np.ndarray
Arrays = list[Any]  # of jax.Array; the carry of stage 0 may hold an np.ndarray

# Any number above one will do: it tells the batch axis of a carry from an axis of length one.
_TRACED_BATCH = 2


class Stage(NamedTuple):
    """The program from one output to the next.

    Attributes:
      call: pure `(weights, carry) -> (logits, fresh)`; the carry of stage 0 is `[x]`.
      weights: the arrays of the net that this stage reads, and no others.
      passes: for each array of the next carry, the index in this carry of the array that it is,
        or None for the next of `fresh`. A compiled program would copy what it only hands on.
    """

    call: Callable[[Arrays, Arrays], tuple[jax.Array, Arrays]]
    weights: Arrays
    passes: tuple[int | None, ...]

    def next_carry(self, carry: Sequence[Any], fresh: Sequence[Any]) -> list[Any]:
        """Return the carry of the next stage."""
        made = iter(fresh)
        return [next(made) if index is None else carry[index] for index in self.passes]


class Model(Protocol):
    """A net, or an exported file, for a predictor to run.

    Attributes:
      num_outputs: K.
      input_shape: of one example, None for an axis of any length; None for any shape.
      input_dtype: the only dtype that it takes, None for any.
      device: where its weights are, and its stages run.
    """

    num_outputs: int
    input_shape: tuple[int | None, ...] | None
    input_dtype: Any
    device: Any

    def takes_integers(self, input_shape: tuple[int, ...]) -> bool:
        """Tell whether examples of this shape are integers."""
        ...

    def stages(self, input_shape: tuple[int, ...], dtype: Any) -> list[Stage]:
        """Return the stages for examples of this shape."""
        ...

    def multiply_adds(self, input_shape: tuple[int, ...], dtype: Any) -> list[int]:
        """Return the cumulative multiply-adds of each output for one example."""
        ...


class NetModel:
    """A net in evaluation mode with the weights that it had when this was made.

    Args:
      net: an `AnytimeNet`, or another `nnx.Module` with its `num_outputs`, `start` and `advance`.

    Raises:
      ValueError: the net lacks one of these.
    """

    input_dtype = None

    def __init__(self, net: Any):
        check_net(net)
        self.num_outputs = int(net.num_outputs)
        self.input_shape: tuple[int | None, ...] | None = None
        axes, channels = getattr(net, "spatial_dims", None), getattr(net, "in_channels", None)
        if axes is not None and channels is not None:
            self.input_shape = (None,) * axes + (channels,)
        elif isinstance(net, Transformer):
            self.input_shape = (None,)
        evaluated = nnx.view(
            net, raise_if_not_found=False, deterministic=True, use_running_average=True
        )
        self._graphdef, state = nnx.split(evaluated)
        leaves, self._treedef = jax.tree.flatten(state)
        self.device, self._leaves = copy_to_one_device(leaves)
        self._integers: dict[tuple[int, ...], bool] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "device"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.device, self._leaves = copy_to_one_device(self._leaves)

    def stages(self, input_shape: tuple[int, ...], dtype: Any) -> list[Stage]:
        """Trace the net.

        Raises:
          ValueError: the net refuses the shape, or carries an array without a batch axis.
        """
        example = jax.ShapeDtypeStruct((_TRACED_BATCH, *input_shape), dtype)
        carry, treedef = jax.tree.flatten(example)
        stages = []
        for k in range(self.num_outputs):
            advance = functools.partial(self._advance, k, treedef)
            with alone(self.device):
                closed, (logits, following) = jax.make_jaxpr(advance, return_shape=True)(
                    self._leaves, carry
                )
            inputs = closed.jaxpr.invars[len(self._leaves) :]
            made = closed.jaxpr.outvars[len(jax.tree.leaves(logits)) :]
            # Stage 0 gets the caller's own array, on the host maybe: no carry may hold it.
            inherited = [] if k == 0 else list(inputs)
            passes = tuple(
                next((i for i, variable in enumerate(inherited) if variable is out), None)
                for out in made
            )
            _, read = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
            indices = [i for i in range(len(self._leaves)) if read[i]]
            call = functools.partial(self._call, advance, indices, passes)
            stages.append(Stage(call, [self._leaves[i] for i in indices], passes))
            carry, treedef = jax.tree.flatten(following)
            for leaf in carry:
                if leaf.shape[:1] != (_TRACED_BATCH,):
                    raise ValueError(
                        "net.advance must return a carry of arrays whose first axis is the batch;"
                        f" that of output {k} has one without it, of shape {leaf.shape}."
                    )
        return stages

    def takes_integers(self, input_shape: tuple[int, ...]) -> bool:
        """Tell whether the net refuses floats of this shape and takes integers."""
        if input_shape not in self._integers:
            with alone(self.device):
                found = find_dtype(self._merge(self._leaves), input_shape)
            self._integers[input_shape] = jnp.issubdtype(found, jnp.integer)
        return self._integers[input_shape]

    def multiply_adds(self, input_shape: tuple[int, ...], dtype: Any) -> list[int]:
        """Count the cumulative multiply-adds of each output, like `osgd_jax.cost`."""
        with alone(self.device):
            costs = cost(self._merge(self._leaves), input_shape, dtype=dtype)
        return [each.multiply_adds for each in costs]

    def _merge(self, leaves: Arrays) -> Any:
        return nnx.merge(self._graphdef, jax.tree.unflatten(self._treedef, leaves), copy=True)

    def _advance(self, k: int, treedef: Any, leaves: Arrays, carry: Arrays) -> tuple[Any, Any]:
        net = self._merge(leaves)
        state = jax.tree.unflatten(treedef, carry)
        logits, following = net.advance(k, net.start(state) if k == 0 else state)
        # Nothing reads the last carry: the compiler shall not make it, which takes up to a sixth of
        # the time of all stages (depth-nested, batch 32, two CPU cores).
        return logits, following if k + 1 < self.num_outputs else None

    def _call(
        self,
        advance: Callable[[Arrays, Arrays], tuple[Any, Any]],
        indices: list[int],
        passes: tuple[int | None, ...],
        weights: Arrays,
        carry: Arrays,
    ) -> tuple[jax.Array, Arrays]:
        leaves = list(self._leaves)
        for index, weight in zip(indices, weights, strict=True):
            leaves[index] = weight
        logits, following = advance(leaves, carry)
        made = zip(jax.tree.leaves(following), passes, strict=True)
        return logits, [leaf for leaf, index in made if index is None]
