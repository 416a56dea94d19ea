"""Settings of the documentation site; `make docs` builds it."""

import importlib.metadata
import re
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments import pages
from experiments.benchmark.__main__ import NAMES
from tests.weightings import table

project = "osgd_jax"
release = importlib.metadata.version("osgd-jax")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["generated", "presets_table.md"]
html_theme = "furo"
html_title = "osgd_jax"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"  # browsers draw it themselves, without a script from elsewhere

# A name between single backticks in a docstring is code.
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_attr_annotations = False

# The notebooks are shown as they are stored; tests/test_notebooks.py runs them.
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # widgets need a running kernel; the page loads no script from elsewhere
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


def _write_math(display):
    def visit(self, node):
        self.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode

    return visit, None


def _tables_of_results(generated):
    """Join the pages of the studies of nets and of all benchmarks."""
    names = ["study", *(f"benchmark_{name}" for name in NAMES), "language"]
    text = "\n".join((generated / f"{name}.md").read_text() for name in names)
    # Links to files beside the pages, seen from here.
    return re.sub(r"\]\((?![a-z]+:|#)", "](generated/", text)


def setup(app):
    """Write what is generated, draw formulas, and tidy the reference."""
    generated = Path(__file__).parent / "generated"
    pages.write(generated)
    (generated / "results.md").write_text(_tables_of_results(generated))
    (generated / "weightings.md").write_text(table.table())
    app.add_html_math_renderer("mathml", _write_math("inline"), _write_math("block"))
    app.connect("autodoc-process-docstring", _escape, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", _leave_out_tuple_fields)
