"""Batches that grow by the norm test, and clients that honour the size they are told."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from hydra import compose, initialize_config_module
from scripted_rounds import clients, run

from fl.errors import ConfigError
from fl.execution.contract import Result
from fl.runs.build import build
from fl.runs.experiment import app_of
from fl.runs.run import serve
from fl.runs.simulator import simulate
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import Faults
from fl.strategies import FedAvg, InnerProductTest, NoiseScale, NormTest, Rounds
from fl.strategies.adaptive_batch import RoundSize
from fl.strategies.noise_scale import Noise
from fl.vectors.layout import Layout


def noise_of(square, trace):
    return Noise(square, trace, 1.0)


# ---- the test ------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.1, 0.5, 2.0])
def test_it_asks_for_the_noise_scale_over_the_square_of_the_allowed_error(eta):
    test = NormTest(most=10**9, eta=eta, growth=1e6)
    assert test.wanted(noise_of(2.0, 30.0)) == pytest.approx(15 / eta**2)
    # For 5 clients, each with a fifth of the examples.
    assert test.after(RoundSize(1, 5), noise_of(2.0, 30.0)).size == math.ceil(
        15 / eta**2 / 5 - 1e-9
    )


def test_the_gradient_of_a_batch_that_passes_has_at_most_the_allowed_error():
    test, g2, s = NormTest(most=10**9, eta=0.3, growth=1e9), 0.7, 90.0
    batch = test.after(RoundSize(1, 4), noise_of(g2, s))
    assert s / (batch.size * 4) <= 0.3**2 * g2  # E|g - G|^2 of S b examples
    assert s / ((batch.size - 1) * 4) > 0.3**2 * g2


def test_equal_examples_need_no_more_than_there_are_and_it_never_shrinks():
    test = NormTest(most=64)
    for noise in (noise_of(1.0, 0.0), noise_of(1.0, -3.0), noise_of(1.0, 1.0), Noise()):
        assert test.after(RoundSize(32, 10), noise) == RoundSize(32, 10)


def test_growth_and_size_are_capped_also_where_the_gradient_is_lost_in_noise():
    test, batch, sizes = NormTest(most=70, growth=2.0), RoundSize(8, 10), []
    for _ in range(5):
        batch = test.after(batch, noise_of(-1.0, 5.0))
        sizes.append(batch.size)
    assert sizes == [16, 32, 64, 70, 70]


def test_clients_can_grow_in_place_of_their_batches():
    test = NormTest(most=50, eta=1.0, growth=3.0, grows="clients")
    assert test.after(RoundSize(8, 4), noise_of(1.0, 64.0)) == RoundSize(8, 8)
    assert test.after(RoundSize(8, 4), noise_of(1.0, 1e6)) == RoundSize(8, 12)


def observed_along(deviation, across, shares, examples, steps):
    """The average variance along the mean, of gradients (1, 0, ...) with noise of both kinds."""
    rng = np.random.default_rng(4)
    scale, noise, d = NoiseScale(decay=0.999), Noise(), 5
    w, k = np.asarray(shares, float) / np.sum(shares), np.asarray(steps)[:, None]
    spread = np.array([deviation] + [across] * (d - 1)) / np.sqrt(examples)[:, None]
    for _ in range(6000):
        deltas = k * (np.eye(d)[0] * 10 + rng.standard_normal((len(w), d)) * spread)
        mean = w @ deltas
        squares = (deltas**2).sum(axis=1)
        noise = scale.observe(noise, w, steps, examples, squares, mean @ mean, deltas @ mean)
    return noise.along / noise.weight


@pytest.mark.parametrize(
    ("shares", "examples", "steps"),
    [([1] * 4, [4] * 4, [1] * 4), ([3, 1, 1, 2], [4, 2, 8, 6], [2, 1, 2, 3])],
    ids=["equal", "unequal"],
)
def test_the_inner_product_test_reads_the_variance_along_the_gradient_alone(
    shares, examples, steps
):
    along = observed_along(3.0, 0.5, shares, examples, steps)
    assert along == pytest.approx(9.0, rel=0.06)
    wide = observed_along(0.5, 3.0, shares, examples, steps)
    # Of the noise across, the mean's own direction turns by about 1 / 20 into it.
    assert wide < 0.6
    test = InnerProductTest(most=10**9, theta=0.5, growth=1e6)
    assert test.wanted(Noise(2.0, 100.0, 1.0, along=6.0)) == pytest.approx(6 / (0.25 * 2))


def test_of_one_dimension_both_tests_ask_for_the_same():
    noise = Noise(2.0, 6.0, 1.0, along=6.0)
    norm, inner = NormTest(most=9, eta=0.3), InnerProductTest(most=9, theta=0.3)
    augmented = InnerProductTest(most=9, theta=0.3, nu=1e-9)  # there is nothing across
    assert norm.wanted(noise) == inner.wanted(noise) == augmented.wanted(noise)


@pytest.mark.parametrize("nu", [0.5, 1.0, 10.0])
def test_with_nu_errors_across_the_gradient_are_bounded_too(nu):
    g2, along, across, theta = 2.0, 6.0, 90.0, 0.5
    test = InnerProductTest(most=10**9, theta=theta, nu=nu)
    batch = test.wanted(Noise(g2, along + across, 1.0, along=along))
    # The least batch that leaves at most so much along and across the mean.
    assert along / batch <= theta**2 * g2
    assert across / batch <= nu**2 * g2
    assert batch == pytest.approx(max(along / theta**2, across / nu**2) / g2)


def test_the_two_parts_are_the_sums_of_the_paper_over_examples():
    # Many examples, whose sample variances stand for the estimates over rounds.
    g = np.random.default_rng(7).standard_normal((50, 6)) + 1
    mean = g.mean(axis=0)
    g2 = float(mean @ mean)
    inner = float(np.var(g @ mean, ddof=1)) / g2
    rest = g - np.outer(g @ mean / g2, mean)
    noise = Noise(g2, float(np.var(g, axis=0, ddof=1).sum()), 1.0, along=inner)
    orthogonal = float((rest**2).sum()) / 49 / g2
    augmented = InnerProductTest(most=99, theta=0.5, nu=0.5)
    assert augmented.wanted(noise) == pytest.approx(max(inner / g2, orthogonal) / 0.25)
    assert orthogonal > inner / g2


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_rounds_grow_by_the_inner_product_test(monkeypatch, large):
    monkeypatch.setattr(Layout, "is_large", large)
    told = {}
    test = InnerProductTest(most=500, growth=1.5)
    strategy = Rounds(FedAvg(), clients=10, noise_scale=0.9, batch_size=4, batch_test=test)
    run(strategy, [1.0] * 12, rounds=30, answer=noisy(told))
    # Along the gradient the variance is 1: half of what the norm test counts in two dimensions.
    assert strategy.noise.noise.along / strategy.noise.noise.weight == pytest.approx(1.0, rel=0.4)
    assert 10 <= max(set().union(*told.values())) <= 40


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"most": 0}, "most is 0"),
        ({"most": 1, "eta": 0.0}, "eta is 0.0"),
        ({"most": 1, "growth": 1.0}, "growth is 1.0"),
        ({"most": 1, "growth": math.inf}, "growth is inf"),
        ({"most": 1, "grows": "cohort"}, "grows is 'cohort'"),
        ({"most": 1, "theta": 0.0}, "theta is 0.0"),
        ({"most": 1, "nu": 0.0}, "nu is 0.0"),
    ],
)
def test_what_is_no_test_is_refused(arguments, key):
    with pytest.raises(ConfigError, match=key):
        (InnerProductTest if {"theta", "nu"} & set(arguments) else NormTest)(**arguments)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"noise_scale": None, "batch_size": 8}, "noise_scale"),
        ({"noise_scale": 0.9, "batch_size": None}, "batch_size is null"),
        ({"noise_scale": 0.9, "batch_size": 200}, "batch_test.most is 100"),
    ],
)
def test_a_test_without_what_it_reads_or_grows_is_refused(arguments, key):
    with pytest.raises(ConfigError, match=key):
        Rounds(FedAvg(), batch_test=NormTest(most=100), **arguments)


# ---- in rounds -----------------------------------------------------------------------------------


def noisy(told):
    """Clients whose gradient has a mean of 0.1, and noise of variance 1 an example."""

    def answer(request):
        content = request.payload.content
        size, r = content["config"]["batch-size"], content["config"]["server-round"]
        told.setdefault(r, set()).add(size)
        rng = np.random.default_rng((request.client, r))
        w = content["arrays"]["w"].numpy()
        w = w + 0.1 + rng.standard_normal(2).astype(np.float32) / np.float32(np.sqrt(size))
        metrics = {"num-examples": 1000, "train-loss": 0.0, "steps": 1}
        arrays = ArrayRecord({"w": Array(w.astype(np.float32))})
        return Result(content=RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}))

    return answer


@pytest.mark.parametrize("faults", [None, Faults(dropout=0.3)], ids=["all answer", "some fail"])
def test_a_round_tells_all_its_clients_one_size_that_never_falls(faults):
    told = {}
    strategy = Rounds(
        FedAvg(),
        clients=10,
        noise_scale=0.9,
        batch_size=4,
        batch_test=NormTest(most=60, growth=1.5),
    )
    run(strategy, [1.0] * 12, rounds=30, answer=noisy(told), faults=faults)
    assert all(len(sizes) == 1 for sizes in told.values())
    sizes = [size for r in sorted(told) for size in told[r]]
    assert sizes[0] == 4
    assert all(a <= b <= math.ceil(1.5 * a) for a, b in pairwise(sizes))
    # tr(Sigma) / (eta^2 |G|^2) is 2 / (0.25 * 0.02) = 400 examples, 40 of each of ten.
    assert 25 <= sizes[-1] <= 60


def test_a_round_waits_for_as_many_clients_as_the_test_asks_for():
    told = {}
    test = NormTest(most=9, growth=1.5, grows="clients")
    strategy = Rounds(FedAvg(), clients=2, noise_scale=0.9, batch_size=4, batch_test=test)
    _, trace, _, _ = run(strategy, [1.0] * 12, rounds=8, answer=noisy(told))
    used = clients(trace, Event.APPLIED)
    assert set().union(*told.values()) == {4}
    assert strategy.noise.made.clients == 9
    assert len(used) > 8 * 2


# ---- clients -------------------------------------------------------------------------------------


def ran(*overrides):
    common = ["num_clients=6", "num_rounds=3", "fleet=uniform", "model.hidden=[8]", "seed=3"]
    common += ["strategy.min_train_nodes=4"]
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", overrides=[*common, *overrides])
    experiment = build(config)

    def server(grid, context, recorder):
        serve(experiment, config, grid, recorder)

    app = app_of(experiment)
    return simulate(server, app, experiment.fleet, executor="serial", progress=False, seed=3)


@pytest.mark.parametrize("mode", ["on", "off"])
@pytest.mark.parametrize(
    "work", [["client.local_epochs=2"], ["client.local_epochs=null", "client.local_steps=5"]]
)
def test_a_client_that_is_told_a_size_does_what_one_with_that_size_does(mode, work):
    # The messages differ by the number that they carry, so all but their bytes and times is equal.
    setting = [*work, f"client.batching='{mode}'"]
    own = ran(*setting, "client.batch_size=7")
    told = ran(*setting, "client.batch_size=32", "+train_config.batch-size=7")
    assert told.summary["model_sha256"] == own.summary["model_sha256"]
    for one, other in zip(told.history, own.history, strict=True):
        assert one.get("train_steps") == other.get("train_steps")
    assert told.summary["totals"]["energy_j"]["compute"] == pytest.approx(
        own.summary["totals"]["energy_j"]["compute"], rel=1e-12
    )


def test_a_run_grows_its_batches_charges_them_and_repeats():
    test = "strategy.batch_test={_target_: fl.strategies.NormTest, most: 64, eta: 0.3}"
    setting = ["client.local_epochs=null", "client.local_steps=1", "client.batch_size=2"]
    setting += ["num_rounds=6", "strategy.noise_scale=0.5"]
    plain, one, other = ran(*setting), ran(*setting, test), ran(*setting, test)
    assert one.summary["model_sha256"] == other.summary["model_sha256"]
    sizes = [row["batch_size"] for row in one.history[1:]]
    assert sizes == sorted(sizes)
    assert sizes[0] == 2 < sizes[-1]
    work = [run.summary["totals"]["energy_j"]["compute"] for run in (plain, one)]
    assert work[1] / work[0] == pytest.approx(np.mean(sizes) / 2, rel=1e-6)


@pytest.mark.parametrize("size", [0, -1, 1.5, "8"])
def test_a_size_that_is_none_is_refused_before_the_run(size):
    with pytest.raises(ConfigError, match="batch-size"):
        ran(f"+train_config.batch-size={size!r}")
