"""The same run on one device, on eight, and in two processes."""

import socket

import numpy as np
import pytest

from tests.experiments.running import finish, finish_apart, metrics, parameters, start

_RUN = (
    *("--data", "digits", "--net", "width-nested", "--outputs", "2", "--widths", "8"),
    *("--train-size", "200", "--batch-size", "40", "--epochs", "4", "--log-every", "1"),
    *("--learning-rate", "0.02"),
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Workdir of 20 steps on one device."""
    workdir = tmp_path_factory.mktemp("alone")
    finish("train", *_RUN, "--workdir", workdir)
    return workdir


def _assert_equal_to_rounding(workdir, alone):
    found, wanted = metrics(workdir), metrics(alone)
    assert [record["step"] for record in found] == list(range(1, 21))
    for name in ("losses", "gradient_norms", "task_cosines"):
        np.testing.assert_allclose(
            [record[name] for record in found],
            [record[name] for record in wanted],
            rtol=2e-3,
            atol=2e-4,
            err_msg=name,
        )
    first = [records[0]["losses"] for records in (found, wanted)]
    np.testing.assert_allclose(*first, rtol=1e-6)
    np.testing.assert_allclose(
        found[-1]["validation_losses"], wanted[-1]["validation_losses"], rtol=2e-3
    )
    # All that is saved: parameters, batch statistics, momentum, step and random key.
    for each, other in zip(parameters(workdir), parameters(alone), strict=True):
        np.testing.assert_allclose(each, other, rtol=2e-3, atol=5e-4)


@pytest.mark.parametrize("options", [(), ("--shard-state",)], ids=["replicated", "sharded"])
def test_eight_devices_give_what_one_gives(tmp_path, alone, options):
    flags = "--xla_force_host_platform_device_count=8"
    finish_apart("train", *_RUN, *options, "--workdir", tmp_path, XLA_FLAGS=flags)
    _assert_equal_to_rounding(tmp_path, alone)


def test_two_processes_give_what_one_gives(tmp_path, alone):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        start(
            *("train", *_RUN, "--workdir", tmp_path, "--coordinator", address),
            *("--num-processes", 2, "--process-id", index),
        )
        for index in range(2)
    ]
    for process in processes:
        printed, _ = process.communicate(timeout=200)
        assert process.returncode == 0, printed
    _assert_equal_to_rounding(tmp_path, alone)
