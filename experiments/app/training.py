"""Training of one net in a workdir, from its data to its summary."""

import contextlib
from typing import Any

import jax
from flax import nnx
from rich.console import Console

from experiments.app import devices, growing, loop, programs, weights
from experiments.app import summary as summaries
from experiments.app.checkpoints import Checkpoints
from experiments.app.config import TrainConfig
from experiments.app.data import Dataset
from experiments.app.data_record import load_to_train
from experiments.app.files import read_json, write_json
from experiments.app.nets import make_net
from experiments.app.workdir import has_results, open_workdir
from osgd_jax.nets import AnytimeNet


def train(config: TrainConfig, console: Console) -> dict[str, Any]:
    """Run, or continue, the training of a configuration; return the content of summary.json.

    Raises:
      ValueError: settings, data or a workdir that do not fit.
      FloatingPointError: a loss that is not finite.
      devices.StoppedError: on SIGTERM or SIGINT.
    """
    config = growing.with_sizes(config)
    devices.connect(config.hosts)
    placed = devices.placement(config.run.batch_size, config.hosts.shard_state)
    about = open_workdir(config)
    dataset, net = _data_and_net(config, console)
    built = programs.build(config, dataset, placed, net)
    folder, file = config.workdir / "checkpoints", config.workdir / "summary.json"
    with contextlib.closing(Checkpoints(folder, config.run.keep_last, about)) as checkpoints:
        state, clock = checkpoints.restore_last(built.initial) or built.initial, None
        start = int(state.step)
        if start:
            console.print(f"Continuing after step {start} of {built.num_steps}.")
        if start == built.num_steps and file.exists():
            return read_json(file, *summaries.FIELDS)
        if start < built.num_steps:
            file.unlink(missing_ok=True)
            state, clock = loop.run_steps(
                config, console, dataset, placed, built, checkpoints, state
            )
        checkpoints.wait()
    summary = summaries.summarize(config, dataset, placed, built, net, state, clock)
    summary |= summaries.growth(config, dataset, placed, net, state)
    if jax.process_index() == 0:
        write_json(file, summary)
    return summary


def _data_and_net(config: TrainConfig, console: Console) -> tuple[Dataset, AnytimeNet]:
    """Load the data and make the net, with the weights of another run if there is one."""
    origin, begun_with = None, config.run.start_from or config.run.grow_from
    if begun_with and not has_results(config.workdir):
        origin = programs.read_trained(begun_with)
    option = "start_from" if config.run.start_from else "grow_from"
    dataset = load_to_train(config.workdir, config.dataset, origin and begun_with, option)
    if dataset.about:
        console.print(dataset.about, highlight=False, markup=False, soft_wrap=True)
    net = make_net(config.net, dataset, nnx.Rngs(config.run.seed))
    if origin is not None:
        weights.start_from(net.subnetwork(origin.net.num_outputs - 1), dataset, origin)
    return dataset, net
