"""Asynchronous and polling rules by themselves: scripted arrivals, and each paper's recursion.

There is no grid here. What the rules make of the arrivals is compared with a few lines of NumPy in
float64 that know nothing of the rules' states.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from fl.strategies import (
    CA2FL,
    FADAS,
    FAVAS,
    AsyncDiLoCo,
    AsyncFedAvg,
    AsyncSGD,
    FedAsync,
    FedAvgM,
    FedBuff,
    FedCompass,
    FedFix,
    QuAFL,
    RennalaSGD,
    RingmasterASGD,
)
from fl.strategies.event_rule import Answers, Arrivals
from fl.strategies.staleness import ConstantWeight, Polynomial

D = 5
RNG = np.random.default_rng(7)
W0 = RNG.normal(size=D).astype(np.float32)


@dataclass
class Came:
    """An update that has arrived."""

    node: int
    delta: np.ndarray
    x0: np.ndarray
    sent_s: float = 0.0
    received_s: float = 1.0
    config: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)

    @property
    def x(self):
        return self.x0 + self.delta


def drawn(count, clients=4):
    """Updates with deltas drawn at random, and their staleness."""
    rng = np.random.default_rng(11)
    return [
        (
            Came(int(rng.integers(clients)), rng.normal(size=D).astype(np.float32), W0),
            int(rng.integers(5)),
        )
        for _ in range(count)
    ]


def played(rule, arrivals, **more):
    """Returns the models after each arrival, as the driver would have the rule make them."""
    state, models = rule.init(W0, D), []
    for update, tau in arrivals:
        decision = rule.receive(state, update, tau)
        state = decision.state
        if decision.apply is not None:
            ages = {id(u): t for u, t in arrivals}
            n = len(decision.apply)
            given = {
                "weights": decision.weights or [1.0] * n,
                "staleness": [ages[id(u)] for u in decision.apply],
            }
            state = rule.step(state, Arrivals(decision.apply, **(given | more)))
        models.append(state.w)
    return np.array(models)


def test_fedbuff_is_algorithm_1_with_a_heavy_ball():
    k, eta, beta, a = 3, 0.7, 0.6, 0.5
    arrivals = drawn(20)
    w, u, s, count, expected = W0.astype(float), np.zeros(D), np.zeros(D), 0, []
    for update, tau in arrivals:
        s, count = s + (1 + tau) ** -a * update.delta, count + 1
        if count == k:
            u = beta * u + s / k
            w, s, count = w + eta * u, np.zeros(D), 0
        expected.append(w)
    rule = FedBuff(k, FedAvgM(eta, beta), Polynomial(a))
    np.testing.assert_allclose(played(rule, arrivals), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("anchor", ["server", "client"])
def test_fedasync_mixes_by_age_and_discards_what_is_too_old(anchor):
    alpha, most = 0.6, 3
    arrivals = drawn(20)
    w, expected = W0.astype(float), []
    for update, tau in arrivals:
        a = alpha / np.sqrt(1 + tau)
        if tau <= most:
            w = (1 - a) * w + a * update.x if anchor == "server" else w + a * update.delta
        expected.append(w)
    rule = FedAsync(alpha=alpha, max_staleness=most, anchor=anchor)
    assert any(tau > most for _, tau in arrivals)
    np.testing.assert_allclose(played(rule, arrivals), expected, rtol=1e-5, atol=1e-6)


def test_asynchronous_fedavg_weighs_by_intervals_with_the_rate_of_its_slots():
    (update, tau), *_ = drawn(1)
    step = {"intervals": [6.0], "mean_interval": 4.0, "concurrency": 3}
    moved = played(AsyncFedAvg(num_clients=10), [(update, tau)], **step)[0]
    np.testing.assert_allclose(moved, W0 + 1 / 3 * 6 / 4 * update.delta, rtol=1e-5)
    few = played(AsyncFedAvg(num_clients=2), [(update, tau)], **step)[0]
    np.testing.assert_allclose(few, W0 + 1 / 2 * 6 / 4 * update.delta, rtol=1e-5)
    same = played(AsyncFedAvg(num_clients=2, weights="identical", eta=0.3), [(update, tau)], **step)
    np.testing.assert_allclose(same[0], W0 + 0.3 * update.delta, rtol=1e-5)


def test_gradients_make_the_steps_that_their_delays_allow():
    arrivals, c = drawn(30), 2
    ws = {name: W0.astype(float) for name in ("adaptive", "constant", "ringmaster", "rennala")}
    batch, expected = [], {name: [] for name in ws}
    for update, tau in arrivals:
        ws["adaptive"] = ws["adaptive"] + min(1, c / max(tau, 1)) * update.delta
        ws["constant"] = ws["constant"] + update.delta
        ws["ringmaster"] = ws["ringmaster"] + (tau < 2) * update.delta
        batch += [update.delta] if tau == 0 else []
        if len(batch) == 2:
            ws["rennala"], batch = ws["rennala"] + np.mean(batch, axis=0), []
        for name, w in ws.items():
            expected[name].append(w)
    rules = {
        "adaptive": AsyncSGD(),
        "constant": AsyncSGD(adaptive=False),
        "ringmaster": RingmasterASGD(max_delay=2),
        "rennala": RennalaSGD(batch=2),
    }
    for name, rule in rules.items():
        got = played(rule, arrivals, concurrency=c)
        np.testing.assert_allclose(got, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_fedfix_takes_all_of_an_interval_in_by_how_often_each_contributes():
    rule, m, eta = FedFix(num_clients=4, interval_s=2.0, eta=0.5), 4, 0.5
    updates = [update for update, _ in drawn(3)]
    state = rule.init(W0, D)
    for update in updates:
        decision = rule.receive(state, update, 0)
        assert decision.apply is None
        state = decision.state
    decision = rule.tick(state, 2.0)
    n = [1.0, 3.5, 2.0]
    state = rule.step(decision.state, Arrivals(decision.apply, intervals=n))
    expected = W0 + eta / m * sum(k * u.delta for k, u in zip(n, updates, strict=True))
    np.testing.assert_allclose(state.w, expected, rtol=1e-5)
    assert rule.tick(state, 4.0).apply == (), "the next interval begins empty"
    assert rule.period == 2.0


def test_favas_makes_what_a_contact_adds_one_step_on_average():
    rng = np.random.default_rng(3)
    rule = {kind: FAVAS(kind) for kind in ("expected", "stochastic", "none")}
    state = {kind: one.init(W0, D) for kind, one in rule.items()}
    w = {kind: W0.astype(float) for kind in rule}
    seen = {node: [] for node in range(3)}  # q of every contact
    for _ in range(12):
        nodes = [int(i) for i in rng.choice(3, size=2, replace=False)]
        starts = [rng.normal(size=D).astype(np.float32) for _ in nodes]
        changes = [rng.normal(size=D).astype(np.float32) for _ in nodes]
        q = [int(k) for k in rng.integers(0, 4, size=2)]
        for node, k in zip(nodes, q, strict=True):
            seen[node].append(k)
        answers = [
            Came(node, np.float32(k > 0) * change, start, metrics={"steps": k})
            for node, k, start, change in zip(nodes, q, starts, changes, strict=True)
        ]
        contacts = [len(seen[node]) for node in nodes]
        for kind in rule:
            terms = []
            for node, k, start, change in zip(nodes, q, starts, changes, strict=True):
                ks = np.array(seen[node])
                alpha = {
                    "expected": ks.mean(),
                    "stochastic": (ks > 0).mean() * k,
                    "none": 1.0,
                }[kind]
                terms.append(start + (change / alpha if k else 0))
            w[kind] = (w[kind] + sum(terms)) / 3
            given = Answers(answers, starts=starts, contacts=contacts)
            state[kind], places = rule[kind].step(state[kind], given)
            np.testing.assert_allclose(state[kind].w, w[kind], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(places, [state[kind].w] * 2)


def test_quafl_keeps_the_sum_of_the_models_that_have_met():
    answers = [update for update, _ in drawn(3)]
    rule = QuAFL()
    state, places = rule.step(rule.init(W0, D), Answers(answers))
    x = [u.x.astype(float) for u in answers]
    np.testing.assert_allclose(state.w, (W0 + sum(x)) / 4, rtol=1e-5)
    for place, y in zip(places, x, strict=True):
        np.testing.assert_allclose(place, (W0 + 3 * y) / 4, rtol=1e-5)
    np.testing.assert_allclose(state.w + sum(places), W0 + sum(x), rtol=1e-4)


# ---- FedCompass's scheduler ----------------------------------------------------------------------


class Clients:
    """Clients of given seconds per step, and the scheduler's tasks, as a plain loop over times."""

    def __init__(self, rule, seconds_per_step):
        self.rule, self.pace = rule, seconds_per_step
        self.state, self.version, self.working, self.log = rule.init(W0, D), 0, [], []
        for node in range(len(seconds_per_step)):
            self.ask(node, 0.0)

    def ask(self, node, now):
        self.state, config = self.rule.assign(self.state, node, now)
        steps = config["local-steps"]
        self.working.append((now + steps * self.pace[node], node, now, steps, self.version))

    def act(self, decision, now):
        self.state = decision.state
        if decision.apply is not None:
            ages = [self.version - u.version for u in decision.apply]
            given = Arrivals(decision.apply, staleness=ages)
            self.state = self.rule.step(self.state, given)
            self.version += 1
            self.log.append(
                (now, self.version, sorted(zip((u.node for u in given), ages, strict=True)))
            )
        for node in decision.ask:
            self.ask(node, now)

    def until(self, versions):
        while self.version < versions:
            now = min(min(self.working)[0], self.rule.due(self.state))
            for task in [t for t in self.working if t[0] == now]:
                self.working.remove(task)
                _, node, sent_s, steps, version = task
                config = {"local-steps": steps}
                update = Came(node, np.ones(D, np.float32), W0, sent_s, now, config)
                update.version = version
                self.act(self.rule.receive(self.state, update, self.version - version), now)
            while self.rule.due(self.state) <= now:
                self.act(self.rule.tick(self.state, now), now)
        return self.log


