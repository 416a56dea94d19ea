"""Time the steps of `training_steps.py` in PyTorch and TorchJD, on the same net and parameters.

Both libraries compute the same gradients, or this raises an error. One library runs after the
other, each in turn with its own plain SGD.
"""
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional
from torchjd.aggregation import UPGrad, UPGradWeighting
from torchjd.autogram import Engine
from torchjd.autojac import backward, jac_to_grad

import osgd_jax
from experiments.app.machine import versions
from experiments.benchmark.training_steps import Problem, make_steps
from experiments.lab.timing import spread, time_in_turn

# Of the norm of a gradient; in float32, and sums in another order.
_TOLERANCE = 1e-3
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Orders of a kernel's axes by their number: PyTorch's, where outputs come first, and back.
_THEIRS = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
_OURS = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
_Batch = tuple[torch.Tensor, torch.Tensor]


def against_torchjd(problem: Problem, rounds: int) -> dict[str, Any]:
    """Time both libraries.

    Args:
      problem: cross-entropies of a `BranchedResNet` of basic blocks, batch normalization, float32.
      rounds: how often each step is timed.

    Raises:
      ValueError: TorchJD's gradients are not ours.
    """
    images, labels = (torch.tensor(np.asarray(each)).to(_DEVICE) for each in problem.batch)
    batch = images.permute(0, 3, 1, 2).contiguous(), labels.long()
    params = nnx.to_pure_dict(problem.params)
    difference = largest_difference(_our_gradients(problem), _their_gradients(params, batch))
    if not difference <= _TOLERANCE:
        raise ValueError(f"TorchJD's gradients differ from ours by {difference:.1e} of their norm.")
    steps = make_steps(problem, ("sgd", "osgd", "upgrad"), "all")
    seconds = {
        "osgd_jax": time_in_turn({name: step.run for name, step in steps.items()}, rounds),
        "torchjd": time_in_turn(_their_steps(params, batch), rounds),
    }
    rows = {
        library: [
            {
                "step": name,
                "step_ms": spread(1e3 * each),
                "time_over_sgd": spread(each / times["sgd"]),
            }
            for name, each in times.items()
        ]
        for library, times in seconds.items()
    }
    overheads = {
        library: min(row["time_over_sgd"]["median"] - 1 for row in each if row["step"] != "sgd")
        for library, each in rows.items()
    }
    return {
        "batch_size": len(labels),
        "versions": versions("torch", "torchjd"),
        "largest_gradient_difference": difference,
        **rows,
        "overhead_over_torchjd": overheads["osgd_jax"] / overheads["torchjd"],
    }


def largest_difference(ours: list[list[np.ndarray]], theirs: list[list[np.ndarray]]) -> float:
    """Return the largest norm, over the losses, of a difference of gradients over our norm."""
    ratios = []
    for a, b in zip(ours, theirs, strict=True):
        difference = sum(np.square(x - y).sum() for x, y in zip(a, b, strict=True))
        ratios.append(np.sqrt(difference / sum(np.square(x).sum() for x in a)))
    return float(np.max(ratios))


def _our_gradients(problem: Problem) -> list[list[np.ndarray]]:
    """Return each loss's gradients, in the order of the parameters' leaves."""
    grads = jax.jit(osgd_jax.task_grads(problem.losses, has_aux=True))
    rows, _ = grads(problem.params, problem.rest, *problem.batch)
    dense = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.to_pure_dict(osgd_jax.densify(rows)))]
    return [[leaf[task] for leaf in dense] for task in range(len(dense[0]))]


def _their_gradients(params: Any, batch: _Batch) -> list[list[np.ndarray]]:
    """Return the same of PyTorch."""
    tree = _parameters(params)
    leaves = jax.tree.leaves(tree)
    gradients = [
        torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)
        for loss in _Branched(tree)(*batch)
    ]
    return [[each.permute(*_OURS[each.ndim]).cpu().numpy() for each in one] for one in gradients]


