"""Sparse models whose mask the server adjusts: FedMef, FedTiny, FedDST, PruneFL."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from every_strategy import SPARSE, configured, ran
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fl.aggregation import Median
from fl.clients import Pruning, Received, Sgd
from fl.clients.app.masks import masks_record, read_moved
from fl.clients.masked import MASK_KEY
from fl.clients.pruning import EXTRUSION_KEY, FIRST_KEY, LAST_KEY, SCORES_KEY, TOP_KEY
from fl.errors import ConfigError
from fl.flower.records import record_vector, sparse_record
from fl.runs.build import build, prepare
from fl.strategies import FedAvg, FedDST, FedMef, FedTiny, PruneFL, Rounds, Updates
from fl.strategies.drivers.events.server import GlobalModel
from fl.strategies.sparse import Sparse, moved
from fl.submodels import (
    MASKS_KEY,
    Fixed,
    HeteroFL,
    Layer,
    SparseMask,
    SubModels,
    by_magnitude,
    part_of,
)

LAYERS = (Layer("a", slice(0, 6), 3), Layer("b", slice(6, 10), 2))  # and number 10 is a bias
PLACES, D = ((0, 6), (6, 10)), 11
N, K, LR = 3, 6, 0.1
A = np.random.default_rng(0).uniform(0.5, 2, (N, D))
C = 3 * np.random.default_rng(1).standard_normal((N, D))
WEIGHTS = np.array([1.0, 2, 5])
FIRST = np.random.default_rng(2).standard_normal(D).astype(np.float32)


class Batch:
    """All of a client's data: the loss is (w - c)^T A (w - c) / 2, A diagonal."""

    def __init__(self, i):
        self.a, self.c = (torch.from_numpy(v[i].astype(np.float32)) for v in (A, C))

    def grad(self, w):
        """Gradient and loss."""
        return self.a * (w - self.c), self.loss(w)

    def loss(self, w):
        """Loss."""
        return (self.a * (w - self.c) ** 2).sum() / 2


def trained(rule, state, config, i, steps=K):
    """What client i uploads."""
    told = rule.scalars(config)
    server = {MASK_KEY: torch.from_numpy(state.mask.astype(np.float32))}
    w = torch.from_numpy(state.w.copy())
    received = Received(w, server, {}, told, steps)
    of_rule = rule.init(received)
    losses = []
    for t in range(steps):
        w, of_rule, loss = rule.step(w, of_rule, received, Batch(i), t)
        losses.append(float(loss))
    finished = rule.finish(w, of_rule, received, steps)
    return finished, float(np.mean(losses))


def rounds(rule, count, client=None):
    """States before the first round and after each."""
    client = Pruning(Sgd(LR), PLACES) if client is None else client
    states = [rule.pruned(FIRST, LAYERS)]
    for t in range(1, count + 1):
        state = states[-1]
        (config, *_) = rule.configs(state, t, N, np.random.default_rng(t))
        who = range(1 if t <= rule.alone else N)
        done = [trained(client, state, config, i) for i in who]
        rows = [one.w.numpy() if len(one.w) else state.w for one, _ in done]
        scores = [one.extras[SCORES_KEY].numpy() for one, _ in done]
        scores = [vector if len(vector) else np.zeros(D, np.float32) for vector in scores]
        holds = [
            one.extras[MASK_KEY].numpy() > 0 if len(one.extras[MASK_KEY]) else state.mask
            for one, _ in done
        ]
        states.append(
            rule.step(
                state,
                Updates(
                    np.stack(rows) - state.w,
                    WEIGHTS[list(who)],
                    [{"train-loss": loss} for _, loss in done],
                    {
                        SCORES_KEY: np.stack(
                            [s if len(s) else np.zeros(D, np.float32) for s in scores]
                        )
                    },
                    told=[config] * len(done),
                    holds=np.stack(holds),
                ),
            )
        )
    return states


def held(state):
    return [int(state.mask[layer.place].sum()) for layer in LAYERS]


# ---- written out anew, in float64 ----------------------------------------------------------------


def smallest(values, among, k):
    return sorted(np.flatnonzero(among), key=lambda j: (values[j], j))[:k]


def alpha(t, every, until, a):
    return 0.0 if t % every or t > until else a / 2 * (1 + math.cos(math.pi * t / until))


