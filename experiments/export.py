"""Write the net of a run to one file for serving: `python -m experiments.export DIR --output FILE`.

The file takes inputs as they are in image files; what standardises them is inside. FILE.json beside
it names the classes and says what `python -m experiments.predict` reads images to. The data that
the run was trained on is not needed.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

from experiments.app import command_line
from experiments.app.data_record import class_names
from experiments.app.files import digest, open_file, write_json
from experiments.app.programs import read_trained
from osgd_jax import AnytimePredictor


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Export a trained anytime net.

    Attributes:
      workdir: of a run of `python -m experiments.train`.
      output: the file to write; net.anytime in the workdir if not given.
      checkpoint: the last one, or the one with the best mean validation accuracy.
    """

    workdir: tyro.conf.Positional[Path]
    output: Path | None = None
    checkpoint: Literal["last", "best"] = "last"


class Standardised(nnx.Module):
    """An anytime net for inputs as they are in files."""

    def __init__(self, net: Any, mean: tuple[float, ...], deviation: tuple[float, ...]):
        self.net = net
        self.mean, self.deviation = mean, deviation
        self.num_outputs, self.in_channels = net.num_outputs, net.in_channels
        self.spatial_dims = net.spatial_dims

    def start(self, x: jax.Array) -> Any:
        """Return the carry of the first stage."""
        mean, deviation = jnp.array([self.mean, self.deviation], jnp.float32)
        return self.net.start((x - mean) / deviation)

    def advance(self, k: int, carry: Any) -> Any:
        """Return the logits of output k, and the carry of the next stage."""
        return self.net.advance(k, carry)


def export(config: ExportConfig) -> Path:
    """Write the file and its description; return the file.

    Raises:
      ValueError: no run or no readable checkpoint in the workdir.
    """
    output = config.output or config.workdir / "net.anytime"
    open_file(output)
    trained = read_trained(config.workdir, config.checkpoint)
    dataset = trained.dataset
    if dataset.is_text:
        raise ValueError(f"{config.workdir} has a net for text, which is not exported.")
    net = Standardised(trained.net, dataset.mean, dataset.deviation)
    AnytimePredictor(net).export(output, input_shape=dataset.input_shape)
    about = {
        "classes": class_names(dataset),
        "input_shape": dataset.input_shape,
        "dtype": dataset.dtype,
        "data": dataset.name,
        "step": int(trained.state.step),
        "sha256": digest(output),
    }
    write_json(output.with_name(f"{output.name}.json"), about)
    return output


def main() -> None:
    """Command line."""
    try:
        config = command_line.read(ExportConfig, "experiments.export", __doc__)
        output = export(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"Wrote {output}, and {output.name}.json beside it.")


if __name__ == "__main__":
    main()