def _their_steps(params: Any, batch: _Batch) -> dict[str, Callable[[], None]]:
    """Return a step of SGD, and TorchJD's three ways to UPGrad."""
    net = _Branched(_parameters(params))
    # The engine follows every forward pass of its net, which slows the other steps down.
    followed = _Branched(_parameters(params))
    engine = Engine(followed, batch_dim=None)
    aggregator, weighting = UPGrad(), UPGradWeighting()

    def sgd() -> None:
        net(*batch).sum().backward()

    def upgrad(chunk: int | None) -> Callable[[], None]:
        def accumulate() -> None:
            backward(net(*batch), parallel_chunk_size=chunk)
            jac_to_grad(list(net.parameters()), aggregator)

        return accumulate

    def autogram() -> None:
        losses = followed(*batch)
        losses.backward(weighting(engine.compute_gramian(losses)))

    def step(of: nn.Module, accumulate: Callable[[], None]) -> Callable[[], None]:
        optimizer = torch.optim.SGD(of.parameters(), lr=0.1, momentum=0.9)

        def run() -> None:
            optimizer.zero_grad()
            accumulate()
            optimizer.step()
            if _DEVICE == "cuda":
                torch.cuda.synchronize()

        return run

    return {
        "sgd": step(net, sgd),
        "all losses at once": step(net, upgrad(None)),
        "one loss at a time": step(net, upgrad(1)),
        "Gramian first": step(followed, autogram),
    }


def _parameters(params: Any) -> Any:
    """Return a tree of PyTorch's parameters with our values."""

    def parameter(leaf: jax.Array) -> nn.Parameter:
        tensor = torch.tensor(np.asarray(leaf), device=_DEVICE).permute(*_THEIRS[leaf.ndim])
        # Not a view: the memory layout decides which kernel of oneDNN runs.
        return nn.Parameter(tensor.contiguous())

    return jax.tree.map(parameter, params)


class _Conv(nn.Module):
    """A convolution with the padding of JAX's "SAME"."""

    def __init__(self, kernel: nn.Parameter, stride: int):
        super().__init__()
        self.weight, self.stride, size = kernel, stride, kernel.shape[-1]
        before = (size - stride) // 2 if size > 1 else 0
        after = max(size - stride, 0) - before
        self.same = size // 2 if stride == 1 else 0
        self.padding = None if stride == 1 else (before, after, before, after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, channels, height, width] → the same with height and width over stride."""
        if self.padding is not None:
            x = functional.pad(x, self.padding)
        return functional.conv2d(x, self.weight, stride=self.stride, padding=self.same)


class _Normalized(nn.Module):
    """Batch normalization and ReLU."""

    def __init__(self, tree: dict):
        super().__init__()
        self.norm = nn.BatchNorm2d(len(tree["scale"]), device=_DEVICE)
        self.norm.weight, self.norm.bias = tree["scale"], tree["bias"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep the shape."""
        return functional.relu(self.norm(x))


class _Block(nn.Module):
    """A pre-activated residual block; where it goes down, it has a shortcut."""

    def __init__(self, tree: dict):
        super().__init__()
        stride = 2 if "shortcut" in tree else 1
        convs = list(tree["block"]["convs"].values())
        self.norms = nn.ModuleList(_Normalized(each["norm"]) for each in convs)
        self.convs = nn.ModuleList(
            _Conv(each["conv"]["conv"]["kernel"], 1 if i else stride)
            for i, each in enumerate(convs)
        )
        shortcut = tree.get("shortcut")
        self.shortcut = None if shortcut is None else _Conv(shortcut["kernel"], stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, channels, height, width]."""
        first = self.norms[0](x)
        y = self.convs[0](first)
        for norm, conv in zip(self.norms[1:], self.convs[1:], strict=True):
            y = conv(norm(y))
        return y + (x if self.shortcut is None else self.shortcut(first))


class _Head(nn.Module):
    """The loss of an output."""

    def __init__(self, tree: dict):
        super().__init__()
        self.norm, self.linear = _Normalized(tree["norm"]), nn.Linear(1, 1)
        self.linear.weight, self.linear.bias = tree["linear"]["kernel"], tree["linear"]["bias"]

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[batch, channels, height, width] → []."""
        return functional.cross_entropy(self.linear(self.norm(x).mean((2, 3))), labels)


class _Branched(nn.Module):
    """The losses of all outputs of a `BranchedResNet`."""

    def __init__(self, tree: dict):
        super().__init__()
        stages = list(tree["stages"].values())
        self.stem = _Conv(stages[0]["stem"]["conv"]["kernel"], 1)
        self.stages = nn.ModuleList(
            nn.Sequential(*map(_Block, each["blocks"].values())) for each in stages
        )
        self.heads = nn.ModuleList(_Head(each["head"]) for each in stages)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[K]."""
        x, losses = self.stem(x), []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            losses.append(head(x, labels))
        return torch.stack(losses)