def test_three_clients_follow_the_schedule_worked_out_by_hand_without_a_grid():
    a = 1.0
    rule = FedCompass(num_clients=3, staleness=Polynomial(a))
    clients = Clients(rule, (1.0, 2.0, 4.0))
    assert clients.until(7) == [
        (100, 1, [(0, 0)]),
        (200, 2, [(1, 1)]),
        (200, 3, [(0, 1)]),
        (300, 4, [(0, 0)]),
        (350, 5, [(0, 0), (1, 2)]),
        (400, 6, [(2, 5)]),
        (450, 7, [(0, 1), (1, 1)]),
    ]
    ages = [tau for _, _, who in clients.log for _, tau in who]
    moved = 0.9 / 3 * sum((1 + tau) ** -a for tau in ages)
    np.testing.assert_allclose(clients.state.w, W0 + moved, rtol=1e-5)


def test_what_a_lost_task_brings_late_waits_in_the_general_buffer():
    rule = FedCompass(num_clients=2, staleness=ConstantWeight())
    state, _ = rule.assign(rule.init(W0, D), 0, 0.0)
    state = rule.failed(state, 0).state
    state, _ = rule.assign(state, 0, 50.0)  # the first task is taken to be lost
    late = Came(0, np.ones(D, np.float32), W0, 0.0, 60.0, {"local-steps": 100})
    decision = rule.receive(state, late, 0)
    assert (decision.apply, decision.ask) == (None, ())
    assert decision.state.buffer == (late,)


