"""FedAMD (arXiv:2206.05891), server and clients together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from every_strategy import CLIENTS, ran
from heterogeneous import DIM, LR, STEPS, Batch, Learnt, Losses, N, cohorts

from fl.clients import AnchorSampling, Corrected, Received, Sgd
from fl.errors import ConfigError
from fl.strategies import FedAMD
from fl.strategies.round_rule import Updates

CLIENT = Corrected(Sgd(LR), AnchorSampling())
part_and_all = pytest.mark.parametrize("clients", [2, N], ids=["2 of 8", "all"])


def learn(rule, asked, **more):
    return Learnt(rule, CLIENT, asked, **more)


def written_out(asked, anchors_of, eta=1.0):
    """Models by Algorithm 1 in float64; every client holds its gradient at the first model."""
    losses, x = Losses(), np.zeros(DIM)
    v = np.array([losses.gradient(i, x) for i in range(N)])
    models = [x, x]
    for r, cohort in enumerate(asked[1:], start=1):
        vbar = v.mean(axis=0)
        anchors = anchors_of(r, len(cohort))
        ends = []
        for i, is_anchor in zip(cohort, anchors, strict=True):
            if is_anchor:
                v[i] = losses.gradient(i, x)
                continue
            y = before = x
            direction = vbar
            for _ in range(STEPS):
                direction = direction - losses.gradient(i, before) + losses.gradient(i, y)
                y, before = y - LR * direction, y
            ends.append(y)
        if ends:
            x = x + eta * (np.mean(ends, axis=0) - x)
        models.append(x)
    return np.array(models)


@part_and_all
@pytest.mark.parametrize("eta", [1.0, 0.6])
@pytest.mark.parametrize("p", [0.5, None])
def test_by_coins_it_is_the_papers_recursion(p, clients, eta):
    asked = cohorts(clients, 50)
    # sqrt(2 / 4) for two clients, and the eighth root of 2 / 10 for eight
    probability = p or {2: 0.5**0.5, 8: 0.2**0.125}[clients]
    expected = written_out(
        asked, lambda r, n: np.random.default_rng(r).random(n) < probability, eta
    )
    assert len(np.unique(expected, axis=0)) > 10
    np.testing.assert_allclose(
        learn(FedAMD(p, eta=eta), asked).models, expected, rtol=1e-4, atol=2e-4
    )


@part_and_all
@pytest.mark.parametrize("every", [2, 5])
def test_in_turns_it_is_the_papers_recursion(every, clients):
    asked = cohorts(clients, 50)
    expected = written_out(asked, lambda r, n: [r % every == 0] * n)
    got = learn(FedAMD(every=every), asked).models
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-4)


def test_the_papers_probability_for_ten_clients():
    told = FedAMD().anchors(replace_cache(), 2, 10, Coins())
    assert told.tolist() == [True] * 8 + [False] * 2  # it is 0.836


class Coins:
    """Draws 0.1, 0.2, ..., but for those around 0.836."""

    def random(self, n):
        return np.array([*np.linspace(0.1, 0.7, n - 3), 0.8355, 0.8365, 0.9])


def replace_cache():
    zero = np.zeros(DIM, np.float32)
    return FedAMD().init(zero, DIM)._replace(latest={0: zero})


def test_of_anchors_alone_the_model_never_moves():
    assert not np.any(learn(FedAMD(1 - 1e-12), cohorts(3, 10)).models)


def test_without_anchors_miners_go_on_from_the_first_round():
    losses = Losses()
    learnt = learn(FedAMD(0.0), cohorts(2, 10))
    first = [losses.gradient(i, np.zeros(DIM)) for i in range(N)]
    for state in learnt.states[1:]:
        np.testing.assert_allclose(list(state.latest.values()), first, rtol=1e-5)
    assert np.abs(np.diff(learnt.models[1:], axis=0)).max(axis=1).min() > 1e-3


class AtOptimum(Losses):
    """Fixture Q, shifted so that the first model is the optimum."""

    def __init__(self) -> None:
        super().__init__()
        self.c = self.c - self.optimum
        self.optimum = np.zeros(DIM)


@part_and_all
def test_at_the_optimum_it_stays(clients):
    learnt = learn(FedAMD(0.5), cohorts(clients, 50), losses=AtOptimum())
    assert np.abs(learnt.models).max() < 1e-5


@pytest.mark.parametrize(("clients", "rounds"), [(2, 1500), (N, 250)], ids=["2 of 8", "all"])
@pytest.mark.parametrize("schedule", [{"p": 0.5}, {"every": 2}], ids=["coins", "turns"])
def test_it_finds_the_optimum_of_clients_that_differ(schedule, clients, rounds):
    client = Corrected(Sgd(LR / 5), AnchorSampling())
    assert Learnt(FedAMD(**schedule), client, cohorts(clients, rounds)).error < 1e-4


@part_and_all
def test_a_single_step_of_every_miner_is_one_along_what_was_known_before_the_round(clients):
    rule = FedAMD(0.5, eta=0.7)
    learnt = learn(rule, cohorts(clients, 30), steps=1)
    moved = 0
    for before, after in zip(learnt.states, learnt.states[1:], strict=False):
        step = after.w - before.w
        if step.any():
            moved += 1
            vbar = np.mean(list(before.latest.values()), axis=0)
            np.testing.assert_allclose(step, -0.7 * LR * vbar, rtol=1e-3, atol=1e-6)
    assert moved > 5


def test_a_miners_direction_is_that_of_svrg_where_batches_are_all_examples():
    losses, x = Losses(), torch.ones(DIM)
    vbar, batch = torch.linspace(-1, 1, DIM), Batch(losses, 2)
    rule = CLIENT
    received = Received(x, {"vbar": vbar}, {}, rule.scalars({"fedamd-anchor": False}), STEPS)
    w, state = x, rule.init(received)
    for t in range(STEPS):
        expected = batch.grad(w)[0] - batch.grad(x)[0] + vbar
        after, state, _ = rule.step(w, state, received, batch, t)
        torch.testing.assert_close((w - after) / LR, expected, rtol=1e-3, atol=1e-4)
        w = after


def test_of_one_client_it_is_gradient_descent_in_every_other_round():
    losses = Losses()
    learnt = learn(FedAMD(every=2), [list(range(N))] * 20, losses=SameLoss())
    x, expected = np.zeros(DIM), []
    for r in range(20):
        for _ in range(STEPS if r % 2 else 0):
            x = x - LR * losses.gradient(0, x)
        expected.append(x)
    np.testing.assert_allclose(learnt.models[1:], expected, rtol=1e-4, atol=1e-4)


class SameLoss(Losses):
    """All clients have that of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = (np.tile(v[0], (N, 1)) for v in (self.a, self.c))


