"""Every public docstring describes its arguments and results, and its example runs."""

import doctest
import inspect
import re

import numpy as np
import pytest

import osgd_jax
from osgd_jax import plots
from osgd_jax.nets import presets

_MODULES = [osgd_jax, osgd_jax.nets, presets, osgd_jax.weightings, osgd_jax.typing, plots]
_PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in _MODULES
    for name in module.__all__
    if callable(getattr(module, name))
}
_NUMBER = re.compile(r"-?\d+\.\d*")


class _Checker(doctest.OutputChecker):
    """Compares numbers with the precision of two decimals, and the rest as text."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        numbers = [np.array(_NUMBER.findall(text), float) for text in (want, got)]
        want, got = (_NUMBER.sub("0.", text) for text in (want, got))
        return super().check_output(want, got, optionflags) and np.allclose(*numbers, atol=0.006)


@pytest.mark.parametrize("name", _PUBLIC)
def test_example_runs(name):
    example = doctest.DocTestParser().get_doctest(_PUBLIC[name].__doc__, {}, name, None, None)
    assert example.examples, f"{name} has no example."
    runner = doctest.DocTestRunner(_Checker(), optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(example)
    assert not runner.failures


@pytest.mark.parametrize("name", _PUBLIC)
def test_docstring_is_complete(name):
    public = _PUBLIC[name]
    fields = getattr(public, "_fields", getattr(public, "__dataclass_fields__", ()))
    doc = inspect.getdoc(public) + "\n"
    sections = dict(re.findall(r"(?m)^(\w+):\n((?:(?:  .*)?\n)+)", doc))
    described = sections.get("Attributes" if fields else "Args", "")
    missing = [
        parameter
        for parameter in fields or _parameters(public)
        if not re.search(rf"(?m)^  \**{parameter}: ", described)
    ]
    assert not missing or "  **others: as for " in described
    if inspect.isfunction(public):
        assert "Returns" in sections
        source = inspect.getsource(inspect.unwrap(public))
        assert "Raises" in sections or not re.search(r"\braise\b|\bcheck_\w+\(", source)


def _parameters(public) -> list[str]:
    call = public.__init__ if inspect.isclass(public) else public
    hidden = "self", "args", "kwargs"
    return [name for name in inspect.signature(call).parameters if name not in hidden]
