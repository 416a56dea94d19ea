import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osgd_jax._serving.scheduler import Scheduler

SIZES = 3  # batches of 1, 2 and 4


def cost(seconds, k, size):
    return seconds[k][math.ceil(math.log2(size))]


class Simulation:
    """A device that runs batches, and requests that arrive, on a clock that the test controls."""

    def __init__(self, seconds, capacity, slowdown=1.0, sure=(), *, timed=True):
        self.seconds, self.capacity, self.slowdown, self.sure = seconds, capacity, slowdown, sure
        self.timed = timed
        self.scheduler = Scheduler(seconds, capacity=capacity)
        self.deadlines, self.passed, self.left = {}, {}, {}
        self.refused_at_once, self.refused_later = set(), set()

    def run(self, arrivals):
        """Run to the end; arrivals are pairs of a time and a deadline, in order."""
        arrivals = list(enumerate(arrivals))
        now, batch, end = 0.0, None, math.inf
        while arrivals or batch or len(self.scheduler):
            arrives = arrivals[0][1][0] if arrivals else math.inf
            if batch and end <= arrives:
                now = end
                self.finish(batch, now)
                batch = None
            elif arrivals:
                key, (now, deadline) = arrivals.pop(0)
                self.deadlines[key] = deadline
                if not self.scheduler.admit(key, deadline, now):
                    self.refused_at_once.add(key)
            if batch is None and (batch := self.start(now)):
                end = now + self.slowdown * cost(self.seconds, batch.stage, len(batch.keys))
        return self

    def start(self, now):
        decision = self.scheduler.next(now)
        self.refused_later |= set(decision.refused)
        self.left |= dict.fromkeys(decision.leaving, now)
        batch = decision.batch
        if batch:
            size, deadlines = len(batch.keys), [self.deadlines[key] for key in batch.keys]
            assert 1 <= size <= 1 << (SIZES - 1)
            assert now + cost(self.seconds, batch.stage, size) <= min(deadlines)
            assert deadlines == sorted(deadlines)
            waiting = [
                self.deadlines[key]
                for key in self.deadlines.keys() - set(batch.keys) - self.gone()
                if self.passed.get(key, 0) == batch.stage
            ]
            assert all(deadline >= deadlines[-1] for deadline in waiting)
            assert all(self.passed.get(key, 0) == batch.stage for key in batch.keys)
            states = self.passed.keys() - self.gone() | set(batch.keys)
            assert len(states) <= self.capacity
        return batch

    def finish(self, batch, now):
        for key in batch.keys:
            self.passed[key] = batch.stage + 1
        sure = {key for key in batch.keys if key in self.sure}
        took = self.slowdown * cost(self.seconds, batch.stage, len(batch.keys))
        leaving = self.scheduler.finish(sure, seconds=took if self.timed else None)
        self.left |= dict.fromkeys(leaving, now)

    def gone(self):
        return self.left.keys() | self.refused_at_once | self.refused_later


figures = st.floats(0.1, 3.0)
tables = st.integers(1, 3).flatmap(
    lambda stages: st.lists(
        st.lists(figures, min_size=SIZES, max_size=SIZES).map(sorted),
        min_size=stages,
        max_size=stages,
    )
)
traffic = st.lists(st.tuples(st.floats(0, 2), st.floats(0, 15)), max_size=25).map(
    lambda gaps: [
        (now, now + allowed)
        for now, (_, allowed) in zip(itertools.accumulate(g for g, _ in gaps), gaps, strict=True)
    ]
)


@given(tables, traffic, st.integers(4, 8), st.sets(st.integers(0, 24)))
def test_admitted_requests_are_answered_in_time_where_batches_take_as_long_as_measured(
    seconds, arrivals, capacity, sure
):
    ran = Simulation(seconds, capacity, sure=sure).run(arrivals)
    assert not ran.refused_later
    assert ran.left.keys() == set(range(len(arrivals))) - ran.refused_at_once
    assert all(ran.passed[key] >= 1 for key in ran.left)
    assert all(now <= ran.deadlines[key] for key, now in ran.left.items())


@given(tables, traffic, st.floats(0.3, 3.0))
def test_each_request_gets_one_end_whatever_batches_take(seconds, arrivals, slowdown):
    ran = Simulation(seconds, 4, slowdown).run(arrivals)
    ends = [ran.left.keys(), ran.refused_at_once, ran.refused_later]
    assert set().union(*ends) == set(range(len(arrivals)))
    assert sum(map(len, ends)) == len(arrivals)
    assert ran.passed.keys() == ran.left.keys()


