"""The notebooks run from top to bottom, and are stored with what they showed."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

_NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
_names = pytest.mark.parametrize("path", _NOTEBOOKS, ids=lambda path: path.stem)


# The first runs with the other tests; the others take about a minute each.
@pytest.mark.parametrize(
    "path",
    [_NOTEBOOKS[0], *(pytest.param(path, marks=pytest.mark.slow) for path in _NOTEBOOKS[1:])],
    ids=lambda path: path.stem,
)
def test_runs(path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": path.parent}})
    client.execute()
    for output in _outputs(notebook):
        assert output.get("name") != "stderr", output.text


@_names
def test_is_stored_with_outputs_and_plots(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert any("image/png" in output.get("data", {}) for output in _outputs(notebook))


@_names
def test_says_nothing_of_the_machine_that_ran_it(path):
    text = re.sub(r'"image/png": ".*"', "", path.read_text())
    assert not re.search(r"""(^|[\s"'(=\\])/\w+/\w+|site-packages""", text)


def _outputs(notebook):
    return [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
