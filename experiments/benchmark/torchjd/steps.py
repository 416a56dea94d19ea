"""Training steps of TorchJD, for `compare.py`, which runs this with another interpreter.

    PYTHON steps.py INPUT.npz OUTPUT.npz ROUNDS

The input holds the parameters of a `BranchedResNet` by path, images and labels; the output, each
loss's gradients and the seconds of each step.
"""
# pyright: reportMissingImports=false

import importlib.metadata
import json
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchjd.aggregation import UPGrad, UPGradWeighting
from torchjd.autogram import Engine
from torchjd.autojac import backward, jac_to_grad


class Conv(nn.Module):
    """A convolution with the padding of JAX's "SAME"."""

    def __init__(self, kernel: np.ndarray, stride: int):
        super().__init__()
        # Not a view: the memory layout decides which kernel of oneDNN runs.
        self.weight = nn.Parameter(torch.tensor(kernel).permute(3, 2, 0, 1).contiguous())
        self.stride = stride
        self.size = kernel.shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, channels, height, width] → the same with height and width over stride."""
        if self.stride == 1:
            return functional.conv2d(x, self.weight, padding=self.size // 2)
        before = (self.size - self.stride) // 2 if self.size > 1 else 0
        after = max(self.size - self.stride, 0) - before
        padded = functional.pad(x, (before, after, before, after))
        return functional.conv2d(padded, self.weight, stride=self.stride)


class Normalized(nn.Module):
    """Batch normalisation and ReLU."""

    def __init__(self, tree: dict):
        super().__init__()
        self.norm = nn.BatchNorm2d(len(tree["scale"]))
        self.norm.weight.data = torch.tensor(tree["scale"])
        self.norm.bias.data = torch.tensor(tree["bias"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keeps the shape."""
        return functional.relu(self.norm(x))


class Block(nn.Module):
    """A pre-activated residual block; where it goes down, it has a shortcut."""

    def __init__(self, tree: dict):
        super().__init__()
        stride = 2 if "shortcut" in tree else 1
        convs = list(tree["block"]["convs"].values())
        self.norms = nn.ModuleList(Normalized(each["norm"]) for each in convs)
        self.convs = nn.ModuleList(
            Conv(each["conv"]["conv"]["kernel"], stride if i == 0 else 1)
            for i, each in enumerate(convs)
        )
        shortcut = tree.get("shortcut")
        self.shortcut = None if shortcut is None else Conv(shortcut["kernel"], stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, channels, height, width]."""
        first = self.norms[0](x)
        y = self.convs[0](first)
        for norm, conv in zip(self.norms[1:], self.convs[1:], strict=True):
            y = conv(norm(y))
        return y + (x if self.shortcut is None else self.shortcut(first))


class Branched(nn.Module):
    """The losses of all outputs."""

    def __init__(self, tree: dict):
        super().__init__()
        stages = list(tree["stages"].values())
        self.stem = Conv(stages[0]["stem"]["conv"]["kernel"], 1)
        self.stages = nn.ModuleList(
            nn.Sequential(*map(Block, each["blocks"].values())) for each in stages
        )
        self.norms = nn.ModuleList(Normalized(each["head"]["norm"]) for each in stages)
        self.linears = nn.ModuleList(nn.Linear(1, 1) for _ in stages)
        for linear, each in zip(self.linears, stages, strict=True):
            values = each["head"]["linear"]
            linear.weight = nn.Parameter(torch.tensor(values["kernel"]).T.contiguous())
            linear.bias = nn.Parameter(torch.tensor(values["bias"]))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[K]."""
        x, losses = self.stem(x), []
        for stage, norm, linear in zip(self.stages, self.norms, self.linears, strict=True):
            x = stage(x)
            losses.append(functional.cross_entropy(linear(norm(x).mean((2, 3))), labels))
        return torch.stack(losses)

    def by_path(self) -> dict[str, nn.Parameter]:
        """The parameters by the paths of the input."""
        named = {"stages.0.stem.conv.kernel": self.stem.weight}
        for k, stage in enumerate(self.stages):
            for i, block in enumerate(stage):
                path = f"stages.{k}.blocks.{i}"
                for j, (norm, conv) in enumerate(zip(block.norms, block.convs, strict=True)):
                    named[f"{path}.block.convs.{j}.norm.scale"] = norm.norm.weight
                    named[f"{path}.block.convs.{j}.norm.bias"] = norm.norm.bias
                    named[f"{path}.block.convs.{j}.conv.conv.kernel"] = conv.weight
                if block.shortcut is not None:
                    named[f"{path}.shortcut.kernel"] = block.shortcut.weight
            named[f"stages.{k}.head.norm.scale"] = self.norms[k].norm.weight
            named[f"stages.{k}.head.norm.bias"] = self.norms[k].norm.bias
            named[f"stages.{k}.head.linear.kernel"] = self.linears[k].weight
            named[f"stages.{k}.head.linear.bias"] = self.linears[k].bias
        return named


def nested(arrays: dict[str, np.ndarray]) -> dict:
    """A tree of dictionaries from paths joined by dots."""
    tree = {}
    for path, array in arrays.items():
        *parents, last = path.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = array
    return tree


def jax_layout(gradient: torch.Tensor) -> np.ndarray:
    """Of a kernel: outputs last."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[gradient.ndim]
    return gradient.permute(*axes).numpy()


def main() -> None:
    """Command line."""
    source, target, rounds = sys.argv[1:]
    arrays = dict(np.load(source))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.tensor(arrays.pop("images")).permute(0, 3, 1, 2).contiguous().to(device)
    labels = torch.tensor(arrays.pop("labels")).long().to(device)
    net = Branched(nested(arrays)).to(device)
    parameters = list(net.parameters())
    # The engine follows every forward pass of its net, which slows the other steps down.
    followed = Branched(nested(arrays)).to(device)
    engine = Engine(followed, batch_dim=None)
    aggregator, weighting = UPGrad(), UPGradWeighting()

    def sgd() -> None:
        net(images, labels).sum().backward()

    def upgrad(chunk: int | None):
        def step() -> None:
            backward(net(images, labels), parallel_chunk_size=chunk)
            jac_to_grad(parameters, aggregator)

        return step

    def autogram() -> None:
        losses = followed(images, labels)
        losses.backward(weighting(engine.compute_gramian(losses)))

    gradients = {}
    for task, loss in enumerate(net(images, labels)):
        for path, parameter in net.by_path().items():
            (gradient,) = torch.autograd.grad(
                loss, parameter, retain_graph=True, materialize_grads=True
            )
            gradients[f"{task}/{path}"] = jax_layout(gradient.cpu())

    plain = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    followed_plain = torch.optim.SGD(followed.parameters(), lr=0.1, momentum=0.9)
    steps = {
        "sgd": (sgd, plain),
        "all losses at once": (upgrad(None), plain),
        "one loss at a time": (upgrad(1), plain),
        "Gramian first": (autogram, followed_plain),
    }
    seconds = {name: [] for name in steps}
    for _ in range(int(rounds) + 1):
        for name, (step, optimizer) in steps.items():
            started = time.perf_counter()
            optimizer.zero_grad()
            step()
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchjd")}
    np.savez(
        target,
        seconds=json.dumps({name: each[1:] for name, each in seconds.items()}),
        versions=json.dumps(versions),
        **gradients,
    )


if __name__ == "__main__":
    main()
