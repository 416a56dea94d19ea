"""The type of a weighting: two pure functions from the Gramian of task gradients to weights."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, ParamSpec

import jax

from osgd_jax._tasks import Tasks

State = Any
"""The state of a weighting: any pytree of arrays, `()` where there is none."""

Scaling = Literal["none", "common", "row"]

P = ParamSpec("P")


class Weighting(NamedTuple):
    """A rule that turns the Gramian of the task gradients into weights for them.

    `weigh` must return finite weights for every finite Gramian. A row of zeros in the Gramian is a
    task that takes no part in this group of parameters (its loss is masked out, or does not reach
    it): the weights of the other tasks must be what they would be without it, up to the constants
    that a method defines by K.

    Attributes:
      init: `init() -> state`.
      weigh: `weigh(gramian, state, *, losses=None, key=None) -> (weights, state)`, for a Gramian
        of shape `[K, K]`, losses of shape `[K]` and a PRNG key.
      scaling: how `aggregate` may scale the Gramian before `weigh` sees it. Squared gradients leave
        the range of float32 at scales of about 1e-19 and 1e+17, which scaled ones never do.

        * `"none"`: not at all.
        * `"common"`: all gradients divided by one power of two. For methods whose weights do not
          change when all gradients are multiplied by one constant.
        * `"row"`: each gradient divided by a separate power of two, which `weigh` gets as
          `scales=`, shape `[K]`; it returns weights of the original gradients.
      for_tasks: from the tasks to the weighting for them, for arguments that name tasks; called
        while tracing. None where there are no such arguments.
      hold: indices of tasks whose gradients are never stepped along, not even for parameters that
        they alone reach.
      cross: whether the Gramian is the unbiased one of two independent batches, as from
        `osgd_jax.gramian(grads, others)`, whose diagonal can be negative.
      name: the call that made it, such as `"upgrad(preference=None)"`, which is its `repr`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> def weigh(gramian, state, *, losses=None, key=None):
      ...     return jax.nn.softmax(-jnp.diag(gramian)), state
      >>> weighting = osgd_jax.weightings.Weighting(init=lambda: (), weigh=weigh)
      >>> tx = osgd_jax.aggregate(weighting)
      >>> params = jnp.zeros(2)
      >>> updates, _ = tx.update(jnp.eye(2), tx.init(params), params)
      >>> print(updates)
      [0.5 0.5]
    """

    init: Callable[[], State]
    weigh: Callable[..., tuple[jax.Array, State]]
    scaling: Scaling = "none"
    for_tasks: "Callable[[Tasks], Weighting] | None" = None
    hold: tuple[int, ...] = ()
    cross: bool = False
    name: str = ""

    def __repr__(self) -> str:
        return self.name or f"Weighting(init={self.init}, weigh={self.weigh}, {self.scaling!r})"


def resolve(weighting: Weighting, tasks: Tasks) -> Weighting:
    """Return the weighting with the indices of these tasks in place of their names."""
    return weighting if weighting.for_tasks is None else weighting.for_tasks(tasks)


def named(make: Callable[P, Weighting]) -> Callable[P, Weighting]:
    """Name each weighting that a function returns by the call."""
    signature = inspect.signature(make)

    @functools.wraps(make)
    def make_named(*args: P.args, **kwargs: P.kwargs) -> Weighting:
        weighting = make(*args, **kwargs)
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
        return weighting._replace(name=f"{make.__name__}({arguments})")

    return make_named


def stateless(weigh: Callable[..., jax.Array], scaling: Scaling = "none") -> Weighting:
    """Make a `Weighting` of a function `weigh(gramian, *, losses, key, ...) -> weights`."""

    def weigh_with_state(gramian: jax.Array, state: State, **kwargs: Any):
        return weigh(gramian, **{"losses": None, "key": None, **kwargs}), state

    return Weighting(lambda: (), weigh_with_state, scaling)
