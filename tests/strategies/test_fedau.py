"""FedAU and MIFA: rules for clients that are often away (arXiv:2306.03401, arXiv:2106.04159)."""

from __future__ import annotations

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from scripted_rounds import clients, run

from fl.aggregation import Median
from fl.errors import ConfigError
from fl.flower.identity import client_of, node_id
from fl.runs.build import build
from fl.runs.run import run_experiment
from fl.simulation.kernel.trace import Event
from fl.simulation.world.slots import Bernoulli
from fl.strategies import MIFA, FedAU, FedAvg, Rounds
from fl.strategies.fedau import Intervals
from fl.strategies.round_rule import Updates

N, DIM, STEPS, LR, ROUNDS = 8, 5, 10, 0.05, 50


def weights(pattern, cutoff):
    """The weights of a client that takes part in these rounds, None in the others."""
    known, found = Intervals(), []
    for t, here in enumerate(pattern, start=1):
        weight = None
        if here:
            weight, known = known.at(t, cutoff)
        found.append(weight)
    return found


def naive_weights(pattern, cutoff):
    """The authors' code, round by round: counter, list of intervals."""
    c, intervals, found = 0, [], []
    for here in pattern:
        c += 1
        found.append((np.mean(intervals) if intervals else 1.0) if here else None)
        if here or (cutoff is not None and c >= cutoff):
            intervals.append(c)
            c = 0
    return found


@pytest.mark.parametrize(
    ("cutoff", "expected"),
    [(None, [1, None, None, 1, 2]), (2, [1, None, None, 1.5, 4 / 3]), (1, [1, None, None, 1, 1])],
)
def test_weights_of_a_short_pattern(cutoff, expected):
    assert weights([1, 0, 0, 1, 1], cutoff) == pytest.approx(expected)


@pytest.mark.parametrize("cutoff", [None, 1, 3, 7, 50])
def test_what_is_computed_at_participation_is_what_counting_every_round_gives(cutoff):
    rng = np.random.default_rng(0)
    for p in (0.03, 0.3, 0.9):
        pattern = rng.random(400) < p
        assert weights(pattern, cutoff) == pytest.approx(naive_weights(pattern, cutoff))


@pytest.mark.parametrize("cutoff", [1, 5, 20, None])
def test_the_mean_interval_estimates_the_inverse_rate_up_to_the_cutoff(cutoff):
    p, rounds = 0.1, 60_000
    rng = np.random.default_rng(1)
    known = Intervals()
    for t in np.flatnonzero(rng.random(rounds) < p) + 1:
        _, known = known.at(int(t), cutoff)
    expected = (1 - (1 - p) ** cutoff) / p if cutoff else 1 / p
    assert known.total / known.n == pytest.approx(expected, rel=0.05)


# ---- on quadratics: f_i(x) = (x - c_i)^T A_i (x - c_i) / 2 ---------------------------------------


class Losses:
    def __init__(self, n=N, seed=0):
        rng = np.random.default_rng(seed)
        self.a = rng.uniform(0.5, 2, (n, DIM))
        self.c = 3 * rng.standard_normal((n, DIM))

    def delta(self, i, x):
        """What STEPS steps of gradient descent change."""
        return (1 - (1 - LR * self.a[i]) ** STEPS) * (self.c[i] - x)


def updates(losses, here, w):
    deltas = np.array([losses.delta(i, w) for i in here], dtype=np.float32)
    examples = np.array([3.0 + i for i in here])  # must not matter
    return Updates(deltas, examples, clients=[100 + i for i in here])


def course(rule, losses, patterns):
    state = rule.init(np.zeros(DIM, np.float32), DIM)
    for pattern in patterns:
        here = np.flatnonzero(pattern)
        if len(here):
            state = rule.step(state, updates(losses, here, state.w))
    return state.w


def patterns(p, rounds=ROUNDS, seed=2):
    return np.random.default_rng(seed).random((rounds, len(p))) < p


