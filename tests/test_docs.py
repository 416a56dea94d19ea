"""The documentation site builds without a warning, and its words are spelled as they should be."""

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_PROSE = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "docs", "notebooks"]


def _run(*command):
    result = subprocess.run(
        [sys.executable, "-m", *map(str, command)], cwd=_ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_site_builds_without_warnings(tmp_path):
    _run("sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "cache", "docs", tmp_path / "site")
    for page in ("index", "reference/index", "notebooks/1_osgd_in_ten_minutes"):
        assert (tmp_path / "site" / f"{page}.html").exists()


def test_spelling():
    # The first expression leaves out the pictures in notebooks.
    _run("codespell_lib", "--ignore-regex", '"image/png": .*', "--skip", "generated", *_PROSE)
