"""ProxSkip-VIP-FL (arXiv:2306.05100) and Scaffnew (arXiv:2202.09357)."""

from __future__ import annotations

from csv import DictReader
from itertools import pairwise

import numpy as np
import pytest
import torch
from heterogeneous import DIM, Learnt, Losses, N
from hydra import compose, initialize_config_module

import fl
from fl.clients import Corrected, ProxSkipShift, Received, Sgd
from fl.errors import ConfigError
from fl.runs.build import build
from fl.runs.experiment import app_of
from fl.runs.run import serve
from fl.strategies import ProxSkip, Rounds
from fl.strategies.round_rule import Updates

LR, P = 0.4, 0.3
EVERYBODY = list(range(N))


def client(lr=LR):
    return Corrected(Sgd(lr), ProxSkipShift())


class Rows:
    """One of the two rows of a client, whose gradients differ about those of its loss."""

    examples = 1

    def __init__(self, losses, i, j):
        self.losses, self.i, self.j = losses, i, j

    def grad(self, w):
        g = row_gradient(self.losses, self.i, self.j, w.numpy().astype(float))
        return torch.from_numpy(g.astype(np.float32)), w.sum()


def row_gradient(losses, i, j, x):
    return losses.gradient(i, x) + (1 - 2 * j) * (2 + i + 0.3 * losses.a[i] * x)


class Sampled(Learnt):
    """Clients that draw a row for every step, and in an epoch have both."""

    def _trained(self, rule, i, w, sent, config, steps):
        start = torch.from_numpy(w.copy())
        scalars = rule.scalars({"server-round": 1, **config})
        memory = self.memories.get(i) or rule.first_memory(start, scalars)
        received = Received(start, {}, memory, scalars, steps)
        drawn = np.random.default_rng([config["proxskip-communications"], i]).integers(2, size=99)
        rows = [0, 1] if "local-epochs" in config else drawn[:steps]
        state, v = rule.init(received), start
        for t, j in enumerate(rows):
            v, state, _ = rule.step(v, state, received, Rows(self.losses, i, j), t)
        finished = rule.finish(v, state, received, len(rows))
        self.memories[i] = finished.memory
        return finished


def sampled(rounds, q, lr=0.1):
    rule = Corrected(Sgd(lr), ProxSkipShift(variance_reduction=q is not None))
    return Sampled(ProxSkip(P, q), rule, [EVERYBODY] * rounds)


def learn(rounds, p=P, lr=LR, losses=None):
    return Learnt(ProxSkip(p), client(lr), [EVERYBODY] * rounds, losses=losses)


def written_out(rounds, p=P, lr=LR):
    """Models after communications by the paper's lines, in float64, with a coin after each step."""
    losses, x, h = Losses(), np.zeros((N, DIM)), np.zeros((N, DIM))
    models, shifts = [np.zeros(DIM)], [h]
    for r in range(rounds):
        for _ in range(np.random.default_rng(r).geometric(p)):  # steps until the coin falls
            gradients = np.array([losses.gradient(i, x[i]) for i in EVERYBODY])
            x = x - lr * (gradients - h)
        mean = (x - lr / p * h).mean(axis=0)
        h = h + p / lr * (mean - x)
        x = np.tile(mean, (N, 1))
        models.append(mean)
        shifts.append(h)
    return np.array(models), np.array(shifts)


def shifts_after(learnt: Learnt):
    """h_i after the last communication, as clients learn it with the next message."""
    return (learnt.models[-1] - learnt.kept("sent")) / learnt.kept("scale")


