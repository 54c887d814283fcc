"""FedProx's protocol for stragglers (arXiv:1812.06127), and the configuration of its experiment."""

from collections import Counter

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from hydra import compose, initialize_config_module
from torch import nn

from fl import simulate
from fl.clients import Corrected, Proximal, Sgd, TrainingApp
from fl.data import Examples, FederatedData
from fl.data.federated import Partitions
from fl.errors import ConfigError
from fl.models import LogisticRegression, evaluate
from fl.randomness import generator
from fl.runs.build import build
from fl.runs.evaluation import central_evaluation
from fl.simulation.world.fleets import uniform
from fl.strategies import FedAvg, FedProx, Rounds

SELECTED, EPOCHS = 10, 20
SIZES = (3, 8, 5, 13, 4, 7)  # of the tiny problem's devices
CLASSES, INPUTS = 3, 4
ETA = 0.1


def plan(server_round=1, *, seed=0, n=SELECTED, **changes):
    """Returns how many epochs a round's devices are told to do; None of those that are dropped."""
    rule = FedProx(**({"mu": 0.0, "local_epochs": EPOCHS} | changes))
    told = rule.configs(None, server_round, n, generator(seed, "configs", server_round))
    assert all(t is None or t["proximal-mu"] == rule.mu for t in told)
    return [None if t is None else t.get("local-epochs") for t in told]


# ---- who straggles, and how much they do ---------------------------------------------------------


@pytest.mark.parametrize(("s", "active"), [(0.0, 10), (0.5, 5), (0.9, 1), (0.97, 0)])
def test_of_ten_devices_round_ten_times_one_minus_s_do_all_epochs(s, active):
    for server_round in range(1, 20):
        epochs = plan(server_round, straggler_fraction=s)
        assert len(epochs) == SELECTED
        assert epochs.count(EPOCHS) == active


def test_stragglers_epochs_are_uniform_on_one_to_E_minus_one():
    counts = Counter(
        e
        for server_round in range(1, 301)
        for e in plan(server_round, straggler_fraction=0.9, local_epochs=5)
        if e < 5
    )
    assert set(counts) == {1, 2, 3, 4}
    draws = 300 * 9
    expected = draws / 4
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    assert counts.total() == draws
    assert chi_square < 16.27  # 0.999 quantile, 3 degrees of freedom


def test_every_position_straggles_equally_often():
    counts = np.zeros(SELECTED)
    for server_round in range(1, 401):
        epochs = plan(server_round, straggler_fraction=0.5)
        counts += np.array(epochs) < EPOCHS
    # Five of ten in each of 400 rounds: 200 each, with a deviation of 10.
    assert counts.sum() == 2000
    assert np.abs(counts - 200).max() < 40


def test_stragglers_depend_on_the_seed_and_on_the_round():
    def epochs(server_round, seed):
        return plan(server_round, straggler_fraction=0.9, seed=seed)

    assert epochs(1, 0) == epochs(1, 0)
    assert epochs(1, 0) != epochs(2, 0)
    assert epochs(1, 0) != epochs(1, 1)


def test_two_epochs_leave_stragglers_one():
    assert set(plan(straggler_fraction=0.9, local_epochs=2)) == {1, 2}


def test_dropping_drops_those_who_would_straggle_and_nobody_else():
    kept = plan(straggler_fraction=0.5)
    dropped = plan(straggler_fraction=0.5, drop_stragglers=True)
    assert dropped == [e if e == EPOCHS else None for e in kept]


# ---- a tiny problem ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)

    def examples(n):
        x = rng.standard_normal((n, INPUTS)).astype(np.float32)
        return Examples(x, rng.integers(0, CLASSES, n))

    return FederatedData(
        name="tiny",
        train=examples(sum(SIZES)),
        test=examples(6),
        partitions=Partitions.contiguous(SIZES),
        num_classes=CLASSES,
        input_shape=(INPUTS,),
    )


def initial_model():
    torch.manual_seed(1)
    return LogisticRegression((INPUTS,), CLASSES, init="glorot")


