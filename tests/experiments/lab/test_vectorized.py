"""Training many nets at once, and choosing a rate, against single nets trained step by step."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.app import data, methods
from experiments.app.nets import Sizes, make_net
from experiments.app.step import evaluated_logits, logits_of
from experiments.lab.sweep import Run
from experiments.lab.vectorized import Trainer

SEEDS, RATES = (0, 1), (0.1, 0.2)


def settings(name):
    """A data set, and what makes nets for it."""
    dataset = data.load(data.Source(name, 200))
    return dataset, functools.partial(make_net, Sizes("width-nested", 3, (8, 8)), dataset)


def trained_alone(dataset, make, runs, epochs):
    """Each net after plain Nesterov SGD on the sum of the losses, step by step."""
    steps = epochs * (dataset.train.size // 100)
    tx = optax.sgd(optax.cosine_decay_schedule(1.0, steps), 0.9, nesterov=True)
    graphdef = nnx.graphdef(make(nnx.Rngs(0)))

    @jax.jit
    def step(params, rest, state, rate, inputs, labels):
        def loss(params):
            logits, after = logits_of(graphdef, params, rest, inputs, None)
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels
            return sum(cross_entropy(each, labels).mean() for each in logits), after

        gradient, rest = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(gradient, state, params)
        updates = jax.tree.map(lambda update: rate * update, updates)
        return optax.apply_updates(params, updates), rest, state

    for run in runs:
        _, params, rest = nnx.split(make(nnx.Rngs(run.seed)), nnx.Param, ...)
        state, order = tx.init(params), np.random.default_rng(run.seed)
        for _ in range(epochs):
            for indices in data.epoch_batches(dataset.train.size, 100, order):
                batch = dataset.train.inputs[indices], dataset.train.labels[indices]
                params, rest, state = step(params, rest, state, run.learning_rate, *batch)
        yield graphdef, params, rest


@pytest.mark.parametrize("name", ["mnist1d", "digits"])
def test_nets_train_as_single_ones_do(name):
    dataset, make = settings(name)
    method = methods.method(methods.Settings("sgd"))
    trainer = Trainer(make, dataset, method, epochs=2, batch_size=100, group=2)
    assert trainer.group == (2 if name == "mnist1d" else 1)
    runs = [Run(seed, rate) for seed, rate in zip(SEEDS, RATES, strict=True)]
    alone = trained_alone(dataset, make, runs, 2)
    for group in trainer.groups(runs):
        trained = trainer.train(group)
        scores = [trainer.scores(trained, split) for split in (dataset.train, dataset.test)]
        for index, net in zip(range(len(group)), alone, strict=False):
            for split, (accuracies, losses) in zip(
                (dataset.train, dataset.test), scores, strict=True
            ):
                logits = evaluated_logits(*net, split.inputs)
                expected = [np.mean(np.argmax(each, -1) == split.labels) for each in logits]
                np.testing.assert_allclose(accuracies[index], expected, atol=0.011)
                cross_entropy = optax.softmax_cross_entropy_with_integer_labels
                expected = [cross_entropy(each, split.labels).mean() for each in logits]
                np.testing.assert_allclose(losses[index], expected, rtol=2e-2)


def test_the_last_group_is_filled_up():
    dataset, make = settings("mnist1d")
    method = methods.method(methods.Settings("sgd"))
    trainer = Trainer(make, dataset, method, epochs=1, batch_size=100, group=2)
    runs = [Run(seed, 0.1) for seed in range(3)]
    assert list(trainer.groups(runs)) == [runs[:2], [runs[2], runs[2]]]


def test_more_examples_in_a_step_than_there_are_is_refused():
    dataset, make = settings("mnist1d")
    method = methods.method(methods.Settings("sgd"))
    with pytest.raises(ValueError, match="batch_size=201 exceeds the 200 training examples"):
        Trainer(make, dataset, method, epochs=1, batch_size=201)
