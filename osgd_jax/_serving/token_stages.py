"""The stages of a Transformer as functions of lists of arrays, from a net or from a file."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from osgd_jax._serving.placement import alone, copy_to_one_device
from osgd_jax.nets.cost import cost
from osgd_jax.nets.transformers.attention import Past
from osgd_jax.nets.transformers.base import Transformer
from osgd_jax.nets.transformers.layers import Attention, TransformerLayer

Arrays = list[Any]  # of jax.Array


class Kept(NamedTuple):
    """The shapes and dtypes of the values that a stage keeps for each position.

    Attributes:
      past: keys and values of its attentions in turn, `[heads, head_dim]` each.
      state: what the stage before has left for it; nothing for stage 0, which gets tokens.
    """

    past: Sequence[jax.ShapeDtypeStruct]
    state: Sequence[jax.ShapeDtypeStruct]

    def past_of(self, batch: Any, length: Any) -> list[jax.ShapeDtypeStruct]:
        """Return `past` for a number of texts and positions."""
        shapes = [(batch * a.shape[0], a.shape[1], length) for a in self.past]
        return [_struct(shape, a) for shape, a in zip(shapes, self.past, strict=True)]

    def state_of(self, batch: Any, length: Any) -> list[jax.ShapeDtypeStruct]:
        """Return `state` for a number of texts and positions."""
        return [_struct((batch, length, *a.shape), a) for a in self.state]


class Stages(Protocol):
    """The stages that a decoder runs.

    Attributes:
      num_outputs: K.
      vocab_size: logits of each output.
      weights: of each stage.
      kept: for each stage.
      device: where the weights are, and the stages run.
    """

    num_outputs: int
    vocab_size: int
    device: Any
    weights: list[Arrays]
    kept: list[Kept]

    def call(
        self,
        k: int,
        weights: Arrays,
        past: Arrays,
        state: Arrays,
        starts: jax.Array,
        counts: jax.Array,
        logits: jax.Array | None,
        /,
    ) -> tuple[jax.Array, Arrays, Arrays]:
        """Run a stage over the next positions; pure.

        Args:
          k: index of the stage.
          weights: its weights.
          past: keys and values of its attentions in turn, `[batch · heads, head_dim, max_length]`.
          state: what the stage before gave for these positions, `[batch, count, …]`; for stage 0
            the tokens.
          starts: `[batch]`, the positions that the stage has seen.
          counts: `[batch]`, how many of the next positions are no padding.
          logits: `[batch, vocab_size]`, of the output before at each last position; None for
            stage 0.

        Returns:
          The logits at each last position, and `past` and the next stage's `state`.
        """
        ...

    def multiply_adds(self, length: int) -> list[int]:
        """Return the cumulative multiply-adds of each output for a text of `length` tokens."""
        ...


class NetStages:
    """The stages of a net with the weights that it has now.

    Args:
      net: its weights are copied.
    """

    def __init__(self, net: Transformer):
        self.__setstate__(_flat(net))

    def __getstate__(self) -> tuple[Any, ...]:
        return _flat(self._net)

    def __setstate__(self, parts: tuple[Any, ...]) -> None:
        graphdef, treedef, leaves = parts
        self.device, leaves = copy_to_one_device(leaves)
        self._net = nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))
        self.num_outputs, self.vocab_size = self._net.num_outputs, self._net.vocab_size
        for _, module in nnx.iter_modules(self._net):
            if isinstance(module, TransformerLayer):
                module.remat = False
        split = [nnx.split(stage) for stage in self._net.stages]
        self._graphdefs = [graphdef for graphdef, _ in split]
        # Flat lists cost less to hand over than states.
        flat = [jax.tree.flatten(state) for _, state in split]
        self.weights = [leaves for leaves, _ in flat]
        self._treedefs = [treedef for _, treedef in flat]
        self._states: list[Any] = [None]
        with alone(self.device):
            self.kept = self._trace()

    def _trace(self) -> list[Kept]:
        found, (one,) = [], jnp.zeros((1, 1), jnp.int32)
        state, logits = [one[None]], None
        for k, stage in enumerate(self._net.stages):
            past = [
                jax.ShapeDtypeStruct((attention.num_heads, attention.head_dim), attention.dtype)
                for attention in _attentions(stage)
                for _ in range(2)
            ]
            left = [] if k == 0 else [_struct(leaf.shape[2:], leaf) for leaf in state]
            found.append(Kept(past, left))
            arguments = self.weights[k], found[k].past_of(1, 1), state, one, one, logits
            run = lambda *args, k=k: self._advance(k, *args)  # noqa: E731
            logits, _, following = jax.eval_shape(run, *arguments)
            state, treedef = jax.tree.flatten(following)
            self._states.append(treedef)
        return found

    def multiply_adds(self, length: int) -> list[int]:
        """Count the cumulative multiply-adds of each output, like `osgd_jax.cost`."""
        with alone(self.device):
            return [each.multiply_adds for each in cost(self._net, (length,))]

    def call(self, k: int, *arguments: Any) -> tuple[jax.Array, Arrays, Arrays]:
        """Run a stage; see `Stages.call`."""
        logits, past, following = self._advance(k, *arguments)
        return logits, past, jax.tree.leaves(following)

    def _advance(
        self,
        k: int,
        weights: Arrays,
        past: Arrays,
        state: Arrays,
        starts: jax.Array,
        counts: jax.Array,
        logits: jax.Array | None,
    ) -> tuple[jax.Array, Arrays, Any]:
        leaves = jax.tree.unflatten(self._treedefs[k], weights)
        stage = nnx.merge(self._graphdefs[k], leaves, copy=True)
        attentions = _attentions(stage)
        for attention, keys, values in zip(attentions, past[::2], past[1::2], strict=True):
            attention.past = nnx.data(Past(keys, values, starts))
        if k == 0:
            before = self._net.first_state(state[0])
        else:
            before = jax.tree.unflatten(self._states[k], state)
        x, following = stage.body(before)
        answers = None if logits is None else logits[:, None]
        answers = stage.logits(take(x, counts - 1, 1), answers)[:, 0]
        kept = [each for a in attentions if a.past for each in (a.past.keys, a.past.values)]
        # Nothing reads what the last stage would leave.
        return answers, kept, following if k + 1 < self.num_outputs else None


def take(buffer: jax.Array, starts: jax.Array, count: int) -> jax.Array:
    """Take `count` positions of each text from `starts`; any values outside of the text."""
    if (buffer.shape[0], count) == (1, 1):
        return lax.dynamic_slice_in_dim(buffer, starts[0], 1, axis=1)
    rows = jnp.arange(starts.shape[0])[:, None]
    positions = starts[:, None] + jnp.arange(count)[None]
    return buffer.at[rows, positions].get(mode="clip")


def _flat(net: Any) -> tuple[Any, Any, list[Any]]:
    graphdef, state = nnx.split(net)
    leaves, treedef = jax.tree.flatten(state)
    return graphdef, treedef, leaves


def _struct(shape: tuple[Any, ...], like: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, like.dtype)


def _attentions(stage: nnx.Module) -> list[Attention]:
    return [module for _, module in nnx.iter_modules(stage) if isinstance(module, Attention)]
