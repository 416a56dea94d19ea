"""Every mistake gets a ValueError, at trace time, in the words that a user needs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

import osgd_jax
from osgd_jax import TaskRows
from osgd_jax.weightings import Weighting


class Pair(NamedTuple):
    first: jax.Array
    second: jax.Array


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
        "the state is for other parameters than the gradients",
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
        r"do not have the structure of params: where params have \['b'\], .* have no array",
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