def fedmef(count, every, until, a, lam, spans=None):
    """FedMef; with lam None and the spans of blocks FedTiny's pruning."""
    w = FIRST.astype(float)
    mask = np.zeros(D, bool)
    mask[10] = True
    for begin, end in PLACES:
        among = np.arange(D) // 1 >= begin
        among &= np.arange(D) < end
        mask[smallest(-np.abs(w), among, 3 if begin == 0 else 2)] = True
    w = w * mask
    out = [(w.copy(), mask.copy())]
    for t in range(1, count + 1):
        r = alpha(t, every, until, a)
        places = PLACES if spans is None else spans(t)
        marked = np.zeros(D)
        for begin, end in places if r and lam is not None else ():
            layer = (np.arange(D) >= begin) & (np.arange(D) < end)
            k = math.floor(r * (mask & layer).sum())
            marked[smallest(np.abs(w), mask & layer, k)] = 1
        ends, scores = [], []
        for i in range(N):
            y = w.copy()
            for s in range(K):
                g = A[i] * (y - C[i])
                low = marked * y
                beta = (2 * K - 2 * s) / (2 * K - s)
                beta *= (2 / (1 + math.exp(-np.linalg.norm(low))) - 1) * LR
                y = (y - max(LR, beta) * (g + 2 * (lam or 0.0) * low)) * mask
            ends.append(y)
            top = np.zeros(D)
            for begin, end in places if r else ():
                layer = (np.arange(D) >= begin) & (np.arange(D) < end)
                k = min(math.floor(r * (mask & layer).sum()), int((~mask & layer).sum()))
                top[smallest(-np.abs(g), ~mask & layer, k)] = 1
            scores.append(g * top)
        w = np.average(ends, axis=0, weights=WEIGHTS)
        G = np.average(scores, axis=0, weights=WEIGHTS)
        new = mask.copy()
        for begin, end in PLACES if r else ():
            layer = (np.arange(D) >= begin) & (np.arange(D) < end)
            k = min(math.floor(r * (mask & layer).sum()), int((~mask & layer).sum()))
            if spans is not None and (begin, end) not in places:
                continue
            new[smallest(np.abs(w), mask & layer, k)] = False
            new[smallest(-np.abs(G), ~mask & layer, k)] = True
        mask = new
        w = w * mask
        out.append((w.copy(), mask.copy()))
    return out


