"""Faults of tasks: frequencies, independence, and the chain of slow spells."""

import itertools
import math

import numpy as np
import pytest

from fl.errors import ConfigError
from fl.randomness import uniform
from fl.simulation.world.faults import Faults, GilbertElliott, TaskFaults


def within(frequency, probability, n, sigmas=4.0):
    return abs(frequency - probability) <= sigmas * math.sqrt(probability * (1 - probability) / n)


def chain_by_definition(p, r, seed, client, length):
    """The chain, run forwards from its first task with the same uniform numbers."""
    states = [uniform(seed, "slowdown", client, 0) < p / (p + r)]
    for k in range(1, length):
        u = uniform(seed, "slowdown", client, k)
        states.append(u < (1 - r if states[-1] else p))
    return states


def test_without_faults_nothing_happens():
    assert Faults().draw(0, 1, 2) == TaskFaults()


def test_each_fault_has_its_probability():
    faults, n = Faults(dropout=0.2, crash=0.1, message_loss=0.05), 20_000
    drawn = [faults.draw(3, client, client % 7) for client in range(n)]
    assert within(np.mean([d.dropout_at is not None for d in drawn]), 0.2, n)
    assert within(np.mean([d.crash_at is not None for d in drawn]), 0.1, n)
    assert within(np.mean([d.lose_download for d in drawn]), 0.05, n)
    assert within(np.mean([d.lose_upload for d in drawn]), 0.05, n)
    both = np.mean([d.lose_download and d.lose_upload for d in drawn])
    assert within(both, 0.05**2, n)  # independent of each other


def test_the_moment_of_a_fault_is_uniform_over_the_work():
    moments = [Faults(dropout=1.0, crash=1.0).draw(0, c, 0) for c in range(5000)]
    for at in (np.array([m.dropout_at for m in moments]), np.array([m.crash_at for m in moments])):
        assert at.min() >= 0
        assert at.max() < 1
        assert np.histogram(at, 10, (0, 1))[0] == pytest.approx(500, abs=4 * math.sqrt(450))
    assert moments[0].dropout_at != moments[0].crash_at


def test_a_draw_depends_on_seed_client_and_dispatch_alone():
    faults = Faults(dropout=0.5, crash=0.5, message_loss=0.5, slowdown=GilbertElliott(0.3, 0.4, 2))
    keys = [(s, c, k) for s in range(3) for c in range(5) for k in range(9)]
    there = [faults.draw(*key) for key in keys]
    assert [faults.draw(*key) for key in reversed(keys)] == there[::-1]
    assert len(set(there)) > len(keys) / 2


CHAINS = [(0.048, 0.9), (0.2, 0.1), (0.7, 0.8), (1.0, 1.0), (0.0, 0.5), (1.0, 0.3), (0.001, 0.01)]


@pytest.mark.parametrize(("p", "r"), CHAINS)
def test_the_chain_is_the_same_in_any_order_of_tasks(p, r):
    length = 60
    expected = chain_by_definition(p, r, 5, 2, length)
    forwards = GilbertElliott(p, r, 3.0)
    assert [forwards.is_slow(5, 2, k) for k in range(length)] == expected
    backwards = GilbertElliott(p, r, 3.0)
    assert [backwards.is_slow(5, 2, k) for k in reversed(range(length))] == expected[::-1]
    jumps = np.random.default_rng(0).integers(0, length, 200).tolist()
    leaping = GilbertElliott(p, r, 3.0)
    assert [leaping.is_slow(5, 2, k) for k in jumps] == [expected[k] for k in jumps]


@pytest.mark.parametrize(("p", "r"), [(0.048, 0.9), (0.1, 0.25), (0.6, 0.7)])
def test_tasks_are_slow_with_the_stationary_probability_from_the_first_one_on(p, r):
    chain, n = GilbertElliott(p, r, 3.0), 20_000
    for k in (0, 1, 50):
        assert within(np.mean([chain.is_slow(1, client, k) for client in range(n)]), p / (p + r), n)


@pytest.mark.parametrize(("p", "r"), [(0.048, 0.9), (0.1, 0.25)])
def test_a_burst_has_mean_length_one_over_r(p, r):
    chain = GilbertElliott(p, r, 3.0)
    bursts = []
    for client in range(200):
        length = 0
        for k in range(1, 200):
            if chain.is_slow(0, client, k):
                length += 1
            elif length:
                bursts.append(length)
                length = 0
    deviation = math.sqrt(1 - r) / r  # of a geometric length
    assert np.mean(bursts) == pytest.approx(
        1 / r, abs=4 * deviation / math.sqrt(len(bursts)) + 0.01
    )


def test_a_far_task_is_found_without_running_the_chain_from_its_start(monkeypatch):
    asked = []

    def counted(seed, purpose, client, index):
        asked.append(index)
        return uniform(seed, purpose, client, index)

    monkeypatch.setattr("fl.simulation.world.faults.uniform", counted)
    chain = GilbertElliott(0.1, 0.3, 2.0)
    for client in range(100):
        chain.is_slow(0, client, 1_000_000)
    assert len(asked) / 100 < 5  # 1 / (p + r) steps back on average


def test_one_more_task_costs_one_number_even_if_no_number_settles_the_state(monkeypatch):
    asked = []

    def counted(seed, purpose, client, index):
        asked.append(index)
        return uniform(seed, purpose, client, index)

    monkeypatch.setattr("fl.simulation.world.faults.uniform", counted)
    chain = GilbertElliott(1.0, 1.0, 2.0)  # alternates for ever
    states = [chain.is_slow(0, 0, k) for k in range(3000)]
    assert len(asked) == 3000
    assert all(a != b for a, b in itertools.pairwise(states))
    assert GilbertElliott(1.0, 1.0, 2.0).is_slow(0, 0, 2999) == states[-1]  # and no recursion


def test_the_slowdown_is_the_factor_of_slow_tasks():
    chain = GilbertElliott(0.5, 0.5, 2.5)
    for k in range(50):
        factor = 2.5 if chain.is_slow(0, 0, k) else 1.0
        assert chain.slowdown(0, 0, k) == factor
        assert Faults(slowdown=chain).draw(0, 0, k).slowdown == factor


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Faults(dropout=-0.1), r"dropout is -0\.1"),
        (lambda: Faults(crash=1.5), r"crash is 1\.5"),
        (lambda: Faults(message_loss=math.nan), "message_loss is nan"),
        (lambda: Faults(detection_s=-1.0), r"detection_s is -1\.0"),
        (lambda: Faults(detection_s=math.inf), "detection_s is inf"),
        (lambda: GilbertElliott(1.1, 0.5, 2.0), r"slowdown\.p is 1\.1"),
        (lambda: GilbertElliott(0.1, 0.0, 2.0), r"slowdown\.r is 0"),
        (lambda: GilbertElliott(0.1, 0.5, 0.5), r"slowdown\.factor is 0\.5"),
        (lambda: GilbertElliott(0.1, 0.5, math.nan), r"slowdown\.factor is nan"),
    ],
)
def test_arguments_out_of_range_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
