"""Wrong losses, parameters and reaches raise a ValueError at trace time that names them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

import osgd_jax


class Pair(NamedTuple):
    first: jax.Array
    second: jax.Array


CASES = {
    # The loss function.
    "a scalar loss": (
        lambda: osgd_jax.task_grads(lambda p: p**2)(1.0),
        r"losses has shape \(\); losses must be an array .*Return \(loss,\) if there is but one",
    ),
    "a matrix of losses": (
        lambda: osgd_jax.task_grads(lambda p: p * jnp.ones((2, 2)))(1.0),
        r"losses has shape \(2, 2\)",
    ),
    "losses that are arrays": (
        lambda: osgd_jax.task_grads(lambda p: (p, p * jnp.ones(2), p))(1.0),
        r"losses\[1\] has shape \(2,\); .*Return its mean or sum, or the array alone",
    ),
    "a loss in a dict that is an array": (
        lambda: osgd_jax.task_grads(lambda p: {"ic": p, "pde": p * jnp.ones(2)})(1.0),
        r"losses\['pde'\] has shape \(2,\)",
    ),
    "no losses": (lambda: osgd_jax.task_grads(lambda p: ())(1.0), r"got \(\), which holds none"),
    "None for the losses": (lambda: osgd_jax.task_grads(lambda p: None)(1.0), "got None, which"),
    "no losses in the array": (
        lambda: osgd_jax.task_grads(lambda p: p * jnp.ones(0))(1.0),
        r"losses has shape \(0,\)",
    ),
    "integer losses": (
        lambda: osgd_jax.task_grads(lambda p: (jnp.arange(3).sum(), p, p))(1.0),
        r"losses\[0\] has dtype int32; .*give 0.0 for a task that is off",
    ),
    "complex losses": (
        lambda: osgd_jax.task_grads(lambda p: {"a": 1j * p, "b": p})(1.0),
        r"losses\['a'\] has dtype complex64; .*take its real part or its absolute value",
    ),
    "losses that are no numbers": (
        lambda: osgd_jax.task_grads(lambda p: (p, "off", p))(1.0),
        r"losses\[1\]='off' is not a number",
    ),
    "forgotten has_aux": (
        lambda: osgd_jax.task_grads(lambda p: ((p, p), {"aux": p * jnp.ones(3)}))(1.0),
        r"losses\[1\]\['aux'\] has shape \(3,\).*Is has_aux=True missing\?",
    ),
    "forgotten has_aux, other things": (
        lambda: osgd_jax.task_grads(lambda p: ((p, p), {"aux": "text"}))(1.0),
        r"losses\[1\]\['aux'\]='text' is not a number.*Is has_aux=True missing\?",
    ),
    **{
        f"forgotten has_aux, {name}": (
            lambda returned=returned: osgd_jax.task_grads(lambda p: returned(p, p**2))(1.0),
            words + r".*Is has_aux=True missing\?",
        )
        for name, returned, words in (
            (
                "tuple and dict",
                lambda a, b: ((a, b), {"total": a + b}),
                "losses is a pair with a container",
            ),
            (
                "dict and dict",
                lambda a, b: ({"a": a, "b": b}, {"total": b}),
                "losses is a pair with a container",
            ),
            ("lists", lambda a, b: [[a, b], [a]], "losses is a pair with a container"),
            (
                "named tuple and tuple",
                lambda a, b: (Pair(a, b), (a,)),
                "losses is a pair with a container",
            ),
            (
                "number and dict",
                lambda a, b: (a + b, {"a": a, "b": b}),
                "losses is a pair with a container",
            ),
            ("tuple and number", lambda a, b: ((a, b), a + b), "losses is a pair with a container"),
            ("number and nothing", lambda a, b: (a + b, {}), "losses is a pair with a container"),
            (
                "array and dict",
                lambda a, b: (jnp.stack([a, b]), {"a": a}),
                r"losses\[0\] has shape",
            ),
            ("a flag", lambda a, b: (a, True), r"losses\[1\] has dtype bool"),
            ("a traced flag", lambda a, b: (a, b > 0), r"losses\[1\] has dtype bool"),
            ("a count", lambda a, b: (a, 3), r"losses\[1\] has dtype int32"),
            ("None", lambda a, b: (a, None), r"losses\[1\]=None is not a number"),
        )
    },
    "an integer for a task that is off": (
        lambda: osgd_jax.task_grads(lambda p: (p, 0, p))(1.0),
        r"losses\[1\] has dtype int32; .*give 0.0 for a task that is off",
    ),
    "None among the losses": (
        lambda: osgd_jax.task_grads(lambda p: {"a": p, "b": (p, None)})(1.0),
        r"losses\['b'\]\[1\]=None is not a number; losses must be",
    ),
    "aux missing": (
        lambda: osgd_jax.task_grads(lambda p: jnp.stack([p, p, p]), has_aux=True)(1.0),
        r"has_aux=True.*pair",
    ),
    "integer parameters": (
        lambda: osgd_jax.task_grads(lambda p: (p["w"] * 1.0,))({"w": 3}),
        r"\['w'\] has dtype int32; .*Pass anything else in another argument",
    ),
    "a string among the parameters": (
        lambda: osgd_jax.task_grads(lambda p: (p["w"],))({"w": 1.0, "name": "relu"}),
        r"parameter\['name'\]='relu' is not an array; .*another argument; .*eqx\.partition",
    ),
    "a function among the parameters": (
        lambda: osgd_jax.task_grads(lambda p: (p["w"],))({"w": 1.0, "layers": [jnp.tanh]}),
        r"parameter\['layers'\]\[0\]=<.*tanh.*> is not an array; .*eqx\.partition",
    ),
    "a PRNG key among the parameters": (
        lambda: osgd_jax.task_grads(lambda p: (p["w"],))({"w": 1.0, "key": jax.random.key(0)}),
        r"\['key'\] has dtype key",
    ),
    "narrow parameters": (
        lambda: osgd_jax.task_grads(lambda p: (p["w"].sum(),))({"w": jnp.ones(2, jnp.float8_e5m2)}),
        r"parameter\['w'\] has dtype float8_e5m2, which cannot hold.*in 16 bits or more",
    ),
    # Which arguments.
    "parameters by keyword": (
        lambda: osgd_jax.task_grads(lambda p: (p, p))(p=1.0),
        "argnums=0 names argument 0 of 0 positional arguments.*by position, not by keyword",
    ),
    "argnums beyond the arguments": (
        lambda: osgd_jax.value_and_task_grads(lambda p: (p, p), argnums=3)(1.0),
        "argnums=3 names argument 3 of 1 positional arguments",
    ),
    "argnums before the arguments": (
        lambda: osgd_jax.reach(lambda p: (p, p), argnums=(0, -2))(1.0),
        r"argnums=\(0, -2\) names argument -2 of 1",
    ),
    "argnums twice": (
        lambda: osgd_jax.task_grads(lambda p: (p, p), argnums=(0, 0))(1.0),
        r"argnums=\(0, 0\) names argument 0 twice; name it once",
    ),
    "argnums twice, from both ends": (
        lambda: osgd_jax.task_grads(lambda p, q: (p, q), argnums=(1, -1))(1.0, 2.0),
        r"argnums=\(1, -1\) names argument 1 twice",
    ),
    "argnums that are no integers": (
        lambda: osgd_jax.task_grads(lambda p: (p, p), argnums=0.0)(1.0),
        "argnums=0.0 must be the index of a positional argument",
    ),
    "a name in argnums": (
        lambda: osgd_jax.task_grads(lambda p: (p, p), argnums="p")(1.0),
        "argnums='p' must be the index",
    ),
    # The reach.
    "a reach beyond K": (
        lambda: osgd_jax.to_task_rows({"w": jnp.ones((2, 3))}, {"w": (0, 2)}),
        r"reach\['w'\]=\(0, 2\) is not a tuple of different task indices in 0 .. 1",
    ),
    "a reach with a repetition": (
        lambda: osgd_jax.to_task_rows({"w": jnp.ones((2, 3))}, {"w": (1, 1)}),
        r"different task indices",
    ),
    "a reach that is no tuple": (
        lambda: osgd_jax.to_task_rows({"w": jnp.ones((2, 3))}, {"w": 1}),
        "is not a tuple",
    ),
    "a reach of another structure": (
        lambda: osgd_jax.to_task_rows({"w": jnp.ones((2, 3))}, {"v": (0,)}),
        r"reach must have .* of dense; the first difference is \['w'\] in dense, \['v'\] in reach",
    ),
    "a reach for a scalar": (
        lambda: osgd_jax.to_task_rows({"w": jnp.ones(())}, {"w": (0,)}),
        r"shape \(\), with the task axis in front",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_words(case):
    function, words = CASES[case]
    with pytest.raises(ValueError, match=words):
        function()


def test_losses_in_half_precision_are_taken():
    grads = osgd_jax.task_grads(lambda p: (p**2, p))(jnp.float16(1))
    assert grads.rows.dtype == jnp.float16