def test_figures_follow_a_machine_that_has_become_slower():
    arrivals = [(i, i + 8.0) for i in range(400)]
    shares = []
    for timed in (False, True):
        ran = Simulation([[1, 1.5, 2], [1, 1.5, 2]], 8, slowdown=1.7, timed=timed).run(arrivals)
        late = {key for key, now in ran.left.items() if now > ran.deadlines[key]}
        shares.append(len({key for key in late | ran.refused_later if key >= 200}) / 200)
    assert shares[0] > 0.2
    assert shares[1] < 0.02


def fits(deadlines, seconds, start):
    """Whether some division into batches, in order, is in time: by trying all of them."""
    if not deadlines:
        return True
    ends = [
        (size, start + cost([seconds], 0, size)) for size in range(1, 1 + min(4, len(deadlines)))
    ]
    return any(end <= deadlines[0] and fits(deadlines[size:], seconds, end) for size, end in ends)


@given(st.lists(st.floats(0, 9), min_size=1, max_size=7))
def test_a_request_is_refused_only_if_output_0_does_not_fit(deadlines):
    seconds = [1.0, 1.5, 2.0]  # larger batches take less time per request
    scheduler, admitted = Scheduler([seconds], capacity=4), []
    for key, deadline in enumerate(sorted(deadlines)):
        expected = fits([*admitted, deadline], seconds, 0.0)
        assert scheduler.admit(key, deadline, 0.0) == expected
        admitted += [deadline] if expected else []


def test_all_get_the_last_output_under_light_load():
    ran = Simulation([[1, 1.5, 2]] * 3, 4).run([(20 * i, 20 * i + 10) for i in range(5)])
    assert set(ran.passed.values()) == {3}


def test_as_the_load_grows_requests_leave_with_earlier_outputs_before_any_is_refused():
    seconds = [[1, 1.5, 2], [2, 3, 4]]  # a batch of four needs 2 for output 0 and 6 for both
    counts = []
    for gap in (1.5, 1.0, 0.5):
        ran = Simulation(seconds, 8).run([(gap * i, gap * i + 12) for i in range(100)])
        assert not ran.refused_at_once
        counts.append(sum(passed == 2 for passed in ran.passed.values()))
    assert counts[0] > 90
    assert counts[2] < 25
    assert counts == sorted(counts, reverse=True)
    assert Simulation(seconds, 8).run([(0.3 * i, 0.3 * i + 12) for i in range(100)]).refused_at_once


def test_the_states_of_requests_in_late_stages_make_room():
    scheduler = Scheduler([[1, 1, 1], [1, 1, 1], [9, 9, 9]], capacity=4)
    for key in range(4):
        scheduler.admit(key, 100, 0)
    for stage in range(2):
        assert scheduler.next(0).batch == (stage, [0, 1, 2, 3])
        assert scheduler.finish() == []
    for key in range(4, 7):
        scheduler.admit(key, 20, 0)
    first = scheduler.next(0)
    assert first.batch == (2, [0, 1, 2, 3])  # the largest batch; there is time for the others
    scheduler.finish([0])
    assert scheduler.next(9).batch == (0, [4, 5, 6])


@pytest.mark.parametrize(
    ("seconds", "capacity", "message"),
    [
        ([[1, 2], [1]], 4, r"`seconds` must have .* same number of sizes, got rows of \[1, 2\]"),
        ([], 4, "`seconds` must have one row for each stage"),
        ([[1, math.inf]], 4, r"`seconds` must be positive and finite, got \[1, inf\]"),
        ([[1, 1, 1]], 3, "`capacity` must be at least the largest batch, 4, got 3"),
    ],
)
def test_wrong_arguments(seconds, capacity, message):
    with pytest.raises(ValueError, match=message):
        Scheduler(seconds, capacity=capacity)


def test_calls_out_of_turn():
    scheduler = Scheduler([[1]], capacity=1)
    with pytest.raises(ValueError, match="none is running"):
        scheduler.finish()
    scheduler.admit("a", 5, 0)
    scheduler.next(0)
    with pytest.raises(ValueError, match="still running"):
        scheduler.next(0)
