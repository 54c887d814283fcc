"""FlexLoRA: products of adapters of unequal ranks are averaged, and cut to each client's rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from every_strategy import configured, ran

from fl.aggregation import Median
from fl.errors import ConfigError
from fl.models import merged
from fl.runs.build import build
from fl.strategies import FlexLoRA, Updates
from fl.submodels import Place, Units, Whole
from fl.vectors.layout import Layout

M, N, R = 5, 4, 4  # of full rank
SHAPES = {"A": (R, N), "B": (M, R), "b": (3,)}
LAYOUT = Layout.of_entries((name, shape, "float32") for name, shape in SHAPES.items())
RANKS = Units("", R, (Place("A", 0, np.arange(R)), Place("B", 1, np.arange(R))))
RNG = np.random.default_rng(0)
W = RNG.standard_normal(LAYOUT.size).astype(np.float32)


def row(A, B, b=(0, 0, 0)):
    return np.concatenate([np.reshape(x, -1) for x in (A, B, b)]).astype(np.float32)


def factors(w):
    return w[: R * N].reshape(R, N), w[R * N : R * N + M * R].reshape(M, R)


def product(w, rank=R):
    A, B = (x.astype(np.float64) for x in factors(w))
    return B[:, :rank] @ A[:rank]


def held(rank):
    has = np.zeros((R, N), bool), np.zeros((M, R), bool)
    has[0][:rank], has[1][:, :rank] = True, True
    return row(*has, np.ones(3)).astype(bool)


def stepped(models, weights, holds=None, **more):
    """The state after clients have brought these models, shape (n, d)."""
    rule = FlexLoRA()
    state = rule.init_parts(Whole(LAYOUT, [RANKS], W), [])
    deltas = np.array(models, np.float32) - W
    if holds is not None:
        deltas = np.where(holds, deltas, 0)
    return rule.step(state, Updates(deltas, np.array(weights, float), holds=holds, **more)).w


CLIENTS = RNG.standard_normal((3, LAYOUT.size)).astype(np.float32)
WEIGHTS = np.array([1.0, 2, 5])
MEAN = sum(n * product(x) for n, x in zip(WEIGHTS, CLIENTS, strict=True)) / WEIGHTS.sum()


# ---- closed forms --------------------------------------------------------------------------------


def test_equal_full_ranks_average_the_products_and_everything_else():
    new = stepped(CLIENTS, WEIGHTS)
    np.testing.assert_allclose(product(new), MEAN, atol=1e-5)
    np.testing.assert_allclose(new[-3:], np.average(CLIENTS[:, -3:], 0, WEIGHTS), rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_client_of_less_rank_is_sent_the_best_approximation_of_its_rank(rank):
    """Eckart and Young: what is missing are the singular values after the first r."""
    new = stepped(CLIENTS, WEIGHTS)
    S = np.linalg.svd(MEAN, compute_uv=False)
    error = np.linalg.norm(MEAN - product(new, rank))
    assert error == pytest.approx(np.sqrt((S[rank:] ** 2).sum()), rel=1e-4)


def test_a_client_of_less_rank_brings_the_product_of_what_it_holds():
    holds = np.stack([held(R), held(1), held(2)])
    new = stepped(CLIENTS, WEIGHTS, holds)
    ranks = (R, 1, 2)
    mean = sum(n * product(x, r) for n, x, r in zip(WEIGHTS, CLIENTS, ranks, strict=True)) / 8
    np.testing.assert_allclose(product(new), mean, atol=1e-5)


def test_products_do_not_depend_on_the_factors_that_make_them():
    """(B R, R' A) is the same update for every rotation R; averages of factors are not."""
    A, B = factors(CLIENTS[0])
    turn, _ = np.linalg.qr(RNG.standard_normal((R, R)))
    turned = CLIENTS.copy()
    turned[0] = row(turn.T @ A, B @ turn, CLIENTS[0, -3:])
    np.testing.assert_allclose(
        product(stepped(turned, WEIGHTS)), product(stepped(CLIENTS, WEIGHTS)), atol=1e-4
    )
    assert np.abs(product(turned.mean(axis=0)) - product(CLIENTS.mean(axis=0))).max() > 0.1


def test_what_nobody_changes_stays_the_same_function():
    np.testing.assert_allclose(product(stepped([W, W], [1, 1])), product(W), atol=1e-5)


def test_products_of_low_rank_leave_columns_of_zeros_to_be_trained():
    low = np.array([row(A * [[1], [0], [0], [0]], B) for A, B in map(factors, CLIENTS[:1])])
    A, B = factors(stepped(low, [1.0]))
    np.testing.assert_allclose(B[:, 1:], 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(A, axis=1), 1, rtol=1e-5)


def test_an_aggregator_combines_products():
    """One of three lies; the median is of what the others' products are, number by number."""
    lies = CLIENTS.copy()
    lies[2] = 1e3

    def median(x, weights, name):
        return Median()(x)

    full = [product(x) for x in lies]
    S = np.linalg.svd(np.median(full, axis=0), compute_uv=False)
    new = product(stepped(lies, WEIGHTS, combine=median))
    np.testing.assert_allclose(np.linalg.svd(new, compute_uv=False)[:R], S, rtol=1e-3, atol=1e-3)


# ---- runs ----------------------------------------------------------------------------------------

ONE_STEP = ["client.local_epochs=null", "client.local_steps=1", "num_rounds=1", "adapter.rank=4"]


def function_of(run, experiment):
    model = experiment.model()
    layout = experiment.app.layout
    state = {name: torch.from_numpy(array.numpy()) for name, array in run.arrays.items()}
    layout.load(model, layout.flatten(state))
    return {name: x.numpy() for name, x in merged(model).state_dict().items()}


def test_after_one_step_each_it_is_the_average_of_factors_as_A_has_not_moved():
    """B = 0 at first, so that a first step leaves A as it is, and averaging B is exact."""
    whole = "strategy.sub_models.capacity.levels=[1]"
    made, ours = ran("flexlora", whole, *ONE_STEP)
    _, fedavg = ran("fedavg", "adapter=lora", *ONE_STEP)
    assert ours.trace.sha256() == fedavg.trace.sha256()
    expected = function_of(fedavg, made)
    for name, x in function_of(ours, made).items():
        np.testing.assert_allclose(x, expected[name], atol=1e-6)


def test_clients_are_charged_for_their_ranks_and_runs_are_repeated():
    """Of rank 4, 2 and 1: as many rows of A and columns of B; the fourth client has the first's."""
    experiment, run = ran("flexlora", "adapter.rank=4", "num_rounds=2")
    _, again = ran("flexlora", "adapter.rank=4", "num_rounds=2")
    assert run.trace.sha256() == again.trace.sha256()
    for name, array in run.arrays.items():
        np.testing.assert_array_equal(array.numpy(), again.arrays[name].numpy())
    units, layout = experiment.strategy.exchange.units, experiment.app.layout
    whole = Whole(layout, units, np.zeros(layout.size, np.float32))
    extraction = experiment.strategy.sub_models.extraction
    rng = np.random.default_rng(0)
    sizes = [
        len(extraction.extract(whole, level, 0, lambda name: rng).positions)
        for level in (1, 0.5, 0.25)
    ]
    assert sizes == [layout.size, layout.size // 2, layout.size // 4]
    down = run.summary["totals"]["bytes_down"]
    _, alone = ran("fedavg", "adapter=lora", "adapter.rank=4", "num_rounds=2")
    share = (1 + 0.5 + 0.25 + 1) / 4
    assert down == pytest.approx(share * alone.summary["totals"]["bytes_down"], rel=0.1)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["~adapter"], "AdapterRanks"),
        (["adapter=ffa_lora"], "is frozen"),
        (["adapter=paca"], "AdapterRanks"),
        (
            ["strategy.sub_models.extraction._target_=fl.submodels.HeteroFL"],
            "sub_models.extraction is HeteroFL",
        ),
        (["+strategy.sub_models.scaled=true"], "scaled is true"),
        (["compressor=ef_topk"], "compressor is"),
    ],
)
def test_what_cannot_be_is_named_before_the_start(overrides, key):
    with pytest.raises(ConfigError, match=key):
        build(configured("flexlora", *overrides))


def test_adapters_go_with_this_strategy_and_with_no_other_of_parts():
    build(configured("flexlora"))
    with pytest.raises(ConfigError, match="adapter is set"):
        build(configured("heterofl", "adapter=lora"))