@pytest.mark.parametrize("p", [1.0, 0.3, 0.1])
def test_it_is_the_papers_recursion(p):
    models, shifts = written_out(50, p)
    learnt = learn(50, p)
    np.testing.assert_allclose(learnt.models, models, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(shifts_after(learnt), shifts[-1], rtol=1e-4, atol=1e-3)


def test_with_p_one_it_is_gradient_descent_on_the_mean():
    losses, x = Losses(), np.zeros(DIM)
    for model in learn(30, p=1.0).models:
        np.testing.assert_allclose(model, x, rtol=1e-5, atol=1e-5)
        x = x - LR * np.mean([losses.gradient(i, x) for i in EVERYBODY], axis=0)


def test_it_finds_the_optimum_of_unequal_clients_and_h_is_their_gradient_there():
    learnt = learn(150)
    assert learnt.error < 1e-6
    h = [learnt.losses.gradient(i, learnt.losses.optimum) for i in EVERYBODY]
    np.testing.assert_allclose(shifts_after(learnt), h, atol=1e-4)


@pytest.mark.parametrize("rounds", [1, 2, 7, 40])
def test_the_shifts_sum_to_zero_after_every_communication(rounds):
    h = shifts_after(learn(rounds))
    assert np.abs(h).max() > 1
    np.testing.assert_allclose(h.sum(axis=0), 0, atol=1e-4)


def written_out_by_rows(rounds, q, lr):
    """Models by the lines of ProxSkip-L-SVRGDA-FL, with new references after communications.

    Without q by those of ProxSkip-SGDA-FL.
    """
    losses, x, h = Losses(), np.zeros((N, DIM)), np.zeros((N, DIM))
    models, since, communications = [x[0]], None, 0
    for r in range(rounds):
        rng = np.random.default_rng(r)
        steps, coin = rng.geometric(P), rng.random()
        if q and (since is None or coin < 1 - (1 - q) ** since):
            ref, since = x.copy(), 0
            full = np.array([losses.gradient(i, ref[i]) for i in EVERYBODY])
            models.append(x[0])
            continue
        drawn = [np.random.default_rng([communications, i]).integers(2, size=99) for i in EVERYBODY]
        for t in range(steps):
            g = np.array([row_gradient(losses, i, drawn[i][t], x[i]) for i in EVERYBODY])
            if q:
                g += full - [row_gradient(losses, i, drawn[i][t], ref[i]) for i in EVERYBODY]
            x = x - lr * (g - h)
        mean = (x - lr / P * h).mean(axis=0)
        h = h + P / lr * (mean - x)
        x = np.tile(mean, (N, 1))
        since, communications = (since or 0) + steps, communications + 1
        models.append(mean)
    return np.array(models)


def test_with_single_rows_it_is_the_recursion_of_sgda():
    expected = written_out_by_rows(50, None, 0.1)
    np.testing.assert_allclose(sampled(50, None).models, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("q", [1.0, 0.1])
def test_with_references_it_is_the_recursion_of_l_svrgda(q):
    learnt = sampled(50, q)
    np.testing.assert_allclose(learnt.models, written_out_by_rows(50, q, 0.1), rtol=1e-4, atol=1e-4)
    renewed = [state.references for state in learnt.states]
    assert renewed[:2] == [0, 1]  # before anything is learnt
    assert 3 < renewed[-1] < 30


def test_references_take_away_the_noise_of_rows():
    assert sampled(400, 0.1).error < 1e-5
    assert sampled(400, None).error > 1e-2


def test_with_one_row_a_client_references_change_nothing():
    rule = Corrected(Sgd(LR), ProxSkipShift(variance_reduction=True))
    reduced = Learnt(ProxSkip(P, 0.2), rule, [EVERYBODY] * 30)
    losses, x, h = Losses(), np.zeros((N, DIM)), np.zeros((N, DIM))
    for r, (before, after) in enumerate(pairwise(reduced.states)):
        if after.references > before.references:
            np.testing.assert_array_equal(after.w, before.w)
            continue
        for _ in range(np.random.default_rng(r).geometric(P)):
            x = x - LR * (np.array([losses.gradient(i, x[i]) for i in EVERYBODY]) - h)
        mean = (x - LR / P * h).mean(axis=0)
        h, x = h + P / LR * (mean - x), np.tile(mean, (N, 1))
        np.testing.assert_allclose(after.w, mean, rtol=1e-4, atol=1e-4)


def test_a_client_without_reference_takes_the_gradient_as_it_is():
    plain, reduced = client(), Corrected(Sgd(LR), ProxSkipShift(variance_reduction=True))
    w, found = torch.ones(DIM), []
    for rule, told in ((plain, {}), (reduced, {"proxskip-reference": False})):
        scalars = rule.scalars({"server-round": 1, "proxskip-p": P, **told})
        received = Received(w, {}, rule.first_memory(w, scalars), scalars)
        found.append(rule.step(w, rule.init(received), received, Rows(Losses(), 1, 0), 0)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("reduces", "told"), [(True, {}), (False, {"proxskip-reference": True})], ids=["q", "client"]
)
def test_references_of_one_side_alone_are_refused(reduces, told):
    with pytest.raises(ConfigError, match="'proxskip-reference' is"):
        ProxSkipShift(variance_reduction=reduces).scalars({"proxskip-p": P, **told})


def test_equal_clients_need_no_shift():
    class Equal(Losses):
        def __init__(self):
            super().__init__()
            self.a, self.c = (np.tile(v[0], (N, 1)) for v in (self.a, self.c))

    np.testing.assert_allclose(shifts_after(learn(20, losses=Equal())), 0, atol=1e-4)


def test_it_finds_the_mean_of_two_points_a_million_away():
    class Far(Losses):  # the authors' own test: F_1(x) = x - (D, 0), F_2(x) = x - (0, D)
        def __init__(self, D=1e6):
            super().__init__()
            self.a = np.ones((N, DIM))
            self.c = np.zeros((N, DIM))
            self.c[::2, 0] = self.c[1::2, 1] = D
            self.optimum = self.c.mean(axis=0)

    learnt = learn(150, losses=Far())
    np.testing.assert_allclose(learnt.models[-1][:2], [5e5, 5e5], rtol=1e-5)


def task(memory, w, communications, steps=2, center=4.0):
    """One task of a client with loss |w - center|^2 / 2."""
    told = {"proxskip-p": P, "proxskip-communications": communications}
    rule, w = client(), torch.full((1,), w)
    scalars = rule.scalars({"server-round": 1, **told})
    received = Received(w, {}, memory or rule.first_memory(w, scalars), scalars)
    state = rule.init(received)

    class Batch:
        examples = 1

        def grad(self, w):
            return w - center, w.sum()

    for t in range(steps):
        w, state, _ = rule.step(w, state, received, Batch(), t)
    return rule.finish(w, state, received, steps)


def test_a_round_that_came_to_nothing_leaves_no_trace():
    first = task(None, 0.0, 0)
    again = task(task(first.memory, 0.0, 0, steps=9).memory, 0.0, 0)
    assert torch.equal(first.w, again.w)
    assert torch.equal(task(first.memory, 1.0, 1).w, task(again.memory, 1.0, 1).w)


def test_a_client_that_missed_a_communication_keeps_its_shift():
    second = task(task(None, 0.0, 0).memory, 1.0, 1)
    assert second.memory["h_i"].abs() > 0.1
    later = task(second.memory, 2.0, 5)
    assert torch.equal(later.memory["h_i"], second.memory["h_i"])


def test_clients_without_examples_have_no_part_in_the_mean():
    rule, deltas = ProxSkip(P), np.array([[3.0], [0.0], [1.0]], np.float32)
    state = rule.step(rule.init(np.ones(1, np.float32), 1), Updates(deltas, np.array([9.0, 0, 1])))
    assert state.w == 3.0
    assert state.communications == 1


def test_the_number_of_local_steps_is_geometric_and_the_same_for_all():
    rule = ProxSkip(0.25)
    state = rule.init(np.zeros(1, np.float32), 1)
    drawn = []
    for r in range(4000):
        configs = rule.configs(state, r + 1, 3, np.random.default_rng(r))
        assert len(configs) == 3
        (steps,) = {config["local-steps"] for config in configs}
        drawn.append(steps)
    assert min(drawn) == 1
    assert np.mean(drawn) == pytest.approx(4, rel=0.05)
    assert np.mean(np.array(drawn) == 1) == pytest.approx(0.25, rel=0.1)


@pytest.mark.parametrize("p", [0.0, -0.1, 1.1, float("nan")])
def test_a_probability_that_is_none_is_refused(p):
    with pytest.raises(ConfigError, match=rf"^p is {p}"):
        ProxSkip(p)
    with pytest.raises(ConfigError, match=rf"^q is {p}"):
        ProxSkip(q=p)


@pytest.mark.parametrize("told", [{}, {"proxskip-p": 1.5}, {"proxskip-p": 0.0}])
def test_a_client_refuses_a_message_without_a_probability(told):
    with pytest.raises(ConfigError, match="'proxskip-p' is"):
        ProxSkipShift().scalars(told)


def test_a_part_of_the_clients_is_refused():
    with pytest.raises(ConfigError, match=r"fraction_train is 0\.5, which makes 5 of 10"):
        Rounds(ProxSkip(), fraction_train=0.5, min_train_nodes=1).check_clients(10)
    with pytest.raises(ConfigError, match="clients is 3, which makes 3 of 10"):
        Rounds(ProxSkip(), clients=3).check_clients(10)
    Rounds(ProxSkip(), fraction_train=1.0).check_clients(10)


@pytest.fixture
def errors(tmp_path):
    """Runs a game; returns relative errors by round."""

    def run(*overrides):
        with initialize_config_module("fl.conf", version_base=None):
            common = ["strategy=proxskip", "num_clients=20", "fleet=uniform", "executor=serial"]
            common += ["target=null", "client.batch_size=null", "evaluate_every=5"]
            config = compose("config", overrides=[*common, *overrides])
        experiment = build(config)
        fl.simulate(
            lambda grid, _, recorder: serve(experiment, config, grid, recorder),
            app_of(experiment),
            experiment.fleet,
            executor="serial",
            progress=False,
            views=False,
            directory=tmp_path / "run",
        )
        with (tmp_path / "run" / "metrics.csv").open() as file:
            return {int(row["round"]): float(row["relative_error"]) for row in DictReader(file)}

    return run


def test_a_quadratic_game_is_solved_in_few_communications(errors):
    setting = ["client.rule.lr=0.9", "strategy.rule.p=0.63", "num_rounds=25"]
    found = errors("data=quadratic_game", *setting)
    assert 1e-7 < found[10] < 1e-3  # 1e-5 in an implementation of its own, 1e-12 after 25
    assert found[25] < 1e-10


@pytest.mark.slow
def test_with_references_batches_of_ten_solve_a_game_as_well(errors):
    setting = ["data=quadratic_game", "client.batch_size=10", "strategy.rule.p=0.3"]
    setting += ["client.rule.lr=0.3", "num_rounds=120"]
    noisy = errors(*setting)
    assert noisy[120] > 1e-4
    references = ["strategy.rule.q=0.2", "client.correction.variance_reduction=true"]
    assert errors(*setting, *references)[120] < 1e-3 * noisy[120]


@pytest.mark.slow
def test_robust_least_squares_is_solved_to_the_precision_of_float32(errors):
    setting = ["client.rule.lr=0.17", "strategy.rule.p=0.204", "num_rounds=200"]
    found = errors("data=robust_least_squares", *setting)
    assert 1e-10 < found[100] < 1e-6  # 1.8e-8 in an implementation of its own
    assert found[200] < 1e-12


@pytest.mark.slow
def test_local_gradient_descent_ascent_stays_away_from_the_solution(errors):
    everybody = ["strategy=fedavg", "strategy.fraction_train=1.0"]
    setting = ["client.rule.lr=0.9", "client.local_steps=20", "client.local_epochs=null"]
    found = errors("data=quadratic_game", *everybody, *setting, "num_rounds=40")
    assert found[40] > 1e-4
