"""Settings of the documentation site; `make docs` builds it."""

import importlib.metadata
import re
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import inspect

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments import pages
from experiments.benchmark.__main__ import NAMES
from tests.weightings import table

project = "osgd_jax"
release = importlib.metadata.version("osgd-jax")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["generated", "presets_table.md"]
html_theme = "furo"
html_title = "osgd_jax"
html_show_copyright = False
html_static_path = ["_static"]
templates_path = ["_templates"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"  # browsers draw it themselves, without a script from elsewhere

# A name between single backticks in a docstring is code, and a link where it is a public name.
default_role = "py:obj"
copybutton_exclude = ".linenos, .gp, .go"  # an example is copied without prompts and results
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


def _show_constructor(app, what, name, obj, options, signature, return_annotation):
    """Show the arguments of a module's constructor, which the metaclass of Flax hides."""
    if what != "class" or signature != "(*args, **kwargs)":
        return None
    arguments = inspect.signature(obj.__init__, bound_method=True)
    return inspect.stringify_signature(arguments, show_annotation=False), return_annotation


def _escape(app, what, name, obj, options, lines):
    """Docstrings are text: the stars and bars of shapes and norms are no markup."""
    pieces = "\n".join(lines).split("`")
    pieces[::2] = [re.sub(r"\||(?<=, )\*(?=\w)", r"\\\g<0>", piece) for piece in pieces[::2]]
    lines[:] = "`".join(pieces).split("\n")


# Docstrings hold formulas that read well in a terminal too: these characters and words in place
# of the commands of LaTeX.
_COMMANDS = {
    "←": r"\leftarrow ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "‖": r"\|",
    "∑": r"\sum ",
    "∏": r"\prod ",
    "≥": r"\ge ",
    "≤": r"\le ",
    "·": r"\cdot ",
    "ᵀ": r"^{\top}",
    "²": "^2",
}


def _in_latex(text):
    """List the formulas of a text: the text itself if it is LaTeX, else one for each line."""
    if "\\" in text:
        return [text]
    text = re.sub("[A-Za-z]{2,}", r"\\operatorname{\g<0>}", text)
    text = re.sub("|".join(_COMMANDS), lambda found: _COMMANDS[found.group()], text)
    return list(filter(None, map(str.strip, text.split("\n"))))


def _write_math(display):
    def visit(self, node):
        self.body += [convert(formula, display=display) for formula in _in_latex(node.astext())]
        raise nodes.SkipNode

    return visit, None


def _tables_of_results(generated):
    """Join the pages of the studies of nets and of all benchmarks."""
    benchmarks = [f"benchmark_{name}" for name in NAMES]
    names = ["conflict", "trade", "growth", "study", *benchmarks, "language"]
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
    app.connect("autodoc-process-signature", _show_constructor)
    app.connect("autodoc-skip-member", _leave_out_tuple_fields)