def compare(states, expected):
    for state, (w, mask) in zip(states, expected, strict=True):
        np.testing.assert_array_equal(state.mask, mask)
        np.testing.assert_allclose(state.w, w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lam", [0.0, 2.0])
def test_fedmef_is_its_rules_written_out(lam):
    every, until, a = 2, 11, 0.9
    states = rounds(FedMef(every, until, a, extrusion=lam), 12)
    compare(states, fedmef(12, every, until, a, lam))
    assert any((x.mask != y.mask).any() for x, y in itertools.pairwise(states))


def test_fedtiny_is_fedmef_without_extrusion_one_block_after_another_from_the_output():
    every, until, a = 2, 11, 0.9
    rule = FedTiny(every, until, a, candidates=1, blocks=2)
    compare(
        rounds(rule, 8),
        fedmef(8, every, until, a, None, lambda t: [PLACES[1 - (t // every - 1) % 2]]),
    )
    assert [FedTiny(2, blocks=3).block(7, 2 * t) for t in (1, 2, 3, 4)] == [
        (5, 6),
        (3, 4),
        (0, 2),
        (5, 6),
    ]


def test_fedtiny_takes_the_candidate_with_the_smallest_loss_and_as_many_numbers_in_each():
    rule = FedTiny(candidates=4, spread=0.9, seed=3)
    states = rounds(rule, 4)
    losses = []
    for state in states[:4]:  # forward passes of the clients alone
        assert sum(held(state)) == 5
        y = (A * (state.w - C) ** 2).sum(axis=1) / 2
        losses.append(np.average(y, weights=WEIGHTS))
    np.testing.assert_allclose(states[4].losses, losses, rtol=1e-5)
    assert len({tuple(state.mask) for state in states[:4]}) > 1
    best = states[int(np.argmin(losses))]
    np.testing.assert_array_equal(states[4].mask, best.mask)
    np.testing.assert_array_equal(states[4].w, FIRST * best.mask)


def test_feddst_is_its_rules_written_out():
    """Clients move their masks after 3 of 6 steps; the server averages over those who hold."""
    a, until = 0.9, 11
    states = rounds(FedDST(1, until, a), 3)
    w, mask = states[0].w.astype(float), states[0].mask.copy()
    for t, state in enumerate(states[1:], 1):
        r = alpha(t, 1, until, a)
        total, weight, anybody = np.zeros(D), np.zeros(D), np.zeros(D, bool)
        for i in range(N):
            y, own = w.copy(), mask.copy()
            for s in range(K):
                g = A[i] * (y - C[i])
                y = (y - LR * g) * own
                if s == 2:
                    for begin, end in PLACES:
                        layer = (np.arange(D) >= begin) & (np.arange(D) < end)
                        k = min(math.floor(r * (own & layer).sum()), int((~own & layer).sum()))
                        drop = smallest(np.abs(y), own & layer, k)
                        grow = smallest(-np.abs(g), ~own & layer, k)
                        own[drop], own[grow] = False, True
                    y = y * own
            total, weight = total + WEIGHTS[i] * y * own, weight + WEIGHTS[i] * own
            anybody |= own
        w = np.where(weight > 0, total / np.maximum(weight, 1e-9), 0)
        new = np.zeros(D, bool)
        new[10] = True
        for layer in LAYERS:
            among = np.zeros(D, bool)
            among[layer.place] = anybody[layer.place]
            new[smallest(-np.abs(w), among, layer.held)] = True
        w, mask = w * new, new
        np.testing.assert_array_equal(state.mask, mask)
        np.testing.assert_allclose(state.w, w, rtol=1e-4, atol=1e-5)


def test_feddst_of_clients_with_one_mask_is_the_plain_mean():
    state = Sparse(FIRST * 0, np.ones(D, bool), LAYERS)
    deltas = np.random.default_rng(5).standard_normal((N, D)).astype(np.float32)
    deltas[:, [0, 1, 2, 6, 7]] = 0
    mask = np.ones(D, bool)
    mask[[0, 1, 2, 6, 7]] = False
    scores = {SCORES_KEY: np.zeros((N, D), np.float32)}
    told, holds = [{"mask-ratio": 0.5}] * N, np.tile(mask, (N, 1))
    updates = Updates(deltas, WEIGHTS, extras=scores, told=told, holds=holds)
    after = FedDST().step(state._replace(mask=mask), updates)
    np.testing.assert_array_equal(after.mask, mask)
    np.testing.assert_allclose(after.w, WEIGHTS @ deltas / WEIGHTS.sum(), rtol=1e-5)


def test_prunefl_takes_in_what_maximises_the_gain_of_a_round_over_its_time():
    """Gamma over all sets is largest for that of the greedy order: tried out over all of them."""
    rng = np.random.default_rng(7)
    for _ in range(30):
        mask = np.array([1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 1], bool)
        w = np.where(mask, rng.standard_normal(D), 0).astype(np.float32)
        squares = rng.exponential(size=D).astype(np.float32)
        c, t = rng.uniform(0.5, 4, 2)
        layers = (LAYERS[0]._replace(held=6), LAYERS[1]._replace(held=4))
        rule = PruneFL(1, 0, drop=0.7, half_life=1e12, round_s=c, number_s=t)
        told = {"mask-ratio": rule.ratio(1)}
        zero = np.zeros((1, D), np.float32)
        updates = Updates(zero, np.ones(1), extras={SCORES_KEY: squares[None]}, told=[told])
        after = rule.step(Sparse(w, mask, layers), updates)
        kept = mask.copy()
        kept[smallest(np.abs(w), mask & (np.arange(D) < 6), 2)] = False
        kept[smallest(np.abs(w), mask & (np.arange(D) >= 6) & (np.arange(D) < 10), 1)] = False
        free = np.flatnonzero(~kept)
        best = -1.0
        for code in range(2 ** len(free)):
            one = kept.copy()
            one[free] = [(code >> b) & 1 for b in range(len(free))]
            best = max(best, squares[one].sum() / (c + t * one[:10].sum()))
        ours = squares[after.mask].sum() / (c + t * after.mask[:10].sum())
        assert ours == pytest.approx(best, rel=1e-5)
        assert after.mask[kept].all()
        np.testing.assert_array_equal(after.w, w * after.mask)


def test_prunefl_is_pruned_by_one_client_down_to_its_density_and_no_further_than_time_pays():
    rule = PruneFL(2, initial_rounds=4, drop=0.5, round_s=100.0, number_s=1e-6)
    states = rounds(rule, 8)
    assert states[0].mask.all()  # the whole model
    sizes = [sum(held(state)) for state in states]
    assert sizes[0] == 10
    assert sizes[:5] == sorted(sizes[:5], reverse=True)
    assert sizes[4] == sizes[8] == 5  # its density
    assert [rule.ratio(t) > 0 for t in range(1, 9)] == [True] * 4 + [False, True, False, True]
    # The other two clients have no part in the first rounds.
    one = trained(Pruning(Sgd(LR), PLACES), states[0], {}, 0)[0].w.numpy()
    np.testing.assert_allclose(states[1].w, one * states[1].mask, rtol=1e-6)


# ---- the mask ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [FedMef(1, 9, 1.0), FedTiny(1, 9, 1.0, candidates=1), FedDST(1, 9, 1.0)]
)
def test_layers_keep_their_numbers_and_what_is_left_out_is_0_after_every_adjustment(rule):
    states = rounds(rule, 9)
    for state in states:
        assert held(state) == [3, 2]
        assert not state.w[~state.mask].any()
        assert state.mask[10]
    assert rule.ratio(9) == 0
    assert rule.ratio(10) == 0
    assert FedMef(1, 1000, 0.5).ratio(1) == pytest.approx(0.5, rel=1e-5)


def test_what_is_grown_has_the_largest_averaged_gradients_of_what_was_left_out_and_begins_at_0():
    rng = np.random.default_rng(3)
    w, mask = rng.standard_normal(D).astype(np.float32), rng.random(D) < 0.5
    mask[[0, 1, 2, 7, 8]], mask[[3, 4, 5, 6]] = True, False
    w *= mask
    growth = rng.exponential(size=D).astype(np.float32)
    after = moved(Sparse(w, mask, LAYERS), growth, 0.67, LAYERS)
    for layer in LAYERS:
        place = layer.place
        grown = ~mask[place] & after.mask[place]
        lost = mask[place] & ~after.mask[place]
        assert grown.sum() == lost.sum() > 0
        left_out = ~mask[place] & ~after.mask[place]
        assert growth[place][grown].min() >= growth[place][left_out].max(initial=0)
        kept = mask[place] & after.mask[place]
        assert np.abs(w[place][lost]).max() <= np.abs(w[place][kept]).min(initial=np.inf)
        assert not after.w[place][grown].any()
        np.testing.assert_array_equal(after.w[place][kept], w[place][kept])


def test_extrusion_raises_the_rate_to_that_before_any_schedule_and_never_above():
    rule = Pruning(Sgd(0.4, round_schedule=lambda t: 0.1), PLACES)
    theta = torch.tensor([3.0, 4.0])
    received = Received(theta, {}, {}, {"lr": 0.04}, 8)
    sigma = 2 / (1 + math.exp(-5)) - 1
    assert float(rule._raised(theta, received, 0)) == pytest.approx(0.4 * sigma)  # p(0) = 1
    assert float(rule._raised(theta, received, 4)) == pytest.approx(0.4 * sigma * 8 / 12)
    assert float(rule._raised(theta, received, 8)) == pytest.approx(0.04)  # p(T) = 0
    assert float(rule._raised(theta * 0, received, 0)) == pytest.approx(0.04)


def test_what_is_marked_is_driven_out():
    """The norm of what is to be pruned falls with lambda, and other numbers make up for it."""
    state = FedMef().pruned(FIRST, LAYERS)
    norms = []
    for lam in (0.0, 0.5, 4.0):
        client = Pruning(Sgd(0.05), PLACES)
        finished, _ = trained(client, state, {TOP_KEY: 0.5, EXTRUSION_KEY: lam}, 0, steps=30)
        marked = smallest(np.abs(state.w), state.mask & (np.arange(D) < 6), 1)
        norms.append(float(finished.w[marked].norm()))
    assert norms[2] < norms[1] < norms[0]


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({TOP_KEY: 0.0}, TOP_KEY),
        ({TOP_KEY: "all"}, TOP_KEY),
        ({EXTRUSION_KEY: 0.1}, EXTRUSION_KEY),
        ({TOP_KEY: 0.5, EXTRUSION_KEY: -1.0}, EXTRUSION_KEY),
        ({TOP_KEY: 0.5, FIRST_KEY: -1, LAST_KEY: 0}, FIRST_KEY),
    ],
)
def test_a_message_that_makes_no_sense_is_refused_by_the_client(config, key):
    with pytest.raises(ConfigError, match=key):
        Pruning(Sgd(LR), PLACES).scalars(config)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: FedMef(adjust_every=0), "adjust_every"),
        (lambda: FedDST(alpha=1.5), "alpha"),
        (lambda: FedMef(extrusion=-1.0), "extrusion"),
        (lambda: FedTiny(candidates=0), "candidates"),
        (lambda: FedTiny(spread=1.0), "spread"),
        (lambda: FedTiny(blocks=0), "blocks"),
        (lambda: PruneFL(initial_rounds=-1), "initial_rounds"),
        (lambda: PruneFL(number_s=0.0), "number_s"),
        (lambda: Rounds(FedMef()), "sub_models"),
        (lambda: Rounds(FedAvg(), sub_models=SparseMask()), "sub_models"),
        (lambda: Rounds(FedMef(), sub_models=SubModels(HeteroFL(), Fixed([1.0]))), "sub_models"),
        (
            lambda: Rounds(PruneFL(), sub_models=SparseMask(), aggregator=Median()),
            "rule.initial_rounds",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(make, key):
    with pytest.raises(ConfigError, match=key):
        make()


# ---- runs ----------------------------------------------------------------------------------------

OFTEN = {
    "fedmef": ["strategy.rule.adjust_every=1", "strategy.rule.adjust_until=10"],
    "fedtiny": ["strategy.rule.adjust_every=1", "strategy.rule.candidates=1"],
    "feddst": ["strategy.rule.adjust_every=1", "strategy.rule.alpha=0.8"],
    "prunefl": ["strategy.rule.adjust_every=1", "strategy.rule.initial_rounds=1"],
}


def row_of(record):
    return np.concatenate([array.numpy().reshape(-1) for array in record.values()])


@pytest.mark.parametrize(
    "strategy", ["fedmef", *(pytest.param(name, marks=pytest.mark.slow) for name in SPARSE[1:])]
)
def test_a_density_of_1_is_fedavg_bit_for_bit(strategy):
    density = ["strategy.sub_models.density=1", "strategy.sub_models.gamma=0"]
    # PruneFL may leave out what has no gradient, such as pixels that are always 0.
    rule = [f"{key}0" for key in ("strategy.rule.initial_rounds=", "strategy.rule.drop=")]
    _, ours = ran(strategy, *(rule if strategy == "prunefl" else OFTEN[strategy]), *density)
    _, fedavg = ran("fedavg")
    np.testing.assert_array_equal(row_of(ours.arrays), row_of(fedavg.arrays))


@pytest.mark.parametrize(
    "more", [pytest.param("client.rule.momentum=0.9", marks=pytest.mark.slow), "attack=ipm"]
)
def test_what_the_mask_has_not_does_not_change_in_any_bit(more):
    liars = ["num_byzantine=1"] if more.startswith("attack") else []
    experiment, run = ran("fedmef", more, *liars, "strategy.rule.alpha=0")
    first, last = row_of(experiment.initial()), row_of(run.arrays)
    layers = experiment.strategy.sub_models.layers(experiment.app.layout)
    state = experiment.strategy.rule.pruned(first, layers)
    assert (last[~state.mask].view(np.uint32) == 0).all()
    assert (last[state.mask] != first[state.mask]).mean() > 0.5


def test_bytes_are_those_of_held_values_with_the_mask_once_and_gradients_when_asked():
    """4,810 numbers, of which 481 are held; 4,736 of them have a bit."""

    def totals(*more):
        return ran("fedmef", "num_rounds=3", *more)[1].summary["totals"]

    held, bits, clients = 481, 4736 / 8, 4
    few = totals("strategy.rule.alpha=0")
    many = totals("strategy.rule.alpha=0", "strategy.sub_models.density=0.2")
    down = many["bytes_down"] - few["bytes_down"]
    up = many["bytes_up"] - few["bytes_up"]
    assert down == up == 3 * clients * 4 * (962 - held)  # names, shapes and bits are the same
    once = few["bytes_down"] - few["bytes_up"]  # of one message to each client
    assert clients * bits < once < clients * (bits + 1200)
    moving = totals(*OFTEN["fedmef"])
    again = moving["bytes_down"] - few["bytes_down"]
    assert 2 * clients * bits < again < 2 * clients * (bits + 1000)  # the mask, in rounds 2 and 3
    gradients = sum(
        math.floor(0.1 * (1 + math.cos(math.pi * t / 10)) * n)
        for t in (1, 2, 3)
        for n in (258, 149)
    )
    sent = moving["bytes_up"] - few["bytes_up"]
    assert clients * 8 * gradients < sent < clients * (8 * gradients + 3 * 400)


def test_a_client_that_has_lost_the_mask_is_sent_it_again():
    crashes = "fleet.faults.crash=0.4"
    _, run = ran("feddst", "strategy.rule.adjust_every=50", crashes, "num_rounds=6")
    assert run.summary["faults"]["crash"] > 3
    assert run.summary["faults"].keys() <= {"crash", "no_step"}  # no client misses its mask


def test_a_client_without_the_mask_of_a_message_says_so():
    experiment = build(configured("fedmef"))
    app, layout = experiment.parts, experiment.app.layout
    layers = experiment.strategy.sub_models.layers(layout)
    arrays = {
        entry.name: Array(np.zeros(held_of(layers, entry), np.float32)) for entry in layout.entries
    }
    content = RecordDict(
        {"arrays": ArrayRecord(arrays), "config": ConfigRecord({"mask-number": 2})}
    )
    assert app.read(content).recalls
    for state in (None, RecordDict({"fl.mask-number": ConfigRecord({"number": 1})})):
        with pytest.raises(ConfigError, match="mask 2"):
            app._recalled(content, state)


def held_of(layers, entry):
    return next(((one.held,) for one in layers if one.name == entry.name), entry.shape)


def test_a_reply_with_a_mask_of_another_size_is_none():
    experiment = build(configured("feddst"))
    layout, w = experiment.app.layout, GlobalModel(experiment.initial()).w
    layers = experiment.strategy.sub_models.layers(layout)
    mask = by_magnitude(layers, w)
    part = part_of(layout, layers, mask)
    (first, *_) = np.flatnonzero(mask[layers[0].place])
    (other, *_) = np.flatnonzero(~mask[layers[0].place])
    for places, fits in (([first, other], True), ([other], False)):
        changed = mask.copy()
        changed[places] = ~changed[places]
        bitmaps = part_of(layout, layers, changed).bitmaps
        if fits:
            assert read_moved(layout, part, masks_record(bitmaps)).of(changed).all()
            continue
        with pytest.raises(ConfigError, match=MASKS_KEY):
            read_moved(layout, part, masks_record(bitmaps))
    with pytest.raises(ConfigError, match=MASKS_KEY):
        read_moved(layout, part, ArrayRecord({}))


@pytest.mark.parametrize("strategy", ["feddst", pytest.param("fedmef", marks=pytest.mark.slow)])
def test_batched_clients_agree_with_those_trained_alone(strategy):
    rows = [
        row_of(
            ran(strategy, *OFTEN[strategy], "num_rounds=2", f"client.batching='{batching}'")[
                1
            ].arrays
        )
        for batching in ("off", "on")
    ]
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-3, atol=2e-5)


def test_memory_is_less_where_clients_keep_less_and_what_they_need_is_checked():
    whole = build(configured("fedmef", "strategy.sub_models.gamma=0")).parts.memory_bytes()
    half = build(configured("fedmef")).parts.memory_bytes()
    assert half < whole
    with pytest.raises(ConfigError, match="4 of 4 clients have too little"):
        prepare(configured("fedmef", f"fleet.memory_bytes={half - 1}"))


# ---- vectors that are mostly zeros ---------------------------------------------------------------


def test_a_sparse_vector_comes_back_and_takes_8_bytes_for_each_number():
    vector = torch.zeros(1000)
    vector[[3, 500, 999]] = torch.tensor([1.0, -2, 3])
    record = sparse_record(vector)
    assert sum(len(array.numpy()) for array in record.values()) == 6
    torch.testing.assert_close(record_vector(record, 1000, "x"), vector, rtol=0, atol=0)
    full = torch.ones(10)
    assert list(sparse_record(full)) == ["vector"]


@pytest.mark.parametrize(
    ("positions", "values"),
    [
        (np.array([1, 1], np.uint32), np.ones(2, np.float32)),
        (np.array([2, 1], np.uint32), np.ones(2, np.float32)),
        (np.array([1, 10], np.uint32), np.ones(2, np.float32)),
        (np.array([1], np.uint32), np.ones(2, np.float32)),
        (np.array([1, 2], np.int64), np.ones(2, np.float32)),
        (np.array([1, 2], np.uint32), np.array([1, np.nan], np.float32)),
        (np.array([1, 2], np.uint32), np.ones(2)),
        (np.array([[1, 2]], np.uint32), np.ones((1, 2), np.float32)),
    ],
)
def test_a_sparse_vector_that_is_none_is_refused(positions, values):
    record = ArrayRecord({"values": Array(values), "positions": Array(positions)})
    with pytest.raises(ConfigError, match="scores"):
        record_vector(record, 10, "scores")