@part_and_all
def test_after_every_round_the_sum_is_that_of_what_is_cached(clients):
    for state in learn(FedAMD(0.4), cohorts(clients, 20)).states[1:]:
        np.testing.assert_allclose(state.total, sum(state.latest.values()), rtol=1e-4, atol=1e-3)
        assert len(state.latest) == N


def update(told, deltas, v, weights=(1.0, 1.0, 1.0), clients=(7, 8, 9)):
    rows = np.float32(deltas)[:, None], np.float32(v)[:, None]
    told = [{"fedamd-anchor": anchor} for anchor in told]
    extras = {"v": rows[1]}
    return Updates(rows[0], np.array(weights), (), extras, told=told, clients=clients)


def test_whoever_has_not_been_an_anchor_is_not_in_the_mean_and_what_is_lost_changes_nothing():
    rule = FedAMD()
    state = rule.init(np.zeros(1, np.float32), 1)
    assert rule.asks_everybody(state)
    state = rule.step(state, update([True] * 3, [0, 0, 0], [1, 2, 6]))
    assert not rule.asks_everybody(state)
    assert rule.broadcast(state)["vbar"] == 3
    # 9 does not answer this time, 10 is new; a miner moves the model, whatever anchors send.
    came = update([True, False, True], [5, 8, 5], [4, 99, 2], (1, 9, 1), (7, 8, 10))
    state = rule.step(state, came)
    assert state.w == 8
    assert {client: v.item() for client, v in state.latest.items()} == {7: 4, 8: 2, 9: 6, 10: 2}
    assert rule.broadcast(state)["vbar"] == 3.5


