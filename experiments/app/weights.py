"""Weights that a run begins with: those of another run, its classes found by their names."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.app.data import Dataset
from experiments.app.data_record import class_order
from experiments.app.nets import Sizes, make_net
from experiments.app.programs import Trained
from osgd_jax.nets import AnytimeNet


def start_from(net: AnytimeNet, dataset: Dataset, trained: Trained) -> None:
    """Give a net the weights of a run, the logits in the order of the data set's classes.

    Args:
      net: that gets them.
      dataset: what it is for, with the same classes as the run in any order.
      trained: the run.

    Raises:
      ValueError: that run has another net.
    """
    state = nnx.state(trained.net)
    there, here = (_leaves(each) for each in (state, nnx.state(net)))
    for name in sorted(there.keys() | here.keys()):
        old, new = (getattr(each.get(name), "shape", None) for each in (there, here))
        if old != new:
            raise ValueError(
                f"start_from={trained.config.workdir} has another net: {name} has shape {old} there"
                f" and {new} here; give the options of that net, and data with as many classes and"
                " channels."
            )
    order = class_order(trained.dataset, dataset)
    if not dataset.is_text and (order != np.arange(len(order))).any():
        axes = _class_axes(trained.config.net, dataset)
        state = jax.tree.map_with_path(
            lambda path, leaf: _taken(leaf, order, axes[jax.tree_util.keystr(path)]), state
        )
    nnx.update(net, state)


def _leaves(state: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(state)}


def _class_axes(sizes: Sizes, dataset: Dataset) -> dict[str, list[int]]:
    """Find the axes of each array that count the classes: longer in a net of one class more."""

    def shapes(num_classes: int) -> dict[str, Any]:
        sized = dataclasses.replace(dataset, num_classes=num_classes)
        return _leaves(nnx.state(nnx.eval_shape(lambda: make_net(sizes, sized, nnx.Rngs(0)))))

    longer = shapes(dataset.num_classes + 1)
    return {
        name: [axis for axis, size in enumerate(leaf.shape) if size != longer[name].shape[axis]]
        for name, leaf in shapes(dataset.num_classes).items()
    }


def _taken(leaf: Any, order: np.ndarray, axes: list[int]) -> Any:
    for axis in axes:
        leaf = jnp.take(leaf, order, axis)
    return leaf
