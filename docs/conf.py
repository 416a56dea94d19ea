"""Settings of the documentation site; `make docs` builds it."""

import importlib.metadata
import re
from pathlib import Path

from osgd_jax.nets import presets

project = "osgd_jax"
release = importlib.metadata.version("osgd-jax")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["generated"]
html_theme = "furo"
html_title = "osgd_jax"

# A name between single backticks in a docstring is code.
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_ivar = True

# The notebooks are shown as they are stored; tests/test_notebooks.py runs them.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2


def _leave_out_tuple_fields(app, what, name, member, skip, options):
    """Fields of named tuples are described in the class; their own docstrings are generated."""
    return skip or str(getattr(member, "__doc__", "")).startswith("Alias for field number")


def _escape(app, what, name, obj, options, lines):
    """Docstrings are text: the stars and bars of shapes and norms are no markup."""
    pieces = "\n".join(lines).split("`")
    pieces[::2] = [re.sub(r"\||(?<=, )\*(?=\w)", r"\\\g<0>", piece) for piece in pieces[::2]]
    lines[:] = "`".join(pieces).split("\n")


def setup(app):
    """Write the generated table of the nets, and tidy the reference."""
    generated = Path(__file__).parent / "generated"
    generated.mkdir(exist_ok=True)
    (generated / "presets.md").write_text(presets.table() + "\n")
    app.connect("autodoc-process-docstring", _escape, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", _leave_out_tuple_fields)
