"""The code in the documents runs, and what they link to is there."""

import importlib
import inspect
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import tyro

import osgd_jax
from osgd_jax import plots
from osgd_jax.nets import presets
from tests.weightings.table import methods

_ROOT = Path(__file__).parents[1]
_DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
# Links between the pages of the site are checked when it is built (test_docs.py).
_PAGES = [
    str(path.relative_to(_ROOT))
    for path in sorted((_ROOT / "docs").rglob("*.md"))
    if "generated" not in path.parts
]


@pytest.mark.parametrize("name", [*_DOCUMENTS, *_PAGES])
def test_python_blocks_run_in_order(name):
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", (_ROOT / name).read_text(), re.DOTALL):
        exec(block, namespace)


@pytest.mark.parametrize("name", _DOCUMENTS)
def test_links_to_files_lead_somewhere(name):
    targets = re.findall(r"\]\(([^)]+)\)", (_ROOT / name).read_text())
    missing = [
        target
        for target in targets
        if "://" not in target and not (_ROOT / target.partition("#")[0]).exists()
    ]
    assert not missing


def test_readme_has_the_table_of_methods():
    assert methods() in (_ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "module",
    [osgd_jax, osgd_jax.nets, presets, osgd_jax.weightings, osgd_jax.typing, plots],
    ids=lambda module: module.__name__,
)
def test_reference_lists_every_public_name(module):
    text = "".join(path.read_text() for path in sorted((_ROOT / "docs/reference").glob("*.md")))
    listed = re.findall(rf"(?m)^\.\. currentmodule:: {module.__name__}\n((?:(?!```).*\n)*)", text)
    names = re.findall(r"(?m)^   (\w+)$", "".join(listed))
    public = [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
    assert sorted(names) == sorted(public)


@pytest.mark.parametrize("name", [*_DOCUMENTS, *_PAGES])
def test_commands_exist_and_take_their_options(name):
    text = (_ROOT / name).read_text().replace("\\\n", " ")
    for module, rest in re.findall(r"\bpython -m ((?:experiments|osgd_jax)[\w.]*)([^`\n]*)", text):
        arguments = shlex.split(re.split("[>#]", rest)[0])
        is_benchmark = module == "experiments.benchmark"
        if is_benchmark and arguments and arguments[0].isalpha():
            module = f"{module}.{arguments.pop(0)}"
        found = importlib.import_module(module)
        if hasattr(found, "__path__"):
            found = importlib.import_module(f"{module}.__main__")
        if arguments and arguments != ["--help"] and hasattr(found, "Config"):
            config = found.Config if is_benchmark else tyro.conf.OmitArgPrefixes[found.Config]
            tyro.cli(config, args=arguments)  # exits on an unknown option

    targets = re.findall(r"(?m)^([a-z-]+):", (_ROOT / "Makefile").read_text())
    assert set(re.findall(r"(?m)(?:^|`)make ([a-z-]+)", text)) <= set(targets)

    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"\.\[([\w,]+)\]'", text)
    assert {extra for each in extras for extra in each.split(",")} <= set(
        project["optional-dependencies"]
    )
