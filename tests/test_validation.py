"""The first difference between two trees, in place of JAX's text of their structures."""

from collections import OrderedDict

import pytest

from osgd_jax._validation import flatten_like

LIKE = {"a": 1, "b": (2, 3)}
LEAVES = "the leaves are at the same places, but in containers of other types"
DIFFERENT = {
    "another key": ({"a": 1, "c": (2, 3)}, r"is \['b'\]\[0\] in params, \['c'\]\[0\] in labels"),
    "one entry fewer": ({"a": 1, "b": (2,)}, r"is \['b'\]\[1\] in params, nothing in labels"),
    "one entry more": ({"a": 1, "b": (2, 3), "c": 4}, r"is nothing in params, \['c'\] in labels"),
    "a leaf for a tree": (0, r"is \['a'\] in params, a leaf in labels"),
    "no leaf for a tree": (None, r"is \['a'\] in params, a leaf in labels"),
    "a list for a tuple": ({"a": 1, "b": [2, 3]}, LEAVES),
    "another kind of dict": (OrderedDict(LIKE), LEAVES),
    "a deeper tree elsewhere": (
        {"a": (1, 2), "d": ({"x": 1},)},
        r"is \['b'\]\[0\] in params, \['d'\]\[0\] in labels",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_first_difference_is_named(case):
    tree, difference = DIFFERENT[case]
    with pytest.raises(ValueError, match=r"labels must .* of params; .*") as error:
        flatten_like(tree, LIKE, ("labels", "params"), "Do this.")
    assert error.match(rf"{difference}\. Do this\.$")
    assert "PyTreeDef" not in str(error.value)


@pytest.mark.parametrize("label", [None, ("x", 0), "x", {}])
def test_a_tree_may_go_on_where_the_other_has_a_leaf(label):
    tree = {"a": label, "b": (1, label)}
    assert flatten_like(tree, LIKE, ("labels", "params")) == [label, 1, label]
