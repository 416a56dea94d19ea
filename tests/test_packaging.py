"""The package of a user: wheel and sdist that install, a light import, types that check."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import osgd_jax

_ROOT = Path(__file__).parents[1]


def _run(*command, **kwargs):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, **kwargs)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with the sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    # The build backend is in this environment, so that no network is needed.
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, _ROOT)
    return folder


def test_wheel_holds_the_library_and_nothing_else(dist):
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(_ROOT)) for path in (_ROOT / "osgd_jax").rglob("*.py")}
    assert sources | {"osgd_jax/py.typed"} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"osgd_jax"}


def test_sdist_holds_what_a_packager_needs(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CITATION.cff"} <= names


def test_tests_of_the_sdist_need_nothing_else(dist, tmp_path):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    # In front of the programs of this checkout, which are installed here.
    (root / "experiments.py").write_text("raise ImportError('not in the sdist')")
    collect = ("-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider")
    env = {**os.environ, "PYTHONPATH": str(root)}
    collected = _run(sys.executable, *collect, cwd=root, env=env)
    assert "tests/weightings/test_values.py" in collected
    assert "tests/experiments" not in collected


def test_version_is_that_of_the_distribution(dist):
    assert (dist / f"osgd_jax-{osgd_jax.__version__}.tar.gz").exists()


def test_dir_lists_the_public_names():
    assert {*osgd_jax.__all__, "__version__", "plots"} == set(dir(osgd_jax))


def test_results_and_states_are_listed_in_typing_and_importable_from_the_top():
    assert not {*osgd_jax.typing.__all__} & {*dir(osgd_jax)}
    for name in osgd_jax.typing.__all__:
        assert getattr(osgd_jax, name) is getattr(osgd_jax.typing, name)


def test_wheel_installs_and_runs_elsewhere(dist, tmp_path):
    (wheel,) = dist.glob("*.whl")
    target = tmp_path / "installed"
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target)
    _run(sys.executable, *install, wheel)
    program = (
        "import osgd_jax, jax.numpy as jnp; tx = osgd_jax.osgd(0.1); p = jnp.ones(2);"
        "g = osgd_jax.task_grads(lambda p: (p[0], p[1]))(p);"
        "print(osgd_jax.__file__, tx.update(g, tx.init(p), p)[0].shape)"
    )
    env = {"PYTHONPATH": str(target), "JAX_PLATFORMS": "cpu", "PATH": ""}
    printed = _run(sys.executable, "-c", program, cwd=tmp_path, env=env)
    assert printed.startswith(str(target))


def test_import_is_light():
    program = (
        "import sys, osgd_jax, osgd_jax.plots;"
        "print([m for m in ('matplotlib', 'tensorflow', 'sklearn', 'scipy.optimize', 'experiments')"
        " if m in sys.modules])"
    )
    assert _run(sys.executable, "-c", program).strip() == "[]"


def test_a_users_code_type_checks_in_strict_mode(tmp_path):
    (tmp_path / "user.py").write_text(_USER)
    # Optax has no marker of its types, which is not the user's fault nor ours.
    config = {"typeCheckingMode": "strict", "reportMissingTypeStubs": False}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    checker = Path(sys.executable).with_name("basedpyright")
    _run(checker, "--pythonpath", sys.executable, "-p", tmp_path)


def test_citation_names_the_paper():
    paper = yaml.safe_load((_ROOT / "CITATION.cff").read_text())["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Wan",
        "Hoffmann",
        "Lu",
        "Maire",
    ]
    assert paper["year"] == 2020
    assert paper["url"].endswith("2008.06635")


_USER = """
import jax
import jax.numpy as jnp
import optax

import osgd_jax


def losses(params: dict[str, jax.Array], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = x @ params["w"]
    return jnp.mean(y), jnp.mean(jnp.square(y))


def make(rate: float) -> optax.GradientTransformationExtraArgs:
    return osgd_jax.osgd(rate, momentum=0.9, order=(1, 0), scope="all")


def look(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    gradients = osgd_jax.task_grads(losses)
    return osgd_jax.task_cosines(osgd_jax.gramian(gradients(params, x)))


def price(net: osgd_jax.nets.AnytimeNet) -> list[int]:
    return [output.multiply_adds for output in osgd_jax.cost(net, (8, 8, 1))]


def answer(net: osgd_jax.nets.AnytimeNet, x: jax.Array) -> jax.Array:
    return osgd_jax.AnytimePredictor(net).predict(x, deadline=0.01).logits


weighting: osgd_jax.weightings.Weighting = osgd_jax.weightings.upgrad()
"""