# ---- aggregators ---------------------------------------------------------------------------------


def test_a_robust_rule_takes_the_place_of_the_mean_of_what_is_added_up():
    updates = [update for update, _ in drawn(3)]
    median = {"combine": lambda y: np.median(y, axis=0).astype(np.float32)}
    s = np.array([1.0, 0.5, 0.25])
    rows = s[:, None] * np.stack([u.delta for u in updates])

    buffered = FedBuff(buffer_size=3)
    got = buffered.step(buffered.init(W0, D), Arrivals(updates, list(s), **median))
    np.testing.assert_allclose(got.w, W0 + np.median(rows, axis=0), rtol=1e-5)

    fixed = FedFix(num_clients=4, interval_s=1.0)
    got = fixed.step(fixed.init(W0, D), Arrivals(updates, intervals=list(s), **median))
    np.testing.assert_allclose(got.w, W0 + 3 / 4 * np.median(rows, axis=0), rtol=1e-5)

    got, _ = QuAFL().step(QuAFL().init(W0, D), Answers(updates, **median))
    x = np.stack([u.x for u in updates])
    np.testing.assert_allclose(got.w, (W0 + 3 * np.median(x, axis=0)) / 4, rtol=1e-5)


RULES = {
    "fedbuff": FedBuff(),
    "ca2fl": CA2FL(population=4),
    "fadas": FADAS(),
    "fedasync": FedAsync(),
    "async_fedavg": AsyncFedAvg(num_clients=4),
    "async_sgd": AsyncSGD(),
    "ringmaster": RingmasterASGD(),
    "rennala": RennalaSGD(),
    "fedfix": FedFix(num_clients=4, interval_s=1.0),
    "fedcompass": FedCompass(num_clients=4),
    "async_diloco": AsyncDiLoCo(),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_leaves_the_state_it_is_given_as_it_is(name):
    rule = RULES[name]
    state = rule.init(W0, D)
    if name == "fedcompass":
        state, _ = rule.assign(state, 0, 0.0)
    kept = repr(state)
    update = Came(0, np.ones(D, np.float32), W0, config={"local-steps": 3})
    decision = rule.receive(state, update, 0)
    given = Arrivals([update], [1.0], [0], [2.0], 1.0, 3, 4)
    rule.step(decision.state, given)
    assert repr(state) == kept


def test_without_a_proximal_term_fedasync_tells_clients_so():
    assert FedAsync(rho=0.0).config() == {"proximal-mu": 0.0}