def test_fedau_is_its_recursion_in_numpy():
    losses, p = Losses(), np.linspace(0.1, 1.0, N)
    here = patterns(p)
    assert here.any(axis=1).all()
    omega = np.array([[w or 0.0 for w in naive_weights(here[:, i], 4)] for i in range(N)])
    x = np.zeros(DIM)
    for t in range(ROUNDS):
        x = x + 0.7 / N * sum(omega[i, t] * losses.delta(i, x) for i in np.flatnonzero(here[t]))
    rule = FedAU(num_clients=N, cutoff=4, eta=0.7)
    np.testing.assert_allclose(course(rule, losses, here), x, rtol=1e-4, atol=1e-4)


def test_mifa_is_its_recursion_in_numpy():
    losses, here = Losses(), patterns(np.linspace(0.1, 1.0, N))
    x, memory = np.zeros(DIM), np.zeros((N, DIM))
    for t in range(ROUNDS):
        for i in np.flatnonzero(here[t]):
            memory[i] = losses.delta(i, x)
        x = x + 0.7 * memory.mean(axis=0)
    rule = MIFA(num_clients=N, eta=0.7)
    np.testing.assert_allclose(course(rule, losses, here), x, rtol=1e-4, atol=1e-4)


def test_with_known_rates_the_step_is_right_on_average_in_the_first_round():
    # Over all 2^n sets S, sum of P(S) times the step from the same model is the mean of all deltas.
    losses, p = Losses(3), np.array([0.2, 0.5, 1.0])
    rule = FedAU(num_clients=3, eta=0.7, rates=p)
    w, expected = np.ones(DIM, np.float32), np.zeros(DIM)
    for there in np.ndindex(2, 2, 2):
        there = np.array(there, bool)
        here = np.flatnonzero(there)
        deltas = np.array([losses.delta(i, w) for i in here], np.float32).reshape(-1, DIM)
        probability = np.where(there, p, 1 - p).prod()
        if probability > 0:
            of = Updates(deltas, 3.0 + here, clients=[node_id(i) for i in here])
            expected += probability * (rule.step(rule.init(w, DIM), of).w - w)
    mean = np.mean([losses.delta(i, w) for i in range(3)], axis=0)
    np.testing.assert_allclose(expected, 0.7 * mean, rtol=1e-5)


def test_who_has_no_known_rate_ends_the_run():
    rule = FedAU(num_clients=2, rates=[0.5, 0.5])
    with pytest.raises(ConfigError, match="rates is of clients 0 to 1, and one is 2"):
        rule.step(
            rule.init(np.zeros(1), 1), Updates(np.ones((1, 1)), np.ones(1), clients=[node_id(2)])
        )


@pytest.mark.parametrize("rule", [FedAU(num_clients=N), MIFA(num_clients=N)])
def test_with_everybody_there_it_is_the_plain_average(rule):
    losses, w = Losses(), np.zeros(DIM, np.float32)
    always = np.ones((ROUNDS, N), bool)
    state = FedAvg().init(w, DIM)
    for _ in range(ROUNDS):
        state = FedAvg().step(state, updates(losses, range(N), state.w).unweighted())
    np.testing.assert_allclose(course(rule, losses, always), state.w, rtol=1e-4, atol=1e-5)


def test_a_rare_client_pulls_as_much_as_a_frequent_one():
    # Two clients with equal curvature: the midpoint is the optimum, and averaging over those that
    # take part ends near the frequent one. FedAU's fixed point has p_1 omega_1 = p_2 omega_2.
    losses = Losses(2)
    losses.a[:] = 1.0
    here = patterns(np.array([1.0, 0.1]), rounds=6000)
    mean = losses.c.mean(axis=0)
    ends = {}
    for name, rule in (("fedau", FedAU(2, None, 0.02)), ("mifa", MIFA(2, 0.02))):
        ends[name] = np.linalg.norm(course(rule, losses, here) - mean)
    plain = np.zeros(DIM)
    for t in range(6000):
        plain = plain + 0.02 * np.mean([losses.delta(i, plain) for i in np.flatnonzero(here[t])], 0)
    apart = np.linalg.norm(losses.c[0] - mean)
    assert np.linalg.norm(plain - mean) > 0.8 * apart
    assert ends["fedau"] < 0.25 * apart
    assert ends["mifa"] < 0.1 * apart


