import numpy as np
import pytest

from experiments.serve.load import Config, overhead
from experiments.serve.policies import Dispatcher, FirstComeFirstServed, RefusesLate, Zoo
from osgd_jax import OverloadedError

SECONDS = [[1.0, 1.5, 2.0], [2.0, 3.0, 4.0]]  # a small and a large net, batches of 1, 2 and 4


def test_the_zoo_gives_the_largest_net_that_the_queue_leaves_time_for():
    zoo = Zoo(SECONDS)
    assert zoo.admit("a", 10.0, 0.0)  # large: 2 seconds
    assert zoo.admit("b", 3.5, 0.0)  # large: 3 seconds for both
    assert zoo.admit("c", 4.5, 0.0)  # large: 4 seconds for three
    assert zoo.admit("d", 5.0, 0.0)  # large, in the same batch of four
    assert zoo.admit("e", 5.5, 0.0)  # small: 4 + 1 seconds
    assert not zoo.admit("f", 5.2, 0.0)  # small: 4 + 1.5 seconds
    assert zoo.next(0.0) == (1, ["b", "c", "d", "a"], [])
    assert not zoo.admit("g", 5.4, 0.0)  # the large net runs until 4, then "e" and this one
    assert zoo.next(4.0) == (0, ["e"], [])
    assert zoo.next(5.0) == (0, [], [])


def test_first_come_first_served_takes_everybody_in_turn():
    policy = FirstComeFirstServed(2)
    assert all(policy.admit(key, 0.0, 0.0) for key in "abc")
    assert policy.next(0.0) == (0, ["a", "b"], [])
    assert policy.next(1.0) == (0, ["c"], [])


def test_one_net_refuses_what_would_be_late():
    policy = RefusesLate(SECONDS[0])
    assert policy.admit("a", 1.2, 0.0)
    assert not policy.admit("b", 0.9, 0.0)
    assert policy.next(0.0) == (0, ["a"], [])
    assert policy.next(1.0) == (0, [], [])


def test_a_dispatcher_gives_each_request_its_own_answer():
    def double(xs):
        return 2 * xs[:, 0], np.full(len(xs), 1)

    with Dispatcher(FirstComeFirstServed(4), [double]) as dispatcher:
        futures = [dispatcher.submit(np.array([i]), 1.0) for i in range(20)]
        assert [future.result() for future in futures] == [(2 * i, 1) for i in range(20)]
    with Dispatcher(RefusesLate([0.5]), [double]) as dispatcher, pytest.raises(OverloadedError):
        dispatcher.submit(np.array([1]), 0.1).result()


def test_the_scheduler_takes_little_of_the_stages_time():
    stages = [[0.005, 0.007, 0.01]] * 3
    assert 0 < overhead(stages, 130.0, Config(seconds=2.0)) < 1.0
