"""Weights and inputs on any device and over any mesh: training, predictors, generators, files."""

import pytest

from tests.helpers.run_on_eight import run_on_eight


@pytest.mark.parametrize("what", ["training", "predictors", "generators", "costs"])
def test_a_mesh_gives_what_one_device_gives(what):
    run_on_eight("serving_on_meshes", what)


@pytest.mark.slow
def test_all_families_train_on_a_mesh_as_on_one_device():
    run_on_eight("serving_on_meshes", "training of all")
