"""Every mistake gets a ValueError, at trace time, in the words that a user needs."""

import jax
import jax.numpy as jnp
import pytest

import osgd_jax
from osgd_jax import TaskRows
from osgd_jax.weightings import Weighting

TWO = {"a": jnp.ones((2, 3)), "b": jnp.ones((2,))}
PARAMS = {"a": jnp.ones(3), "b": jnp.ones(())}


def update(grads, params=None, **kwargs):
    tx = osgd_jax.orthogonalize(**kwargs)
    return jax.eval_shape(lambda grads: tx.update(grads, tx.init(params), params)[0], grads)


def update_with(losses):
    tx = osgd_jax.aggregate(osgd_jax.weightings.stch())
    return tx.update(TWO, tx.init(PARAMS), PARAMS, losses=losses)


def update_in_order(order, losses):
    tx = osgd_jax.orthogonalize(order)
    return tx.update(TWO, tx.init(PARAMS), PARAMS, losses=losses)


def with_state():
    return Weighting(lambda: jnp.zeros(2), lambda gramian, state, **_: (jnp.ones(2), state))


CASES = {
    # The gradients.
    "different numbers of tasks": (
        lambda: update({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))}),
        r"\['b'\] has 3 tasks \(leading axis\), others have 2",
    ),
    "different numbers of tasks, ragged": (
        lambda: update({"a": TaskRows(jnp.ones((1, 3)), (0,), 2), "b": jnp.ones((3, 3))}),
        r"\['b'\] has 3 tasks",
    ),
    "no tasks": (lambda: update({"a": jnp.ones((0, 3))}), r"shape \(0, 3\).*K >= 1 tasks"),
    "no tasks, ragged": (
        lambda: update({"a": TaskRows(jnp.ones((0, 3)), (), 0)}),
        r"\['a'\].*K >= 1",
    ),
    "no leading axis": (lambda: update(jnp.ones(())), r"the root has shape \(\).*leading axis"),
    "integer gradients": (
        lambda: update({"a": jnp.ones((2, 3), int)}),
        r"\['a'\] has dtype int32.*real floating",
    ),
    "complex gradients": (lambda: update(jnp.ones((2, 3), jnp.complex64)), "complex64.*real"),
    "eight bits": (
        lambda: update(jnp.ones((2, 3), jnp.float8_e4m3fn)),
        "dtype float8_e4m3fn; it must be of a real floating dtype of at least 16 bits",
    ),
    "parameters of eight bits": (
        lambda: osgd_jax.moco(2).init(jnp.ones(3, jnp.float8_e5m2)),
        "a parameter has dtype float8_e5m2; it must be",
    ),
    "ordinary gradients": (
        lambda: update(PARAMS | {"b": jnp.ones(1)}, PARAMS | {"b": jnp.ones(1)}),
        r"\['a'\] has shape \(3,\).*Ordinary gradients have no task axis",
    ),
    "ordinary gradients for what has a memory": (
        lambda: (tx := osgd_jax.moco(3)).update(jnp.ones((3, 4)), tx.init(jnp.ones((3, 4)))),
        r"a gradient has shape \(3, 4\) with the task axis in front; the state is for a .*\(3, 4\)",
    ),
    "a state for other parameters": (
        lambda: (tx := osgd_jax.moco(2)).update({"a": jnp.ones((2, 3))}, tx.init({"b": 1.0})),
        "the state is for other parameters than the gradients",
    ),
    "an update that is none": (
        lambda: jnp.ones(3) + TaskRows(jnp.ones((2, 3)), (0, 1), 2),
        "a TaskRows holds the gradients of several losses.*to freeze parameters",
    ),
    "as many rows as tasks": (
        lambda: update({"a": TaskRows(jnp.ones((3, 3)), (0, 1), 2)}),
        r"\['a'\] has rows of shape \(3, 3\) for the tasks \(0, 1\)",
    ),
    "rows in another order": (
        lambda: update({"a": TaskRows(jnp.ones((2, 3)), (1, 0), 2)}),
        r"for the tasks \(1, 0\) of 2; it needs a row for each, in ascending order",
    ),
    "a row without an axis": (
        lambda: update({"a": TaskRows(jnp.ones(()), (0,), 1)}),
        r"rows of shape \(\) for the tasks \(0,\) of 1; it needs a row for each",
    ),
    "gradients without the task axis": (
        lambda: update({"a": jnp.ones(3), "b": jnp.ones(3)}, PARAMS),
        r"\['a'\] has shape \(3,\) with the task axis in front; the parameter has shape \(3,\)",
    ),
    "another structure than params": (
        lambda: update({"a": jnp.ones((2, 3))}, PARAMS),
        "the task gradients have the structure .*; params have",
    ),
    "nothing to tell K by": (lambda: osgd_jax.gramian({}), "number of tasks is unknown"),
    "norms of nothing": (lambda: osgd_jax.task_norms({}), "number of tasks is unknown"),
    "weights": (
        lambda: osgd_jax.combine(TWO, jnp.ones(3)),
        r"weights has shape \(3,\); the gradients are of 2 tasks and need shape \(2,\)",
    ),
    "weights, a matrix": (lambda: osgd_jax.combine(TWO, jnp.ones((2, 2))), r"need shape \(2,\)"),
    # The options.
    "unknown order": (
        lambda: osgd_jax.orthogonalize("firstToLast"),
        "order='firstToLast' is unknown; use 'first_to_last', 'last_to_first', 'random' or a perm",
    ),
    "order of names for a weighting": (
        lambda: osgd_jax.weightings.orthogonal(("ic", "pde")),
        r"order=\('ic', 'pde'\) names the tasks.*osgd_jax.orthogonalize",
    ),
    "order of names without losses": (
        lambda: update(TWO, order=("ic", "pde")),
        r"order=\('ic', 'pde'\) names the tasks: pass the losses",
    ),
    "order of other names": (
        lambda: update_in_order(("ic", "bc"), {"ic": 1.0, "pde": 1.0}),
        r"order=\('ic', 'bc'\) must name each of the losses 'ic', 'pde' once",
    ),
    "order of a name twice": (
        lambda: update_in_order(("ic", "ic"), {"ic": 1.0, "pde": 1.0}),
        "must name each of the losses 'ic', 'pde' once",
    ),
    "order of names and indices": (
        lambda: osgd_jax.orthogonalize(("ic", 1)),
        r"order=\('ic', 1\) is unknown",
    ),
    "order for another K": (
        lambda: update(TWO, order=(0, 1, 2)),
        r"order=\(0, 1, 2\) is not a permutation of the 2 tasks",
    ),
    "order with a repetition": (
        lambda: update(TWO, order=[0, 0]),
        r"each of 0 .. 1 must appear once",
    ),
    "order of another type": (lambda: osgd_jax.orthogonalize(order=None), "order=None is unknown"),
    "random without a key": (
        lambda: osgd_jax.orthogonalize("random"),
        "order='random' .* needs a PRNG key: pass key=",
    ),
    "random without a key, as a weighting": (
        lambda: osgd_jax.weightings.orthogonal("random").weigh(jnp.eye(2), ()),
        "needs a PRNG key",
    ),
    "unknown scope": (
        lambda: osgd_jax.osgd(0.1, scope="layer"),
        "scope='layer' is unknown; use one of 'shared', 'all', 'leaf', 'reach', a tree of labels",
    ),
    "labels that cannot be told apart": (
        lambda: update(TWO, scope={"a": jnp.array(0), "b": jnp.array(1)}),
        "a label given as scope is Array.*labels must be hashable",
    ),
    "labels of another structure": (
        lambda: update(TWO, scope={"a": 0, "c": 1}),
        "the labels given as scope do not fit the structure of the parameters",
    ),
    "a callable scope without params": (
        lambda: update(TWO, scope=lambda params: params),
        r"needs them: call update\(grads, state, params\)",
    ),
    "a state per task and several groups": (
        lambda: (tx := osgd_jax.aggregate(with_state(), "leaf")).update(TWO, tx.init(None)),
        "keeps a state per task.*there are 2 groups.*Use scope='shared' or scope='all'",
    ),
    "a weighting that was not called": (
        lambda: osgd_jax.aggregate(osgd_jax.weightings.upgrad),
        r"weighting=<function upgrad .* must be a Weighting.*osgd_jax\.weightings\.upgrad\(",
    ),
    "the name of a weighting": (
        lambda: osgd_jax.aggregate("mgda"),
        r"weighting='mgda' must be a Weighting.*osgd_jax\.weightings\.mgda\(",
    ),
    "a weighting that is none": (lambda: osgd_jax.aggregate(None), "weighting=None must be a"),
    "a broken seed": (
        lambda: osgd_jax.orthogonalize("random", key=0.5),
        "key=0.5 must be an integer seed or one PRNG key",
    ),
    "a word for a key": (lambda: osgd_jax.graddrop("a"), "key='a' must be an integer seed"),
    "a batch of keys": (
        lambda: osgd_jax.osgd(0.1, key=jax.random.split(jax.random.key(0), 3)),
        r"key=an array of shape \(3,\) .* must be an integer seed or one PRNG key",
    ),
    "a batch of raw keys": (
        lambda: osgd_jax.osgd(0.1, key=jax.random.split(jax.random.PRNGKey(0), 3)),
        r"key=an array of shape \(3, 2\) and dtype uint32 must be",
    ),
    "losses of another number": (
        lambda: update_with(jnp.ones(3)),
        "losses has 3 losses; the gradients are of 2 tasks",
    ),
    "losses by name, of another number": (
        lambda: update_with({"a": 1.0}),
        "losses has 1 losses; the gradients are of 2 tasks",
    ),
    "losses of each example": (
        lambda: update_with((jnp.ones(4), jnp.ones(4))),
        r"losses\[0\] has shape \(4,\)",
    ),
    "complex losses of tasks": (lambda: update_with(jnp.ones(2, complex)), "dtype complex64"),
    "a word for losses": (lambda: update_with("ab"), "losses='ab' is not a number"),
    "max_norm": (lambda: osgd_jax.clip_task_norms(0.0), r"max_norm=0.0 must be above zero"),
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
        "reach does not have the structure of dense",
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
