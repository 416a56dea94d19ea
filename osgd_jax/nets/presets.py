"""Named sizes of the nets for CIFAR, ImageNet and text.

`python -m osgd_jax.nets.presets [NAME …]` prints their parameters and multiply-adds as a table in
Markdown. The number in a name is the number of layers at the last output, counted as for residual
nets: the first convolution, those of the residual blocks and the linear layer; for MSDNet as its
paper counts. Of the nets of 50 layers for ImageNet only the branched one is ResNet-50 (with two
more heads). The net nested in width has the blocks of ResNet-50, with block lower triangular
convolutions. Nets nested in depth have four blocks at each resolution, not 3, 4, 6 and 3.

The number of a language model (`lm-…`) is the parameters of the well-known net of its width and
layers: the 10.6 million of nanoGPT for characters, here of bytes, and the 124 million of GPT-2
(small). Those embed tokens by the matrix that also gives the logits; here they are two.
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from flax import nnx

from osgd_jax.nets.base import AnytimeNet
from osgd_jax.nets.cost import cost
from osgd_jax.nets.msdnet import MSDNet
from osgd_jax.nets.resnets.branched import BranchedResNet
from osgd_jax.nets.resnets.depth_nested import DepthNestedResNet
from osgd_jax.nets.resnets.nested import NestedResNet
from osgd_jax.nets.resnets.width_nested import WidthNestedResNet
from osgd_jax.nets.transformers.base import Transformer
from osgd_jax.nets.transformers.branched import BranchedTransformer
from osgd_jax.nets.transformers.depth_nested import DepthNestedTransformer
from osgd_jax.nets.transformers.nested import NestedTransformer
from osgd_jax.nets.transformers.width_nested import WidthNestedTransformer

__all__ = ["PRESETS", "Preset", "make", "table"]


@dataclasses.dataclass(frozen=True)
class Preset:
    """A net with all its sizes.

    Attributes:
      make: the constructor.
      arguments: all its arguments but `rngs`.
      input_shape: the shape of one example.

    Example:
      >>> from osgd_jax.nets import presets
      >>> presets.PRESETS["cifar-width-20"].arguments
      {'num_classes': 10, 'widths': (16, 32, 64), 'blocks': (3, 3, 3)}
    """

    make: Callable[..., AnytimeNet]
    arguments: dict[str, Any]
    input_shape: tuple[int, ...]


def _cifar() -> dict[str, Preset]:
    shape, shared = (32, 32, 3), {"num_classes": 10, "widths": (16, 32, 64)}
    presets = {}
    # The sizes of He et al. 2016 (arXiv 1512.03385): 6n + 2 layers.
    for n in (3, 5, 7, 9, 18):
        sizes = {**shared, "blocks": (n, n, n)}
        presets[f"cifar-branched-{6 * n + 2}"] = Preset(BranchedResNet, sizes, shape)
        presets[f"cifar-width-{6 * n + 2}"] = Preset(WidthNestedResNet, sizes, shape)
    # Three outputs double the depth twice.
    for n in (1, 2, 3, 4):
        sizes = {**shared, "blocks": (n, n, n)}
        presets[f"cifar-depth-{6 * 4 * n + 2}"] = Preset(DepthNestedResNet, sizes, shape)
        presets[f"cifar-nested-{6 * 4 * n + 2}"] = Preset(NestedResNet, sizes, shape)
    anytime = {"num_classes": 10, "num_outputs": 11, "base": 4, "step": 2}
    presets["cifar-msdnet-24"] = Preset(MSDNet, anytime, shape)
    # The nets for budgeted batches: the k-th classifier stands after layer 1 + 2 + … + k.
    for k in (4, 6, 8):
        sizes = {"num_outputs": k, "base": 1, "step": 1, "positions": "lin_grow"}
        name = f"cifar-msdnet-budgeted-{k * (k + 1) // 2}"
        presets[name] = Preset(MSDNet, {"num_classes": 10, **sizes}, shape)
    return presets


def _imagenet() -> dict[str, Preset]:
    shape = (224, 224, 3)
    shared = {
        "num_classes": 1000,
        "widths": (64, 128, 256, 512),
        "block": "bottleneck",
        "stem": "imagenet",
    }
    plain = {**shared, "blocks": (3, 4, 6, 3)}
    doubling = {**shared, "blocks": (1, 1, 1, 1)}
    presets = {
        "imagenet-branched-50": Preset(BranchedResNet, plain, shape),
        "imagenet-width-50": Preset(WidthNestedResNet, plain, shape),
        "imagenet-depth-50": Preset(DepthNestedResNet, doubling, shape),
        "imagenet-nested-50": Preset(NestedResNet, doubling, shape),
    }
    # The i-th classifier stands after layer step · i + 3 in the paper, and after layer step · i in
    # the nets of 20 and 35 layers, which the authors train with PyTorch (kalviny/MSDNet-PyTorch).
    for base, step in ((4, 4), (7, 4), (9, 6), (7, 7), (10, 7)):
        sizes = {
            "num_classes": 1000,
            "num_outputs": 5,
            "channels": 32,
            "growth_rate": 16,
            "growth_factors": (1, 2, 4, 4),
            "bottleneck_factors": (1, 2, 4, 4),
            "base": base,
            "step": step,
            "stem": "imagenet",
        }
        presets[f"imagenet-msdnet-{base + 4 * step}"] = Preset(MSDNet, sizes, shape)
    return presets


def _text() -> dict[str, Preset]:
    presets = {}
    families = {
        "branched": BranchedTransformer,
        "width": WidthNestedTransformer,
        "depth": DepthNestedTransformer,
        "nested": NestedTransformer,
    }
    for size, vocab_size, width, heads, layers, length in (
        ("10m", 256, 384, 6, 6, 256),
        ("124m", 50257, 768, 12, 12, 1024),
    ):
        for name, make in families.items():
            # Two outputs double the depth of six layers once, three that of twelve twice.
            doubles = name in ("depth", "nested")
            outputs = 2 if doubles and layers == 6 else 3
            depth = layers // 2 ** (outputs - 1) if doubles else layers
            sizes = {"width": width, "num_heads": heads, "depth": depth, "num_outputs": outputs}
            presets[f"lm-{name}-{size}"] = Preset(
                make, {"vocab_size": vocab_size, **sizes}, (length,)
            )
    return presets


PRESETS = {**_cifar(), **_imagenet(), **_text()}
"""Every `Preset` by its name."""


def make(name: str, *, rngs: nnx.Rngs, **changes: Any) -> AnytimeNet:
    """Make the net of a preset.

    Args:
      name: one of `PRESETS`.
      rngs: source of the initial parameters.
      **changes: arguments of the net in place of the preset's, such as `num_classes`, `vocab_size`
        or `dtype`.

    Returns:
      An `AnytimeNet`.

    Raises:
      ValueError: `name` is not one of `PRESETS`.

    Example:
      >>> from flax import nnx
      >>> from osgd_jax.nets import presets
      >>> net = presets.make("cifar-width-20", num_classes=100, rngs=nnx.Rngs(0))
      >>> net.num_outputs, net.num_classes
      (3, 100)
    """
    preset = _find(name)
    return preset.make(rngs=rngs, **{**preset.arguments, **changes})


def table(*names: str) -> str:
    """Return a Markdown table of the parameters and multiply-adds of presets.

    Args:
      *names: names of presets; all of them if there is none.

    Returns:
      A table with millions for each output in order, cumulative as `osgd_jax.cost` counts them.
      Multiply-adds of language models are for one token of a text of the input's length.

    Raises:
      ValueError: a name is not one of `PRESETS`.

    Example:
      >>> from osgd_jax.nets import presets
      >>> print(presets.table("cifar-width-20"))
      | preset | input | parameters (millions) | multiply-adds (millions) |
      | --- | --- | --- | --- |
      | `cifar-width-20` | 32×32×3 | 0.02, 0.05, 0.19 | 2.6, 7.8, 28.2 |
    """
    lines = [
        "| preset | input | parameters (millions) | multiply-adds (millions) |",
        "| --- | --- | --- | --- |",
    ]
    for name in names or PRESETS:
        preset = _find(name)
        net = nnx.eval_shape(lambda name=name: make(name, rngs=nnx.Rngs(0)))
        costs = cost(net, preset.input_shape)
        shape = "×".join(map(str, preset.input_shape))
        parameters = ", ".join(f"{entry.parameters / 1e6:.2f}" for entry in costs)
        tokens = preset.input_shape[0] if isinstance(net, Transformer) else 1
        work = ", ".join(f"{entry.multiply_adds / tokens / 1e6:.1f}" for entry in costs)
        lines.append(f"| `{name}` | {shape} | {parameters} | {work} |")
    return "\n".join(lines)


def _find(name: str) -> Preset:
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"name={name!r} must be one of {', '.join(PRESETS)}.")
    return PRESETS[name]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="presets; all by default")
    print(table(*parser.parse_args().names))
