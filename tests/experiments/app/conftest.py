"""Runs that the tests of several files read."""

import pytest

from tests.experiments.running import SMALL, finish


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """The workdir of a finished run of `SMALL`; tests that change it work on copies."""
    workdir = tmp_path_factory.mktemp("digits") / "run"
    finish("train", *SMALL, "--workdir", workdir)
    return workdir
