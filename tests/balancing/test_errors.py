"""Wrong arguments of transformations raise a ValueError at trace time that names them."""

import jax
import jax.numpy as jnp
import optax
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


def rows_of(*names):
    return TaskRows(jnp.ones((2, 3)), (0, 1), 2, names, ordered=False)


NAMED = {"a": rows_of("ic", "pde"), "b": jnp.ones((2,))}


ROWS = osgd_jax.to_task_rows(TWO, {"a": (0, 1), "b": (0, 1)})


def update_named(weighting, losses=None):
    tx = osgd_jax.aggregate(weighting or osgd_jax.weightings.sum(), "all")
    return tx.update(NAMED, tx.init(PARAMS), PARAMS, losses=losses)


def update_in_order(order, losses):
    tx = osgd_jax.orthogonalize(order)
    return tx.update(TWO, tx.init(PARAMS), PARAMS, losses=losses)


def with_state():
    return Weighting(lambda: jnp.zeros(2), lambda gramian, state, **_: (jnp.ones(2), state))


OF_SO_MANY_TASKS = (
    *(getattr(osgd_jax.weightings, name) for name in ("dwa", "famo", "gradnorm", "gradvac", "pcd")),
    *(getattr(osgd_jax.weightings, name) for name in ("relobralo", "softadapt", "uncertainty")),
    osgd_jax.weightings.inverse_norms,
    lambda num_tasks: osgd_jax.weightings.smooth(osgd_jax.weightings.mgda(), num_tasks, 0.9),
    osgd_jax.moco,
    osgd_jax.db_mtl,
    osgd_jax.excess_mtl,
    osgd_jax.task_momenta,
    lambda num_tasks: osgd_jax.m_config(0.1, num_tasks),
)


@pytest.mark.parametrize("make", OF_SO_MANY_TASKS)
@pytest.mark.parametrize("num_tasks", [0, -1, 2.5, "2", None])
def test_a_number_of_tasks(make, num_tasks):
    with pytest.raises(ValueError, match=rf"num_tasks={num_tasks!r} must be an integer of"):
        make(num_tasks)


CASES = {
    # The gradients.
    "different numbers of tasks": (
        lambda: update({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))}),
        r"\['b'\] has 3 tasks \(leading axis\), others have 2.*Ordinary gradients have no task",
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
        r"the state must have the structure of the task gradients; the .* is \['a'\] in"
        r" the task gradients, \['b'\] in the state\. The state is for other parameters",
    ),
    "an update that is none": (
        lambda: jnp.ones(3) + TaskRows(jnp.ones((2, 3)), (0, 1), 2),
        "a TaskRows holds the gradients of several losses.*to freeze parameters",
    ),
    "adam without a balancer": (
        lambda: (tx := optax.adam(0.1)).update(ROWS, tx.init(PARAMS), PARAMS),
        "subtree of type\n.*TaskRows",
    ),
    "sgd without a balancer": (
        lambda: optax.apply_updates(
            PARAMS, (tx := optax.sgd(0.1)).update(ROWS, tx.init(PARAMS))[0]
        ),
        "a TaskRows holds the gradients of several losses, of which osgd_jax.orthogonalize",
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
        r"have the structure of params; .* is \['b'\] in params, nothing in the task gradients",
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
    "order of names for a Gramian alone": (
        lambda: osgd_jax.weightings.orthogonal(("ic", "pde")).weigh(jnp.eye(2), ()),
        r"order=\('ic', 'pde'\) must name each of the losses '0', '1' once.*pass the losses",
    ),
    "order of names without losses": (
        lambda: update(TWO, order=("ic", "pde")),
        r"order=\('ic', 'pde'\) must name .*for dense gradients, pass the losses, update\(",
    ),
    "order of other names": (
        lambda: update(NAMED, order=("ic", "bc")),
        r"order=\('ic', 'bc'\) must name each of the losses 'ic', 'pde' once\.\n",
    ),
    "order of a name twice": (
        lambda: update_in_order(("ic", "ic"), {"ic": 1.0, "pde": 1.0}),
        "must name each of the losses 'ic', 'pde' once",
    ),
    "order of the keys of a dict": (
        lambda: update(NAMED),
        r"order='first_to_last' goes by the position .* in a dict, whose keys JAX sorts: the losses"
        r" 'ic', 'pde'\. Name them: osgd_jax.orthogonalize\(order=\('ic', 'pde'\)\)",
    ),
    "order of the keys of a dict, backwards": (
        lambda: update(NAMED, order="last_to_first"),
        r"Name them: osgd_jax.orthogonalize\(order=\('ic', 'pde'\)\)",
    ),
    "order of indices for a dict": (
        lambda: update(NAMED, order=(1, 0)),
        r"order=\(1, 0\) goes by the position of the tasks",
    ),
    "order of indices for losses in a dict": (
        lambda: update_in_order((1, 0), {"ic": 1.0, "pde": 1.0}),
        r"order=\(1, 0\) goes by the position of the tasks",
    ),
    "names that collide": (
        lambda: update_in_order(("a/b", "a/b"), {"a": {"b": 1.0}, "a/b": 1.0}),
        "must name each of the losses 'a/b', 'a/b' once",
    ),
    "a word to hold": (
        lambda: osgd_jax.orthogonalize(hold="bc"),
        r"hold='bc' must be a sequence of names or indices of tasks, such as \('bc',\)",
    ),
    "a number to hold": (lambda: osgd_jax.orthogonalize(hold=0), "hold=0 must be a sequence"),
    "to hold what there is not": (
        lambda: update(TWO, hold=(2,)),
        "hold=2 must be a name of a task or an index below 2",
    ),
    "to hold an index of a dict": (
        lambda: update(NAMED, order=("ic", "pde"), hold=(0,)),
        r"hold=\(0,\) goes by the position of the tasks.*Name them: hold=\('pde',\)",
    ),
    "to hold a loss of another name": (
        lambda: update(NAMED, order=("ic", "pde"), hold=("bc",)),
        "hold='bc' must be one of the losses 'ic', 'pde'",
    ),
    "losses in another container": (
        lambda: update_named(None, losses=(1.0, 2.0)),
        "losses are of the tasks '0', '1'; the gradients are of 'ic', 'pde'. Pass the losses as",
    ),
    "gradients of differently named tasks": (
        lambda: osgd_jax.gramian([rows_of("ic", "pde"), rows_of("pde", "ic")]),
        r"\[1\] is of the tasks \('pde', 'ic'\), others of \('ic', 'pde'\)",
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
        r"the labels given as scope must have .*; .* difference is \['b'\] in the parameters,"
        r" \['c'\] in the labels given as scope\. For an nnx.State too",
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
    "None among the losses of an update": (
        lambda: update_with((1.0, None, 1.0)),
        r"losses\[1\]=None is not a number",
    ),
    "a flag among the losses of an update": (
        lambda: update_with((1.0, True)),
        r"losses\[1\] has dtype bool",
    ),
    "losses and auxiliary data for an update": (
        lambda: update_with(((1.0, 2.0), {"total": 3.0})),
        "losses is a pair with a container",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_words(case):
    function, words = CASES[case]
    with pytest.raises(ValueError, match=words):
        function()
