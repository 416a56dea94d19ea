import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

from osgd_jax import OutputCost, cost, nets

CONV = jnp.ones((3, 3, 2, 4))


class Steps(nnx.Module):
    """A net of given functions `carry → (logits, carry)`."""

    def __init__(self, *steps, **params):
        self.steps = nnx.static(steps)
        self.num_outputs = len(steps)
        for name, value in params.items():
            setattr(self, name, nnx.Param(value))

    def start(self, x):
        return x

    def advance(self, k, carry):
        return self.steps[k](self, carry)


def multiply_adds(function, shape):
    return cost(Steps(lambda net, x: (function(x), None)), shape)[0].multiply_adds


def test_matrix_products():
    assert multiply_adds(lambda x: x @ jnp.ones((5, 7)), (5,)) == 35
    batched = lambda x: jnp.einsum("bij,bjk->bik", x, jnp.ones((1, 3, 4)))  # noqa: E731
    assert multiply_adds(batched, (2, 3)) == 2 * 3 * 4
    assert multiply_adds(lambda x: jax.nn.relu(x + 1).sum(), (5,)) == 0


@pytest.mark.parametrize(
    ("stride", "padding", "positions"), [(1, "SAME", 64), (2, "SAME", 16), (1, "VALID", 36)]
)
def test_convolutions_count_the_taps_in_the_padding(stride, padding, positions):
    def convolve(x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, CONV, (stride, stride), padding, dimension_numbers=numbers
        )

    assert multiply_adds(convolve, (8, 8, 2)) == positions * 9 * 2 * 4


def test_grouped_convolution_in_one_dimension():
    def convolve(x):
        kernel, numbers = jnp.ones((3, 1, 6)), ("NWC", "WIO", "NWC")
        return lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=numbers, feature_group_count=2
        )

    assert multiply_adds(convolve, (10, 2)) == 10 * 3 * 6


def test_nested_computations():
    square = jnp.ones((4, 4))
    product = lambda x: x @ square  # noqa: E731
    assert multiply_adds(jax.jit(product), (4,)) == 16
    assert multiply_adds(jax.checkpoint(product), (4,)) == 16
    ruled = jax.custom_jvp(product)
    ruled.defjvp(lambda xs, ts: (product(*xs), product(*ts)))
    assert multiply_adds(ruled, (4,)) == 16
    scanned = lambda x: lax.scan(lambda h, _: (h @ square, None), x, length=5)[0]  # noqa: E731
    assert multiply_adds(scanned, (4,)) == 5 * 16
    chosen = lambda x: lax.cond(x.sum() > 0, lambda x: x @ square @ square, product, x)  # noqa: E731
    assert multiply_adds(chosen, (4,)) == 2 * 16


def test_unbounded_loop_is_refused():
    loop = lambda x: lax.while_loop(lambda h: h.sum() < 9, lambda h: h @ jnp.ones((4, 4)), x)  # noqa: E731
    with pytest.raises(ValueError, match=r"lax\.while_loop"):
        multiply_adds(loop, (4,))
    harmless = lambda x: lax.while_loop(lambda h: h.sum() < 9, lambda h: h + 1, x)  # noqa: E731
    assert multiply_adds(harmless, (4,)) == 0


def test_cumulative_and_without_what_is_not_used():
    def first(net, x):
        unused = x @ jnp.ones((3, 100))
        del unused
        return x @ net.a[...], x @ net.b[...]

    def second(net, h):
        return h @ net.c[...], h

    net = Steps(
        first, second, a=jnp.ones((3, 2)), b=jnp.ones((3, 5)), c=jnp.ones((5, 2)), d=jnp.ones(50)
    )
    # b makes the carry: it is work of output 0, but a parameter of output 1 only.
    assert cost(net, (3,)) == [OutputCost(6, 6 + 15), OutputCost(6 + 15 + 10, 6 + 15 + 10)]


def test_a_compiled_stage_reads_what_it_uses():
    @nnx.jit
    def compiled(net, x):
        return x @ net.a[...], x

    net = Steps(compiled, compiled, a=jnp.ones((3, 2)), b=jnp.ones((3, 2)))
    assert cost(net, (3,)) == [OutputCost(6, 6), OutputCost(6, 12)]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="net is a Linear without num_outputs; it must be"):
        cost(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), (2,))
    net = nets.WidthNestedResNet(num_classes=2, widths=(8,), blocks=(1,), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"must have the shape \[batch, height, width, 3\]"):
        cost(net, (8, 8))


def test_the_net_is_left_alone():
    net = nets.WidthNestedResNet(num_classes=2, widths=(8,), blocks=(1,), rngs=nnx.Rngs(0))
    before = jax.tree.leaves(nnx.state(net))
    assert len(cost(net, (8, 8, 3))) == 3
    after = jax.tree.leaves(nnx.state(net))
    assert all(a is b for a, b in zip(before, after, strict=True))