def run(data, client_rule, rule, *, rounds=4, seed=0, batch_size=3, clients=4, asked=None):
    """Returns the simulated run; `asked` collects what each round asks of whom."""
    ours = TrainingApp(
        initial_model(), data, client_rule, batch_size=batch_size, local_epochs=EPOCHS, shuffle=True
    )
    app = ClientApp()

    @app.train()
    def train(message, context):
        config = message.content["config"]
        if asked is not None:
            of_round = asked.setdefault(config["server-round"], {})
            of_round[context.node_config["partition-id"]] = config["local-epochs"]
        return ours(message, context)

    def server(grid, context, recorder):
        Rounds(rule, clients=clients, seed=seed).start(
            grid=grid,
            initial_arrays=ArrayRecord(initial_model().state_dict()),
            num_rounds=rounds,
        )

    return simulate(
        server,
        app,
        uniform(len(SIZES), seed=seed),
        seed=seed,
        executor="serial",
        progress=False,
    )


def proximal(mu=0.0):
    return Corrected(Sgd(lr=ETA), Proximal(mu))


def fedprox(**changes):
    return FedProx(**({"mu": 0.0, "local_epochs": EPOCHS} | changes))


def test_mu_zero_without_stragglers_is_fedavg_bit_for_bit(data):
    fedavg = run(data, Sgd(lr=ETA), FedAvg())
    ours = run(data, proximal(0.5), fedprox())
    assert ours.summary["model_sha256"] == fedavg.summary["model_sha256"]
    dropping = run(data, proximal(), fedprox(drop_stragglers=True))
    assert dropping.summary["model_sha256"] == fedavg.summary["model_sha256"]


def test_mu_and_stragglers_and_dropping_them_each_change_the_result(data):
    variants = [
        {},
        {"mu": 1.0},
        {"straggler_fraction": 0.5},
        {"straggler_fraction": 0.5, "drop_stragglers": True},
        {"straggler_fraction": 0.5, "mu": 1.0},
    ]
    models = {
        run(data, proximal(), fedprox(**v), rounds=2).summary["model_sha256"] for v in variants
    }
    assert len(models) == len(variants)


@pytest.mark.parametrize("s", [0.5, 0.75])
def test_methods_share_devices_and_stragglers_for_a_seed(data, s):
    asked = {}
    for name, changes in {
        "keep": {},
        "prox": {"mu": 1.0},
        "drop": {"drop_stragglers": True},
    }.items():
        asked[name] = {}
        run(
            data,
            proximal(),
            fedprox(straggler_fraction=s, **changes),
            rounds=6,
            asked=asked[name],
        )
    assert asked["prox"] == asked["keep"]
    keep = asked["keep"].values()
    active = [{c: e for c, e in r.items() if e == EPOCHS} for r in keep]
    assert list(asked["drop"].values()) == active
    assert [len(r) for r in keep] == [4] * 6
    assert [len(r) for r in active] == [round(4 * (1 - s))] * 6
    assert len({frozenset(r) for r in keep}) > 1  # not the same devices every round


def test_another_seed_selects_other_devices(data):
    asked = {0: {}, 1: {}}
    for seed, rounds in asked.items():
        run(data, proximal(), fedprox(), rounds=6, seed=seed, asked=rounds)
    assert asked[0] != asked[1]


