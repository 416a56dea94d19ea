"""The base class of all anytime nets."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Self, SupportsIndex

import jax
from flax import nnx

from osgd_jax._validation import as_number, check_input
from osgd_jax.nets._sizes import NetSizes


@functools.partial(jax.tree_util.register_dataclass, data_fields=["state"], meta_fields=["output"])
@dataclasses.dataclass(frozen=True)
class Carry:
    """The results of the stages so far, and the index of the next output.

    Attributes:
      state: what the next stage takes.
      output: its index, which `advance` checks.
    """

    state: Any
    output: int


class AnytimeNet(nnx.Module):
    """A net with several outputs, each a little later and better than the one before.

    A net is a list of stages. Stage k holds exactly the parameters that output k adds to those of
    the earlier outputs and maps the *carry*, a pytree of what the earlier stages have computed, to
    the logits of output k and the next carry. A subclass makes the stages and passes them to
    `__init__`; a stage is a module whose `__call__(carry)` returns `(logits, carry)`. The first
    stage takes the input, unless the subclass defines `first_carry`.

    Args:
      stages: one module for each output.
      num_classes: logits of each output.
      in_channels: channels of the input; None for a net whose `start` takes something else.
      spatial_dims: 1 or 2, the axes of the input between batch and channels; None likewise.
      sizes: what the family made the stages from, so that `grow` can make more; None for a net that
        cannot grow.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from osgd_jax import nets
      >>> class Stage(nnx.Module):
      ...     def __init__(self, features, rngs):
      ...         self.layer = nets.Linear(features, 4, rngs=rngs)
      ...         self.head = nets.Linear(4, 3, rngs=rngs)
      ...
      ...     def __call__(self, x):
      ...         x = nnx.relu(self.layer(x.mean((1, 2)) if x.ndim == 4 else x))
      ...         return self.head(x), x
      >>> rngs = nnx.Rngs(0)
      >>> net = nets.AnytimeNet(
      ...     [Stage(2, rngs), Stage(4, rngs)], num_classes=3, in_channels=2, spatial_dims=2
      ... )
      >>> carry = net.start(jnp.ones((1, 4, 4, 2)))
      >>> first, carry = net.advance(0, carry)
      >>> second, carry = net.advance(1, carry)
      >>> first.shape, second.shape
      ((1, 3), (1, 3))
    """

    def __init__(
        self,
        stages: Sequence[Any],
        *,
        num_classes: int,
        in_channels: int | None = None,
        spatial_dims: int | None = None,
        sizes: NetSizes | None = None,
    ):
        if not isinstance(stages, Sequence) or not stages:
            raise ValueError(f"stages={stages!r} must be a list of modules, one for each output.")
        self.stages = nnx.List(stages)
        self.num_classes = num_classes
        self.in_channels: Any = in_channels  # of image nets an integer
        self.spatial_dims: Any = spatial_dims
        # The sizes are static, the keys of an `nnx.Rngs` are not.
        self.stage_sizes: Any = sizes and sizes.changed(rngs=None)

    def _assemble(self, sizes: NetSizes) -> None:
        """Make the stages of a family's net."""
        stages = [self.make_stage(k, sizes) for k in range(sizes.num_outputs)]
        AnytimeNet.__init__(self, stages, **sizes.interface(), sizes=sizes)

    @property
    def num_outputs(self) -> int:
        """Return the number of outputs."""
        return len(self.stages)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Compute all outputs.

        Args:
          x: `[batch, *spatial, in_channels]`.

        Returns:
          The logits of each output in order, `[batch, num_classes]` each.

        Raises:
          ValueError: `x` has another shape.
        """
        carry = self.start(x)
        outputs = []
        for k in range(self.num_outputs):
            logits, carry = self.advance(k, carry)
            outputs.append(logits)
        return tuple(outputs)

    def start(self, x: jax.Array) -> Carry:
        """Return the carry for `advance(0, carry)`, without any work.

        Raises:
          ValueError: `x` is not `[batch, *spatial, in_channels]`.
        """
        if self.spatial_dims is not None and self.in_channels is not None:
            x = check_input(x, self.spatial_dims, self.in_channels)
        return Carry(self.first_carry(x), 0)

    def first_carry(self, x: jax.Array) -> Any:
        """Return the carry of the first stage; by default the input itself."""
        return x

    def advance(self, k: int, carry: Carry) -> tuple[jax.Array, Carry]:
        """Compute output k from the carry of output k − 1.

        Args:
          k: index of the output.
          carry: from `start(x)` for k = 0, else from `advance(k - 1, …)`.

        Returns:
          Logits `[batch, num_classes]`, and the carry for `advance(k + 1, …)`.

        Raises:
          ValueError: there is no output k, or the carry is not for it.
        """
        self._check_output(k)
        if not isinstance(carry, Carry) or carry.output != k:
            came = f"advance({k - 1}, …)" if k else "start(x)"
            got = type(carry).__name__
            if isinstance(carry, Carry):
                got = f"one for advance({carry.output}, …)"
            raise ValueError(f"carry must be what {came} gave for advance({k}, …); got {got}.")
        logits, state = self.stages[k](carry.state)
        return logits, Carry(state, k + 1)

    def make_stage(self, k: int, sizes: Any) -> Any:
        """Make the stage of output k from the sizes of the net; each family defines this."""
        raise NotImplementedError(
            f"{type(self).__name__} must define make_stage, as a family does."
        )

    def subnetwork(self, k: int) -> Self:
        """Return the net of the outputs 0 … k alone, which shares its Variables with this one.

        Raises:
          ValueError: there is no output k.
        """
        self._check_output(k)
        net = nnx.merge(*nnx.split(self))
        net.stages = nnx.List(net.stages[: k + 1])
        net.stage_sizes = self.stage_sizes and self.stage_sizes.first(k + 1)
        return net

    def set_view(
        self, deterministic: bool | None = None, use_running_average: bool | None = None
    ) -> None:
        """Accept the usual keywords of `nnx.view` for a net without batch normalization too."""

    def _check_output(self, k: int) -> None:
        if as_number(k) not in range(self.num_outputs) or not isinstance(k, SupportsIndex):
            raise ValueError(f"k={k!r} must be an output from 0 to {self.num_outputs - 1}.")
