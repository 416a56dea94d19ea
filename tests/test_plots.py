"""The drawings show what they are given, and what a net really computes."""

import sys

import jax
import matplotlib
import numpy as np
import pytest
from flax import nnx
from matplotlib.figure import Figure

import osgd_jax
from osgd_jax import nets, plots

matplotlib.use("agg")

_NETS = {
    "width": nets.WidthNestedResNet,
    "depth": nets.DepthNestedResNet,
    "nested": nets.NestedResNet,
    "branched": nets.BranchedResNet,
}


@pytest.fixture
def axes():
    return Figure().subplots()


@pytest.fixture(params=_NETS)
def net(request):
    make = _NETS[request.param]
    sizes = {"widths": (8, 16), "blocks": (2, 1)}
    return nnx.eval_shape(
        lambda: make(num_classes=10, num_outputs=3, in_channels=1, rngs=nnx.Rngs(0), **sizes)
    )


def test_curve_shows_costs_and_accuracies(axes):
    assert plots.anytime_curve([1e5, 1e6], [0.5, 0.9], label="sgd", axes=axes) is axes
    line = axes.containers[0].lines[0]
    np.testing.assert_array_equal(line.get_xydata(), [[1e5, 0.5], [1e6, 0.9]])
    assert axes.get_xscale() == "log"


def test_curve_leaves_out_errors_that_are_unknown(axes):
    plots.anytime_curve([1, 2], [0.5, 0.9], error=[0.1, np.nan], axes=axes)
    (bars,) = axes.containers[0].lines[2]
    lengths = [np.ptp(segment[:, 1]) for segment in bars.get_segments()]
    np.testing.assert_allclose(lengths, [0.2, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("costs", "accuracy", "words"),
    [
        ("ab", [1, 2], "costs='ab' must be numbers"),
        ([1, 2], [[1], [1, 2]], "accuracy=.* must be numbers"),
        ([1, 2], [0.5], "shapes"),
        ([[1]], [[0.5]], "shapes"),
        ([0, 1], [0.5, 0.9], "positive"),
    ],
)
def test_curve_refuses_what_it_cannot_draw(axes, costs, accuracy, words):
    with pytest.raises(ValueError, match=words):
        plots.anytime_curve(costs, accuracy, axes=axes)


def test_cosines_have_a_line_for_each_pair(axes):
    values = np.random.default_rng(0).uniform(-1, 1, (5, 3, 3))
    plots.cosines(range(5), values, axes=axes)
    drawn = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    for i, j in ((0, 1), (0, 2), (1, 2)):
        np.testing.assert_array_equal(drawn[f"tasks {i} and {j}"], values[:, i, j])


def test_cosines_say_which_tasks_they_are_of(axes):
    plots.cosines(range(5), np.zeros((5, 3, 3)), names=("bc", "ic", "pde"), axes=axes)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["bc and ic", "bc and pde", "ic and pde"]
    with pytest.raises(ValueError, match=r"names=\('bc',\) must be 3 names"):
        plots.cosines(range(5), np.zeros((5, 3, 3)), names=("bc",), axes=axes)


def test_unbiased_cosines_are_drawn_with_their_intervals(axes):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 20, 2, 3)) + 1
    cross = first @ second.transpose(0, 2, 1)
    gramians = first @ first.transpose(0, 2, 1)
    found = [osgd_jax.diagnose(gramians[i::2], cross=cross[i::2]) for i in range(2)]
    plots.cosines(range(20), cross, unbiased=found, axes=axes)
    points = axes.get_lines()[1]
    np.testing.assert_array_equal(points.get_xdata(), [4.5, 14.5])
    np.testing.assert_array_equal(
        points.get_ydata(), [each.unbiased_cosines[0, 1] for each in found]
    )
    bars = [segment[:, 1] for segment in axes.collections[0].get_segments()]
    np.testing.assert_array_equal(bars, [each.cosine_intervals[0, 1] for each in found])
    with pytest.raises(ValueError, match="unbiased must be diagnoses of 3 tasks, got one of 2"):
        plots.cosines(range(5), np.zeros((5, 3, 3)), unbiased=found, axes=axes)


@pytest.mark.parametrize("shape", [(5, 3), (5, 1, 1), (5, 3, 2), (4, 3, 3)])
def test_cosines_refuse_other_shapes(axes, shape):
    with pytest.raises(ValueError, match="one matrix for each"):
        plots.cosines(range(5), np.zeros(shape), axes=axes)


def test_no_line_of_a_nested_net_leads_down_or_left(axes, net):
    plots.nesting(net, (8, 8, 1), axes=axes)
    for line in axes.get_lines():
        (x_from, x_to), (y_from, y_to) = line.get_data()
        assert x_from < x_to
        assert round(y_from) <= round(y_to)


def test_nesting_has_a_box_for_every_layer(axes, net):
    plots.nesting(net, (8, 8, 1), axes=axes)
    kernels = [leaf for leaf in jax.tree.leaves(nnx.state(net, nnx.Param)) if leaf.ndim > 1]
    assert len(axes.containers) == len(kernels)


def test_a_subnetwork_is_drawn_as_in_the_whole(net):
    whole, part = Figure().subplots(), Figure().subplots()
    plots.nesting(net, (8, 8, 1), axes=whole)
    plots.nesting(net.subnetwork(1), (8, 8, 1), axes=part)

    def places(axes):
        return {
            (box.get_x(), round(box.get_y() + box.get_height() / 2, 6))
            for bars in axes.containers
            for box in bars
        }

    assert places(part) == {(x, y) for x, y in places(whole) if y < 1.5}


def test_what_is_no_axes_is_named():
    with pytest.raises(ValueError, match="axes=3 must be axes of matplotlib"):
        plots.cosines([1], np.zeros((1, 2, 2)), axes=3)


def test_missing_matplotlib_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plots.anytime_curve([1], [0.5])
