"""Backup workers and DBW: closed forms, estimators, the workers' three ways to get a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from scipy.optimize import minimize
from stand_ins import FakeExecutor, FixedWork, Scripted, ScriptedFaults

from fl.aggregation import FLTrust, Krum, Median
from fl.attacks import Attack, ConstantUpdate, Forged
from fl.errors import ConfigError
from fl.execution.contract import Result
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.trace import Event, Trace
from fl.simulation.world.faults import TaskFaults
from fl.simulation.world.fleets import durations
from fl.simulation.world.slowdowns import Constant, ShiftedExponential
from fl.strategies import DBW, BackupWorkers, Exchange, ParameterServer
from fl.strategies.arrival_times import ArrivalTimes, monotone_fit
from fl.strategies.gradient_rule import Gradients

N = 8
START = np.array([4.0, -2.0], dtype=np.float32)


def quadratic(noise=0.0, loss_noise=0.0):
    """Workers with f(w) = |w|^2 / 2 and a gradient w + noise z; they do one step of rate lr."""

    def answer(request):
        config = request.payload.content["config"]
        assert (config["local-steps"], config["lr"]) == (1, 1.0)
        w = request.payload.content["arrays"]["w"].numpy()
        rng = np.random.default_rng([request.client, request.dispatch])
        g = w + noise * rng.standard_normal(2)
        loss = float(w @ w) / 2 + loss_noise * rng.standard_normal()
        x = (w - g).astype(np.float32)
        metrics = MetricRecord({"num-examples": 1, "train-loss": loss})
        content = {"arrays": ArrayRecord({"w": Array(x)}), "metrics": metrics}
        return Result(content=RecordDict(content))

    return answer


def run(strategy, task=None, *, rounds=20, n=N, seed=0, answer=None, **fleet):
    trace = Trace()
    grid = SimGrid(
        durations(n, seed, task_slowdown=task, **fleet),
        FakeExecutor(answer or quadratic()),
        planner=lambda *_: FixedWork(1.0),
        trace=trace,
    )
    versions = []

    def evaluate(version, arrays):
        versions.append((grid.clock.now(), arrays["w"].numpy().copy()))

    strategy.start(
        grid, ArrayRecord({"w": Array(START)}), num_rounds=rounds, timeout=1e6, evaluate_fn=evaluate
    )
    return grid, trace, versions


def per_version(trace):
    """Returns how many gradients each version was made of."""
    counts, times = [], []
    for kind, time in zip(trace.kind, trace.time, strict=True):
        if Event(kind) is Event.APPLIED:
            if not times or time != times[-1]:
                times.append(time)
                counts.append(0)
            counts[-1] += 1
    return counts


# ---- static --------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["psw", "psi", "pull"])
def test_without_backup_workers_it_is_gradient_descent(policy):
    grid, _, versions = run(
        ParameterServer(BackupWorkers(eta=0.25), policy=policy), Constant(), rounds=6
    )
    for t, (time, w) in enumerate(versions):
        assert time == pytest.approx(t)
        np.testing.assert_allclose(w, 0.75**t * START, rtol=1e-5)
    assert grid.client_updates == 6 * N


@pytest.mark.parametrize("policy", ["psw", "psi", "pull"])
@pytest.mark.parametrize("backup", [0, 3, 7])
def test_every_version_is_made_of_n_minus_b_gradients_of_the_last(policy, backup):
    strategy = ParameterServer(BackupWorkers(backup=backup, eta=0.25), policy=policy)
    _, trace, versions = run(strategy, ShiftedExponential(), rounds=12)
    # the model's course says that no gradient of an older version was used
    np.testing.assert_allclose(versions[-1][1], 0.75**12 * START, rtol=1e-5)
    assert per_version(trace) == [N - backup] * 12


def test_memoryless_interrupted_workers_take_the_sum_of_one_over_n_minus_j():
    # The k-th of n independent Exp(1) times; nobody has a head start, as all begin anew.
    n, rounds = 4, 150
    for k in (1, 3):
        strategy = ParameterServer(BackupWorkers(backup=n - k, eta=1e-3), policy="psi")
        _, _, versions = run(strategy, ShiftedExponential(), rounds=rounds, n=n)
        expected = sum(1 / (n - j) for j in range(k))
        # the variance of that time is the sum of 1 / (n - j)^2
        error = np.sqrt(sum(1 / (n - j) ** 2 for j in range(k)) / rounds)
        assert versions[-1][0] / rounds == pytest.approx(expected, abs=4 * error)


def test_a_worker_that_is_pushed_a_model_finishes_before_it_takes_the_newest():
    # Client 1 takes 2.5 s, client 0 takes 1 s; k = 1, so there is a version every second.
    class Slow:
        def of_clients(self, seed, purpose, n):
            return np.array([1.0, 2.5])

    computed = {}
    for policy in ("psw", "psi", "pull"):
        strategy = ParameterServer(BackupWorkers(backup=1), policy=policy)
        _, trace, _ = run(strategy, rounds=6, n=2, client_slowdown=Slow())
        rows = zip(trace.time, trace.kind, trace.client, strict=True)
        computed[policy] = [t for t, kind, c in rows if Event(kind) is Event.COMPUTE_END and c == 1]
    assert computed["psw"] == computed["pull"] == [2.5, 5.0]
    assert computed["psi"] == []


@pytest.mark.parametrize("prefetch", [False, True])
def test_pushing_ahead_moves_more_bytes_than_pulling_if_workers_take_them(prefetch):
    class Slow:
        def of_clients(self, seed, purpose, n):
            return np.array([1.0, 2.5])

    moved = {
        policy: run(
            ParameterServer(BackupWorkers(backup=1), policy=policy),
            rounds=6,
            n=2,
            client_slowdown=Slow(),
            prefetch=prefetch,
        )[0]
        for policy in ("psw", "pull")
    }
    down = {policy: grid.engine.bytes_down for policy, grid in moved.items()}
    assert down["psw"] > down["pull"] if prefetch else down["psw"] == down["pull"]
    assert moved["psw"].engine.bytes_up == moved["pull"].engine.bytes_up


@pytest.mark.parametrize("make", [BackupWorkers, DBW])
@pytest.mark.parametrize("policy", ["psw", "psi", "pull"])
def test_a_worker_that_always_fails_does_not_stop_the_others(make, policy):
    crashes = ScriptedFaults(script={(1, k): TaskFaults(crash_at=0.5) for k in range(999)})
    strategy = ParameterServer(make(backup=0, eta=0.25), policy=policy)
    _, trace, versions = run(strategy, Constant(), rounds=6, n=3, faults=crashes)
    np.testing.assert_allclose(versions[-1][1], 0.75**6 * START, rtol=1e-5)
    assert per_version(trace) == [2] * 6
    assert versions[-1][0] == 6.0


@pytest.mark.parametrize("make", [BackupWorkers, DBW])
def test_a_client_that_comes_later_is_a_worker_from_then_on(make):
    away = Scripted(3, {2: [3.5]}, offline=[2])
    strategy = ParameterServer(make(backup=0, eta=0.25))
    _, trace, versions = run(strategy, Constant(), rounds=8, n=3, availability=away)
    np.testing.assert_allclose(versions[-1][1], 0.75**8 * START, rtol=1e-5)
    # It is given the model at 4.0, when the fifth iteration begins.
    assert per_version(trace) == [2, 2, 2, 2, 3, 3, 3, 3]


def test_an_iteration_ends_with_what_it_has_when_no_worker_is_left():
    class FirstTwoOnly:
        def online(self, t):
            return np.array([True, True, t < 0.5])

        def is_online(self, client, t):
            return bool(self.online(t)[client])

        def next_change(self, client, t):
            return 0.5 if client == 2 and t < 0.5 else np.inf

    strategy = ParameterServer(BackupWorkers(eta=0.25))
    _, trace, versions = run(
        strategy, Constant(), rounds=3, n=3, availability=FirstTwoOnly(), answer=quadratic()
    )
    assert per_version(trace) == [2, 2, 2]
    np.testing.assert_allclose(versions[-1][1], 0.75**3 * START, rtol=1e-5)


# ---- DBW -----------------------------------------------------------------------------------------


def test_equal_times_make_dbw_wait_for_everybody():
    _, trace, _ = run(ParameterServer(DBW(eta=0.25)), Constant(), answer=quadratic(noise=0.5))
    assert per_version(trace) == [N] * 20


def test_without_variance_dbw_waits_for_one():
    # The gain does not depend on k then. L is known after two iterations; until then k = n.
    _, trace, _ = run(ParameterServer(DBW(eta=0.25)), ShiftedExponential())
    assert per_version(trace) == [N, N] + [1] * 18


def times(h, seconds):
    """Returns samples of T(h, k), one for each k."""
    known = ArrivalTimes.unknown(len(seconds))
    for k, s in enumerate(seconds, start=1):
        known = known.with_sample(h, k, s)
    return known


@pytest.mark.parametrize(("variance", "best"), [(0.01, 1), (10.0, 3), (1000.0, N)])
def test_more_variance_makes_dbw_wait_for_more(variance, best):
    # eta = 1/4, L = G = 1: gain(k) = 7/32 - V / (32 k). With E[k-th of 8 Exp(1)] as times and
    # V = 10, gain(k) / T is -0.75, 0.23, 0.26, 0.22 for k = 1, ..., 4; no gain is positive at 1000.
    rule = DBW(eta=0.25)
    known = times(3, [sum(1 / (N - j) for j in range(k)) for k in range(1, N + 1)])
    state = rule.init(START, N)._replace(
        times=known, variance=(variance,), norm=(1.0,), smoothness=(1.0,)
    )
    assert rule.best_k(state, 3) == best


def test_gains_rise_with_k_and_flatten():
    strategy = ParameterServer(DBW(eta=0.1))
    run(strategy, ShiftedExponential(), answer=quadratic(noise=1.0))
    gains = strategy.rule.gains(strategy.state)
    if not np.allclose(gains, gains[0]):
        steps = np.diff(gains)
        assert (steps > 0).all()
        assert (np.diff(steps) < 0).all()


def test_estimates_are_those_of_the_quadratic():
    # L of |w|^2 / 2 is 1; E|z|^2 of a gradient's noise is 2 noise^2.
    rule = DBW(eta=0.5, window=400)
    state = rule.init(START, 1000)
    rng = np.random.default_rng(0)
    w = START.astype(np.float64)
    for _ in range(5):
        gradients = (w + 0.3 * rng.standard_normal((1000, 2))).astype(np.float32)
        state = rule.observed(state, Gradients(gradients), float(w @ w) / 2)
        # the mean of 1000 gradients is off by 0.3 / sqrt(1000) = 0.01 in each direction
        assert state.norm[-1] ** 0.5 == pytest.approx((w @ w) ** 0.5, abs=0.04)
        assert state.variance[-1] == pytest.approx(2 * 0.3**2, rel=0.1)
        w = w - 0.5 * gradients.mean(axis=0)
    assert np.mean(state.smoothness) == pytest.approx(1.0, rel=0.05)
    g, v = np.mean(state.norm), np.mean(state.variance)
    smooth = np.mean(state.smoothness)
    k = np.arange(1, 1001)
    np.testing.assert_allclose(
        rule.gains(state), (0.5 - smooth * 0.125) * g - smooth * 0.125 * v / k, rtol=1e-9
    )


def test_a_norm_below_its_noise_is_zero_and_one_gradient_keeps_the_last_variance():
    rule = DBW()
    state = rule.init(START, 4)
    state = rule.observed(
        state, Gradients(np.array([[1.0, 0.0], [-1.0, 0.0]], dtype=np.float32)), 1.0
    )
    assert (state.norm[-1], state.variance[-1]) == (0.0, 2.0)
    state = rule.observed(state, Gradients(np.array([[3.0, 0.0]], dtype=np.float32)), 1.0)
    assert state.variance == (2.0,)
    assert state.norm[-1] == 9.0 - 2.0


@pytest.mark.parametrize(("loss", "least"), [(1.0, 1), (1.009, 1), (1.02, 4)])
def test_a_growing_loss_makes_dbw_wait_for_one_more(loss, least):
    # Without noise, k = 1 is best; but three gradients were waited for when the loss grew.
    rule = DBW(eta=0.25)
    state = rule.init(START, N)._replace(
        times=times(3, [float(k) for k in range(1, N + 1)]), last=(1.0, 1.0, 1.0), smoothness=(0.0,)
    )
    gradients = np.ones((3, 2), dtype=np.float32)
    after = rule.step(state, 0, Gradients(gradients, [{"train-loss": loss}] * 3), set())
    assert after.k == least
    np.testing.assert_array_equal(after.w, START - 0.25)
    assert (state.waited, after.waited) == ({0: N}, {1: 3})


def test_versions_of_which_gradients_may_come_are_remembered():
    rule = DBW(eta=0.25)
    state = rule.init(START, N)
    gradients = Gradients(np.ones((2, 2), dtype=np.float32), [{"train-loss": 1.0}] * 2)
    for version in range(4):
        state = rule.step(state, version, gradients, {0, version})
    assert sorted(state.waited) == [0, 3, 4]
    after = rule.arrived(state, 7, 1, 2.5)  # of a version that no gradient has made
    assert after.times.total[N - 1, 0] == 2.5
    assert state.times.total.sum() == 0.0


# ---- aggregators ---------------------------------------------------------------------------------

CENTRES = np.array(
    [[1, 0], [2, 1], [1.5, -1], [0.5, 3], [1.2, 0.4], [2.2, 1.7], [0.9, 2]], np.float32
)
LIAR = 3


def of_centres(request):
    """A worker whose gradient is w - c_i, with its own loss."""
    w = request.payload.content["arrays"]["w"].numpy()
    g = w - CENTRES[request.client]
    metrics = MetricRecord({"num-examples": 1, "train-loss": float(g @ g) / 2})
    return Result(RecordDict({"arrays": ArrayRecord({"w": Array(w - g)}), "metrics": metrics}))


def lied_to(strategy, attack=None):
    """Returns the strategy, beside a worker that lies."""
    attack = ConstantUpdate(1e6) if attack is None else attack
    return strategy.within(Exchange(attack=attack, byzantine=frozenset({LIAR})))


@pytest.mark.parametrize("make", [BackupWorkers, DBW])
def test_a_step_goes_along_what_the_aggregator_makes_of_the_changes(make):
    F = Krum(f=1)
    strategy = ParameterServer(make(backup=0, eta=0.25), aggregator=F)
    _, trace, versions = run(strategy, Constant(), rounds=4, n=7, answer=of_centres)
    assert per_version(trace) == [7] * 4
    w = START
    for _, found in versions[1:]:
        w = w + np.float32(0.25) * F(CENTRES - w)
        np.testing.assert_allclose(found, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [BackupWorkers, DBW])
def test_a_forged_gradient_is_thrown_out_and_without_an_aggregator_it_is_not(make):
    found = {}
    for F in (None, Krum(f=1)):
        strategy = lied_to(ParameterServer(make(backup=0, eta=0.25), aggregator=F))
        _, trace, versions = run(strategy, Constant(), rounds=8, n=7, answer=of_centres)
        assert trace.faults()["forged"] >= 8
        found[F] = versions[-1][1]
    assert np.abs(found.pop(None)).max() > 1e4
    (last,) = found.values()
    assert (last > CENTRES.min(axis=0) - 1).all()
    assert (last < np.maximum(START, CENTRES.max(axis=0))).all()


def test_an_attack_that_searches_knows_the_changes_of_the_iteration():
    seen = []

    @dataclass
    class Spy(Attack):
        knowledge = "aggregation"

        def forge(self, honest, own, scene):
            seen.append((honest.copy(), own.copy(), scene))
            return Forged(np.zeros_like(own), {})

    F = Median()
    strategy = lied_to(ParameterServer(BackupWorkers(eta=0.25), aggregator=F), Spy())
    _, _, versions = run(strategy, Constant(), rounds=1, n=7, answer=of_centres)
    ((honest, own, scene),) = seen
    others = np.delete(CENTRES, LIAR, axis=0) - START
    np.testing.assert_allclose(honest, others, rtol=1e-6)
    np.testing.assert_allclose(own, CENTRES[[LIAR]] - START, rtol=1e-6)
    assert scene.aggregator is F
    expected = START + np.float32(0.25) * F(np.vstack([others, np.zeros((1, 2), np.float32)]))
    np.testing.assert_allclose(versions[1][1], expected, rtol=1e-6)


def test_dbw_waits_for_as_many_as_the_aggregator_needs():
    # Without variance it would wait for one; Krum with f = 1 works with 5.
    strategy = ParameterServer(DBW(eta=0.25), aggregator=Krum(f=1))
    _, trace, _ = run(strategy, ShiftedExponential())
    assert per_version(trace) == [N, N] + [5] * 18


def test_the_estimates_of_dbw_are_of_what_the_aggregator_makes():
    rows = np.array([[1, 0], [3, 0], [50, 8]], np.float32)
    state = DBW().observed(DBW().init(START, 4), Gradients(rows, combine=Median()), 1.0)
    g = np.array([3.0, 0.0])  # the median of each coordinate
    v = (np.square(rows - g)).sum() / 2
    assert state.variance == (pytest.approx(v),)
    assert state.norm == (pytest.approx(max(0.0, g @ g - v / 3)),)


@pytest.mark.parametrize(("backup", "refused"), [(0, False), (2, False), (3, True), (6, True)])
def test_too_few_gradients_for_the_aggregator_are_refused(backup, refused):
    strategy = ParameterServer(BackupWorkers(backup=backup), aggregator=Krum(f=1))
    if not refused:
        strategy.check_clients(7)
        return
    with pytest.raises(ConfigError, match="Krum"):
        strategy.check_clients(7)
    with pytest.raises(ConfigError):
        run(strategy, Constant(), rounds=1, n=7, answer=of_centres)


def test_fltrust_is_given_the_servers_own_update_of_the_same_model():
    asked = []

    def trusted(number, arrays, config):
        w = arrays["w"].numpy()
        asked.append((number, config["local-steps"], config["lr"]))
        return np.array([1.3, 0.2], np.float32) - w

    F = FLTrust()
    strategy = ParameterServer(BackupWorkers(eta=0.25), aggregator=F)
    with pytest.raises(ConfigError, match="FLTrust"):
        run(strategy, Constant(), rounds=1, n=7, answer=of_centres)
    strategy = strategy.within(Exchange(trusted=trusted))
    _, _, versions = run(strategy, Constant(), rounds=3, n=7, answer=of_centres)
    w = START
    for _, found in versions[1:]:
        own = np.array([1.3, 0.2], np.float32) - w
        w = w + np.float32(0.25) * F(CENTRES - w, None, None, own)
        np.testing.assert_allclose(found, w, rtol=1e-4, atol=1e-5)
    assert asked == [(t, 1, 1.0) for t in (1, 2, 3)]


# ---- T(h, k) -------------------------------------------------------------------------------------


def test_the_fit_is_the_least_squares_one_among_monotone_tables():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(4, 4)) + np.arange(4)
    weights = rng.integers(1, 9, size=(4, 4)).astype(float)
    constraints = [
        {"type": "ineq", "fun": lambda x: np.diff(x.reshape(4, 4), axis=1).ravel()},
        {"type": "ineq", "fun": lambda x: -np.diff(x.reshape(4, 4), axis=0).ravel()},
    ]
    best = minimize(
        lambda x: np.sum(weights * (x.reshape(4, 4) - values) ** 2),
        np.zeros(16),
        constraints=constraints,
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    np.testing.assert_allclose(monotone_fit(values, weights), best.x.reshape(4, 4), atol=1e-3)


def test_tables_are_monotone_and_filled_in_with_what_neighbours_allow():
    times = ArrivalTimes.unknown(5)
    rng = np.random.default_rng(2)
    for _ in range(40):
        h, k = rng.integers(1, 6, size=2)
        times = times.with_sample(int(h), int(k), float(rng.exponential()))
    table = times.table
    assert (np.diff(table, axis=1) >= -1e-12).all()
    assert (np.diff(table, axis=0) <= 1e-4).all()
    few = ArrivalTimes.unknown(3).with_sample(3, 1, 1.0).with_sample(3, 3, 4.0)
    # (3, 2) may be as little as (3, 1); smaller h take as long at least, and that is taken.
    np.testing.assert_allclose(few.table, [[1, 1, 4]] * 3, atol=1e-4)


def test_the_table_recovers_the_means_of_order_statistics():
    # E[k-th of n Exp(1)] is the sum of 1 / (n - j), j < k, for every h: the fit pools the rows.
    n = 5
    rng = np.random.default_rng(3)
    times = ArrivalTimes.unknown(n)
    for h in range(1, n + 1):
        for _ in range(200):
            for k, seconds in enumerate(np.sort(rng.exponential(size=n)), start=1):
                times = times.with_sample(h, k, float(seconds))
    expected = np.cumsum([1 / (n - j) for j in range(n)])
    np.testing.assert_allclose(times.table, [expected] * n, rtol=0.2)


def test_every_arrival_is_a_sample_of_its_own_iteration():
    # Times 1 and 2.5 s, k = 1: client 1's first gradient is the second of w_0, after 2.5 s.
    class Slow:
        def of_clients(self, seed, purpose, n):
            return np.array([1.0, 2.5])

    seen = []

    class Watched(BackupWorkers):
        def arrived(self, state, version, order, seconds):
            seen.append((version, order, seconds))
            return state

    run(ParameterServer(Watched(backup=1)), rounds=4, n=2, client_slowdown=Slow())
    assert seen == [(0, 1, 1.0), (1, 1, 1.0), (0, 2, 2.5), (2, 1, 1.0), (3, 1, 1.0)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BackupWorkers(backup=-1), "backup is -1"),
        (lambda: BackupWorkers(eta=0.0), "eta is 0"),
        (lambda: ParameterServer(BackupWorkers(), policy="push"), "policy is 'push'"),
        (lambda: DBW(beta=0.9), "beta is 0.9"),
        (lambda: DBW(window=0), "window is 0"),
        (
            lambda: run(ParameterServer(BackupWorkers(backup=N))),
            "backup is 8; it must be less than",
        ),
        (lambda: run(ParameterServer(DBW(loss_key="loss"))), "reports no finite 'loss'"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