def test_a_round_averages_partial_work_by_numbers_of_examples(data):
    mu = 0.7
    asked = {}
    ours = run(
        data,
        proximal(),
        fedprox(straggler_fraction=0.5, mu=mu),
        rounds=1,
        clients=len(SIZES),
        batch_size=None,  # full batches: the order of examples does not matter
        asked=asked,
    )
    start = initial_model().linear
    W0 = start.weight.detach().numpy().astype(np.float64)
    b0 = start.bias.detach().numpy().astype(np.float64)
    W_sum, b_sum = np.zeros_like(W0), np.zeros_like(b0)
    for k, n in enumerate(SIZES):
        x, y = (t.numpy() for t in data.client(k))
        W, b = W0.copy(), b0.copy()
        for _ in range(asked[1][k]):
            z = np.exp(x @ W.T + b)
            residual = z / z.sum(axis=1, keepdims=True) - np.eye(CLASSES)[y]
            # y <- y - eta (g(y) + mu (y - x))
            W, b = (
                W - ETA * (residual.T @ x / n + mu * (W - W0)),
                b - ETA * (residual.mean(axis=0) + mu * (b - b0)),
            )
        W_sum += n * W
        b_sum += n * b
    assert len(set(asked[1].values())) > 2  # some did all epochs, others did not
    final = ours.arrays.to_torch_state_dict()
    np.testing.assert_allclose(final["linear.weight"], W_sum / sum(SIZES), atol=2e-6)
    np.testing.assert_allclose(final["linear.bias"], b_sum / sum(SIZES), atol=2e-6)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": -0.1}, "mu is -0.1; it must be at least 0"),
        ({"mu": float("nan")}, "mu is nan"),
        ({"straggler_fraction": 1.0}, r"straggler_fraction is 1.0; it must lie in \[0, 1\)"),
        ({"straggler_fraction": -0.5}, "straggler_fraction is -0.5"),
        (
            {"straggler_fraction": 0.5, "local_epochs": 1},
            "local_epochs is 1; it must be at least 2",
        ),
        ({"local_epochs": 0}, "local_epochs is 0; it must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        fedprox(**changes)


def test_one_epoch_is_enough_without_stragglers():
    assert set(plan(local_epochs=1)) == {1}


def test_a_round_may_have_no_device_that_is_not_dropped():
    assert plan(straggler_fraction=0.97, drop_stragglers=True) == [None] * SELECTED


def test_without_epochs_of_its_own_the_clients_do_what_they_do():
    assert set(plan(local_epochs=None)) == {None}


# ---- the experiment's configuration --------------------------------------------------------------


def experiment(*overrides):
    with initialize_config_module("fl.conf", version_base=None):
        return compose("config", overrides=["+experiment=fedprox", *overrides])


@pytest.mark.parametrize("source", ["synthetic", "synthetic_iid"])
def test_the_experiment_is_the_papers_setting(source):
    config = experiment(f"data={source}", "seed=3")
    assert (config.num_clients, config.num_rounds) == (30, 200)
    built = build(config)
    assert built.data.num_partitions == 30
    assert (built.app.batch_size, built.app.local_epochs, built.app.optimizer.lr) == (10, 20, 0.01)
    strategy = built.strategy
    assert strategy.rule.local_epochs == 20
    assert strategy.rule.mu == 1.0
    assert strategy.min_train_nodes == 10
    assert strategy.fraction_train * 30 <= 10
    assert strategy.seed == 3
    model = built.model()
    assert sum(p.numel() for p in model.parameters()) == 610
    assert model.linear.weight.abs().max() <= (6 / 70) ** 0.5  # Glorot's bound
    assert model.linear.weight.abs().max() > 0
    assert not model.linear.bias.any()


def test_seeds_share_the_data_and_not_the_start():
    first, second = build(experiment("seed=0")), build(experiment("seed=1"))
    assert first.data.fingerprint() == second.data.fingerprint()
    assert not torch.equal(first.model().linear.weight, second.model().linear.weight)


def test_evaluating_on_training_data_gives_the_global_objective():
    built = build(experiment())
    model = built.model()
    arrays = ArrayRecord(model.state_dict())
    metrics = central_evaluation(built, train=True)(1, arrays)
    assert set(metrics) == {"accuracy", "loss", "train_objective", "dissimilarity"}
    assert set(central_evaluation(built)(1, arrays)) == {"accuracy", "loss"}
    # Every training example belongs to one device, so f is the mean loss over the pooled examples.
    x, y = torch.from_numpy(built.data.train.x), torch.from_numpy(built.data.train.y)
    assert metrics["train_objective"] == pytest.approx(evaluate(model, (x, y)).loss, rel=1e-6)
    gradients = []
    for k in range(built.data.num_partitions):
        inputs, targets = built.data.client(k)
        loss = nn.functional.cross_entropy(model(inputs), targets)
        gradients.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()])])
        )
    stacked = torch.stack(gradients).double()
    sizes = torch.from_numpy(built.data.partitions.sizes).double()
    mean = (sizes[:, None] * stacked).sum(0) / sizes.sum()
    variance = (stacked - mean).square().sum(1).mean().item()
    assert metrics["dissimilarity"] == pytest.approx(variance, rel=1e-5)