def test_clients_without_examples_are_neither():
    rule = FedAMD()
    state = rule.step(
        rule.init(np.zeros(1, np.float32), 1),
        update([True] * 3, [0, 0, 0], [1, 2, 6], (3, 0, 1)),
    )
    assert sorted(state.latest) == [7, 9]
    state = rule.step(state, update([False] * 3, [1, 9, 2], [0, 0, 0], (5, 0, 1)))
    assert state.w == 1.5


def test_an_anchor_sends_a_vector_and_a_miner_a_model_and_only_a_miner_gets_two():
    fedavg = ran("fedavg")[1].summary["totals"]
    for schedule, miners in (("every=2", 1), ("every=3", 2)):  # rounds of three
        experiment, run = ran("fedamd", f"strategy.rule.{schedule}")
        d = experiment.app.layout.size
        down = (run.summary["totals"]["bytes_down"] - fedavg["bytes_down"]) / CLIENTS
        assert 4 * d * miners <= down <= 4 * d * miners + 3 * 160  # names, and headers of arrays
        up = (run.summary["totals"]["bytes_up"] - fedavg["bytes_up"]) / CLIENTS
        assert -3 * 400 <= up <= 3 * 160  # a model has an array for each of its entries


def test_in_the_first_round_everybody_is_asked_and_then_as_many_as_otherwise():
    sizes = ["strategy.clients=2", "strategy.rule.every=3"]
    _, run = ran("fedamd", *sizes)
    assert run.summary["totals"]["client_updates"] == CLIENTS + 2 + 2


def test_anchors_and_miners_train_together_as_they_train_alone():
    overrides = ["strategy.rule.p=0.5", "client.batch_size=20", "client.local_epochs=2"]
    modes = ["on", "off"]
    runs = [ran("fedamd", *overrides, f"client.batching='{mode}'")[1] for mode in modes]
    models = [np.concatenate([a.numpy().ravel() for a in run.arrays.values()]) for run in runs]
    np.testing.assert_allclose(models[0], models[1], rtol=1e-4, atol=1e-5)
    assert runs[0].summary["totals"]["bytes_up"] == runs[1].summary["totals"]["bytes_up"]


def test_an_anchor_is_charged_a_gradient_a_step_and_a_miner_two():
    roles = [CLIENT.role(CLIENT.scalars({"fedamd-anchor": who})) for who in (True, False)]
    assert [role.gradients_per_step for role in roles] == [1.0, 2.0]
    assert [role.needs for role in roles] == [(), ("vbar",)]
    # On equal devices with equal data: a round of anchors and one of miners, and another of either.
    joules = [
        ran("fedamd", f"strategy.rule.every={every}")[1].summary["totals"]["energy_j"]["compute"]
        for every in (2, 3)
    ]
    assert joules[0] / joules[1] == pytest.approx((1 + 2 + 1) / (1 + 2 + 2))


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (lambda: FedAMD(1.5), "p", "1.5"),
        (lambda: FedAMD(1.0), "p", "1.0"),
        (lambda: FedAMD(True), "p", "True"),
        (lambda: FedAMD(every=1), "every", "1"),
        (lambda: FedAMD(anchor_steps=0), "anchor_steps", "0"),
        (lambda: replace(FedAMD(), eta=0.0), "eta", "0.0"),
        (lambda: AnchorSampling().scalars({}), "fedamd-anchor", "None"),
    ],
)
def test_what_is_out_of_range_is_refused(make, key, value):
    with pytest.raises(ConfigError) as caught:
        make()
    assert key in str(caught.value)
    assert value in str(caught.value)
