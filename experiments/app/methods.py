"""Catalogue of methods: an optimizer and a balance of gradients by name and settings."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

import osgd_jax
from experiments.app.settings import require
from osgd_jax import weightings

Scope = Literal["shared", "all", "leaf", "reach"]

# Methods that need more than the Gramian: separate transformations.
ROW_METHODS = ("db_mtl", "excess_mtl", "graddrop", "moco")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The method.

    Attributes:
      optimizer: sgd (on the sum of the losses), osgd, the name of a weighting, or moco, db_mtl,
        excess_mtl or graddrop.
      scope: which parameters are balanced together; the library's default for the method if not
        given.
      order: priority of the outputs for osgd: first_to_last, last_to_first, random, or a
        permutation such as 2,0,1 or, of losses with names, ic,bc,pde. The first of it is the
        primary output of pcd.
      tau: the share of its progress that pcd promises to every other output.
      update: what takes the step after balancing: sgd with Nesterov momentum, or adamw.
      momentum: decay rate of Nesterov momentum, and of AdamW's mean gradient.
      weight_decay: times the parameters is added to the gradient; in AdamW it is apart from the
        gradient, and not on norms and embeddings.
      clip_norm: the norm to which a longer gradient is scaled down, after balancing and before
        weight decay is added; if not given, 1 for text and else not clipped.
    """

    optimizer: str = "osgd"
    scope: Scope | None = None
    order: str = "first_to_last"
    tau: float = 0.02
    update: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float | None = None

    def __post_init__(self):
        require(self, fields=("tau",), at_least=0, at_most=1)
        require(self, fields=("momentum",), at_least=0, below=1)
        require(self, fields=("weight_decay",), at_least=0)
        require(self, fields=("clip_norm",), above=0)

    @property
    def chosen_scope(self) -> Scope:
        """Scope of the method, by default the library's."""
        make = osgd_jax.orthogonalize if self.optimizer == "osgd" else osgd_jax.aggregate
        return self.scope or inspect.signature(make).parameters["scope"].default


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train an anytime net.

    Attributes:
      name: as shown in tables.
      optimizer: from a learning-rate schedule to a transformation of one gradient.
      balance: from task gradients to one gradient; that of the sum of the losses if None.
      output: train this output alone, in the subnetwork that ends with it; all if None.
    """

    name: str
    optimizer: Callable[[Any], optax.GradientTransformation]
    balance: optax.GradientTransformationExtraArgs | None = None
    output: int | None = None


def names() -> list[str]:
    """List the methods that need no arguments but their name."""
    made = [
        name
        for name in weightings.__all__
        if name != "Weighting" and _required(name) in ([], ["num_tasks"])
    ]
    return ["sgd", "osgd", *sorted([*made, *ROW_METHODS])]


def method(
    settings: Settings,
    *,
    num_tasks: int | None = None,
    seed: int = 0,
    hold: tuple[int, ...] = (),
) -> Method:
    """Make a method.

    Args:
      settings: of the method.
      num_tasks: number of outputs, for the methods that keep a state for each.
      seed: for what the method draws at random.
      hold: outputs that osgd protects without training them.

    Raises:
      ValueError: an unknown name, or a weighting that needs more than its name.
    """
    name, scope, order = settings.optimizer, settings.chosen_scope, settings.order
    optimizer = functools.partial(step, settings)
    if name == "sgd":
        return Method(name, optimizer)
    if name == "osgd":
        key = seed if order == "random" else None
        return Method(name, optimizer, osgd_jax.orthogonalize(_order(order), scope, key, hold=hold))
    if name == "graddrop":
        return Method(name, optimizer, osgd_jax.graddrop(seed))
    if name in ROW_METHODS:
        make = getattr(osgd_jax, name)
        return Method(name, optimizer, make(num_tasks, scope=scope))
    if name == "pcd" and num_tasks is not None:
        weighting = weightings.pcd(num_tasks, settings.tau, primary=_primary(order, num_tasks))
    else:
        weighting = _weighting(name, num_tasks)
    return Method(name, optimizer, osgd_jax.aggregate(weighting, scope, seed))


def step(settings: Settings, schedule: Any) -> optax.GradientTransformation:
    """Return the optimizer that takes a step along the balanced gradient."""
    decay = settings.weight_decay
    if settings.update == "adamw":
        taken = optax.adamw(schedule, settings.momentum, weight_decay=decay, mask=_decayed)
    else:
        taken = optax.sgd(schedule, momentum=settings.momentum, nesterov=True)
        if decay:
            taken = optax.chain(optax.add_decayed_weights(decay), taken)
    return clipped(taken, settings.clip_norm)


def clipped(
    optimizer: optax.GradientTransformation, clip_norm: float | None
) -> optax.GradientTransformation:
    """Scale a gradient longer than `clip_norm` down to it before the optimizer; None does not."""
    if clip_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)


def _decayed(params: Any) -> Any:
    """Return a tree that is True for matrices and kernels except embeddings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim > 1 and "embedding" not in jax.tree_util.keystr(path), params
    )


def _order(text: str) -> Any:
    """Parse an order's name, or its tasks by index or name: `2,0,1` or `ic,bc,pde`."""
    tasks = tuple(int(task) if task.isdigit() else task for task in text.split(","))
    return text if tasks == (text,) else tasks


def _primary(order: str, num_tasks: int) -> int | str:
    """Return the first task of an order, by index or name."""
    if order == "random":
        raise ValueError(
            f"order={order!r} must be first_to_last, last_to_first, or begin with the task that pcd"
            " is to follow."
        )
    ends = {"first_to_last": 0, "last_to_first": num_tasks - 1}
    first = ends.get(order, order.split(",")[0])
    return int(first) if str(first).isdigit() else first


def _required(weighting: str) -> list[str]:
    """List the arguments of a weighting that have no default."""
    parameters = inspect.signature(getattr(weightings, weighting)).parameters.values()
    return [each.name for each in parameters if each.default is inspect.Parameter.empty]


def _weighting(name: str, num_tasks: int | None) -> weightings.Weighting:
    """Make a weighting with its default arguments."""
    if name not in weightings.__all__ or name == "Weighting":
        raise ValueError(f"optimizer={name!r} is unknown; use one of {', '.join(names())}.")
    make, required = getattr(weightings, name), _required(name)
    if required == ["num_tasks"]:
        return make(num_tasks)
    if name == "constant":
        raise ValueError("optimizer='constant' needs weights; use sgd with --loss-weights.")
    if required:
        raise ValueError(f"optimizer={name!r} needs {required[0]}, which no option can give.")
    return make()
