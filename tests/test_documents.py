"""The code in the documents runs, and what they link to is there."""

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
# Links between the pages of the site are checked when it is built (test_docs.py).
_PAGES = [str(path.relative_to(_ROOT)) for path in sorted((_ROOT / "docs").rglob("*.md"))]


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