@pytest.mark.parametrize("rule", [FedAU(num_clients=N), MIFA(num_clients=N)])
def test_who_has_done_no_step_has_not_taken_part(rule):
    deltas = np.ones((2, DIM), np.float32)
    state = rule.init(np.zeros(DIM, np.float32), DIM)
    first = rule.step(state, Updates(deltas, np.array([1.0, 0.0]), clients=[5, 6]))
    np.testing.assert_allclose(first.w, 1 / N)
    known = first.intervals if isinstance(rule, FedAU) else first.latest
    assert set(known) == {5}
    before = state.intervals if isinstance(rule, FedAU) else state.latest
    assert before == {}  # the earlier state is as it was


# ---- on a grid -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [FedAU, MIFA])
def test_a_round_as_long_as_a_slot_is_a_draw_of_who_takes_part(rule):
    rounds, p = 400, [0.2, 0.5, 0.9, 1.0]
    strategy = Rounds(rule(num_clients=4), fraction_train=1.0, min_train_nodes=1)
    there = Bernoulli(4, 7, p)
    _, trace, times, _ = run(strategy, [1.0] * 4, rounds=rounds, availability=there)
    np.testing.assert_allclose(np.diff(times), 1.0)  # client 3 is always there
    counts = np.bincount(clients(trace, Event.APPLIED), minlength=4)
    error = np.sqrt(rounds * np.array(p) * (1 - np.array(p)))
    assert (np.abs(counts - rounds * np.array(p)) <= 4 * error).all()
    if rule is FedAU:
        known = {client_of(i): r for i, r in strategy.state.intervals.items()}
        inverse = [known[i].total / known[i].n for i in range(4)]
        np.testing.assert_allclose(inverse, 1 / np.array(p), rtol=0.3)


@pytest.mark.parametrize("rule", [FedAU, MIFA])
def test_a_robust_rule_may_combine_what_is_weighted(rule):
    strategy = Rounds(rule(num_clients=3), aggregator=Median(), clients=3)
    _, _, _, models = run(strategy, [1.0, 2.0, 3.0])
    assert models[1] == pytest.approx(1.0)  # three thirds of the median of 0, 1, 2


@pytest.mark.parametrize("pattern", ["bernoulli", "markov", "cyclic"])
def test_the_patterns_of_the_paper_are_on_the_command_line(pattern):
    small = ["executor=serial", "progress=false", "num_clients=20", "num_rounds=5", "target=null"]
    small += ["model=logistic", "fleet=durations", f"fleet/availability={pattern}"]
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", [*small, "strategy=fedau"])
        one = compose("config", [*small, "strategy=mifa", "fleet.availability.rates.mean=0.5"])
        of_fleet = "strategy.rule.rates=${fleet.availability.rates}"
        known = compose("config", [*small, "strategy=fedau", of_fleet])
    assert run_experiment(config) is None
    build(one)
    assert len(build(known).strategy.rule.rates) == 20


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: FedAU(num_clients=0), "num_clients is 0"),
        (lambda: FedAU(num_clients=3, cutoff=0), "cutoff is 0"),
        (lambda: FedAU(num_clients=3, eta=0.0), "eta is 0"),
        (lambda: FedAU(num_clients=3, rates=[0.5, 0.5]), "rates has shape"),
        (lambda: FedAU(num_clients=2, rates=[0.5, 0.0]), "rates is"),
        (lambda: MIFA(num_clients=0), "num_clients is 0"),
        (lambda: MIFA(num_clients=3, eta=-1.0), "eta is -1"),
    ],
)
def test_what_cannot_be_is_refused(make, key):
    with pytest.raises(ConfigError, match=key):
        make()
