"""Cephalo: the batch is dealt by compute, and the state by memory."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from islands import DATA, LAYOUT, MODEL, PLAIN, driven, of, references, run
from stand_ins import Client, fleet_of

from fl.aggregation import Median
from fl.clients import Gradient, Sgd
from fl.collectives import Buckets, ShardedRing, TreeAllReduce
from fl.compression import Cast
from fl.errors import ConfigError
from fl.models import flops_per_example
from fl.simulation.kernel.trace import Event
from fl.strategies import DataParallel, LocalSGD
from fl.strategies.cephalo import BatchPart, Cephalo, Machine

GIB = 2.0**30
AMPLE = 1e12


def machine(rate, memory=AMPLE, fixed=0.0):
    """A machine that does so many samples a second, a third of it forward."""
    return Machine(memory, (fixed, 1 / rate / 3), (fixed, 2 / rate / 3))


def divided(cephalo, machines, parameters=0, **s):
    return [part.samples for part in cephalo.divided(machines, parameters, **s)]


def test_the_authors_example_is_dealt_as_their_code_deals_it():
    # README of benson-guo/cephalo: GPT 2.7B on two L4, an A6000 and a P40, batch 64. Times and
    # memories are data/model_latencies.json and model_memory.json there, float16; what comes out
    # is example/gpt_2.7b.json.
    profiles = {
        "l4": (22.5, (1.181504, 7.415036), (4.842824, 10.94616)),
        "a6000": (47.99, (0.664214, 2.835478), (2.404014, 4.22101)),
        "p40": (22.5, (4.132932, 15.637328), (1.877118, 28.016862)),
    }
    machines = [
        Machine(gib * GIB, *((a / 1e3, s / 1e3) for a, s in times))
        for gib, *times in (profiles[kind] for kind in ("l4", "l4", "a6000", "p40"))
    ]
    cephalo = Cephalo(
        64,
        sample_bytes=0.371 * GIB,
        fixed_bytes=(0.7495 + 2.0) * GIB,
        overhead_s=0.01,
        recompute=True,
    )
    parts = cephalo.divided(machines, 2_770_621_440)
    assert [part.samples for part in parts] == [13, 12, 34, 5]
    assert [part.micro_batches for part in parts] == [1, 2, 1, 1]
    # The file has even shards, as the code takes numbers of micro-batches for their sizes there: 13
    # samples at once and a quarter of the state are 17.9 of the first L4's 16.9 usable GiB.
    shares = cephalo.shards(machines, parts, 2_770_621_440)
    room = (0.75 * 22.5 - 2.7495 - 13 * 0.371) * GIB / (16 * 2_770_621_440)
    assert shares == pytest.approx([room, *[(1 - room) / 3] * 3])


def test_with_ample_memory_shares_are_speeds_and_a_full_memory_bounds_them():
    assert divided(Cephalo(16), [machine(3), machine(1)]) == [12, 4]
    assert divided(Cephalo(16), [machine(2.0)] * 4) == [4] * 4
    # The fast one holds 10 samples' activations, and further micro-batches cost it an overhead.
    bounded = Cephalo(16, sample_bytes=1.0, fixed_bytes=0.0, usable=1.0, overhead_s=9.0)
    assert divided(bounded, [machine(3, memory=10), machine(1, memory=100)]) == [10, 6]
    free = Cephalo(16, sample_bytes=1.0, fixed_bytes=0.0, usable=1.0)
    parts = free.divided([machine(3, memory=10), machine(1, memory=100)], 0)
    assert [part.samples for part in parts] == [12, 4]
    assert parts[0].size <= 10


@pytest.mark.parametrize("seed", range(4))
def test_the_programme_is_as_good_as_trying_everything(seed):
    rng = np.random.default_rng(seed)
    B, parameters = 9, 10
    machines = [
        machine(rate, memory, fixed)
        for rate, memory, fixed in zip(
            rng.uniform(1, 5, 3), rng.uniform(40, 160, 3), rng.uniform(0, 0.3, 3), strict=True
        )
    ]
    s = {"gather_s": 0.4, "scatter_s": 0.3}
    cephalo = Cephalo(B, sample_bytes=8.0, fixed_bytes=4.0, overhead_s=0.1, usable=0.9)
    even = 16.0 * parameters / 3

    def all_parts(one):
        for m, count in product(range(1, B + 1), repeat=2):
            if m * count <= B and 4.0 + 8.0 * m <= 0.9 * one.memory:
                uneven = 1.0 if 4.0 + 8.0 * m + even <= 0.9 * one.memory else 1.25
                forward = count * (one.forward[0] + one.forward[1] * m)
                backward = count * (one.backward[0] + one.backward[1] * m) + 0.1 * (count - 1)
                took = max(0.4 * uneven, forward) + max(0.7 * uneven, backward)
                yield BatchPart(m, count), took

    least = min(
        (
            max(took for _, took in parts)
            for parts in product(*(list(all_parts(one)) for one in machines))
            if sum(part.samples for part, _ in parts) == B
            and sum(4.0 + 8.0 * part.size for part, _ in parts) + 16.0 * parameters
            <= 0.9 * sum(one.memory for one in machines)
        ),
        default=None,
    )
    if least is None:
        with pytest.raises(ConfigError, match="batch is 9, of which 3 clients"):
            cephalo.divided(machines, parameters, **s)
        return
    parts = cephalo.divided(machines, parameters, **s)
    assert sum(part.samples for part in parts) == B
    took = max(dict(all_parts(one))[part] for one, part in zip(machines, parts, strict=True))
    assert took == pytest.approx(least)


def test_state_is_even_in_shards_or_in_used_memory():
    parts = [BatchPart(1, 1)] * 3
    machines = [machine(1, memory) for memory in (10.0, 20.0, 40.0)]
    by = {"fixed_bytes": 4.0, "sample_bytes": 1.0, "state_bytes": 1.0, "usable": 1.0}
    # Room of 5, 15 and 35 beside 5 bytes each.
    shards = Cephalo(3, **by)
    assert shards.shards(machines, parts, 12) == pytest.approx([1 / 3] * 3)
    assert shards.shards(machines, parts, 30) == pytest.approx(np.array([5, 12.5, 12.5]) / 30)
    assert shards.shards(machines, parts, 50) == pytest.approx(np.array([5, 15, 30]) / 50)
    memory = Cephalo(3, even="memory", **by)
    # Filled to the level u: 20 u - 5 + 40 u - 5 = 12 leaves the first as it is, at 5 / 10 > u.
    assert memory.shards(machines, parts, 12) * 12 == pytest.approx([0, 7 / 3, 29 / 3])
    held = memory.shards(machines, parts, 40) * 40
    assert held.sum() == pytest.approx(40)
    assert (5 + held) / [10, 20, 40] == pytest.approx([55 / 70] * 3)
    assert Cephalo(3, even="memory", **by).shards(
        [machine(1, AMPLE)] * 3, parts, 12
    ) == pytest.approx([1 / 3] * 3)
    for cephalo in (shards, memory):
        with pytest.raises(ConfigError, match="batch is 3, of which 3 clients with 70 bytes"):
            cephalo.shards(machines, parts, 60)


@pytest.mark.parametrize(
    ("of", "why"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"batch": 10, "granule": 3}, "granule is 3, and batch 10"),
        ({"batch": 1000}, "set granule to 4 or more"),
        ({"batch": 8, "memory": []}, "memory is empty"),
        ({"batch": 8, "memory": [1e9, -1]}, r"memory\[1\] is -1"),
        ({"batch": 8, "even": "odd"}, "even is 'odd'"),
        ({"batch": 8, "uneven": 0.5}, "uneven is 0.5"),
    ],
)
def test_arguments_out_of_range_are_refused(of, why):
    with pytest.raises(ConfigError, match=why):
        Cephalo(**of)


# ---- data-parallel training ----------------------------------------------------------------------

D = LAYOUT.size
SAMPLE_FLOPS = flops_per_example(MODEL(), (1, 8, 8)).training
PARALLEL = DataParallel(optimizer=PLAIN)


def trained(cephalo, rates, rounds, bps=1e18, latency_s=0.0, **more):
    """Trains with so many samples a second for each of two workers."""
    clients = [
        Client(flops=SAMPLE_FLOPS * r, up_bps=bps, down_bps=bps, latency_s=latency_s) for r in rates
    ]
    strategy = driven(PARALLEL, workers=len(rates), sharding=cephalo, **more)
    got = run(strategy, rounds, rule=Gradient(), fleet=fleet_of(clients), batch_size=32)
    samples = [m.get("samples", 0) for m in got.result.train_metrics_clientapp.values()]
    return got, samples


def test_workers_are_measured_with_even_parts_and_then_take_what_suits_them():
    got, samples = trained(Cephalo(16, memory=[24e9]), (3.0, 1.0), 3)
    assert samples[1:] == [16, 16, 16]
    assert np.diff(got.times) == pytest.approx([8.0, 4.0, 4.0])  # (8, 8), then (12, 4)


def test_gathers_and_scatters_of_unequal_shards_pass_beside_the_passes():
    bps, latency_s, state = 8.0 * D, 0.125, 16.0 * D
    # The second worker has room for a quarter of the state, beside one sample at a time.
    memory = [state + 100.0, state / 4 + 1.0]
    cephalo = Cephalo(16, memory=memory, fixed_bytes=0.0, sample_bytes=1.0, usable=1.0)
    got, _ = trained(cephalo, (3.0, 1.0), 3, bps, latency_s)
    pass_s = 2 * latency_s + 0.75 * 4 * 8 * D / bps  # of two workers one hop

    def step_s(*samples):
        took = [samples[0] / 3.0, samples[1] / 1.0]
        forward = max(pass_s, *(t / 3 for t in took))
        return max(forward + 2 * pass_s, *(t + max(0.0, pass_s - t / 3) for t in took))

    assert pass_s > 4 / 3 > 8 / 9  # the first gather holds up the forward passes
    expected = [step_s(8, 8), step_s(12, 4), step_s(12, 4)]
    assert np.diff(got.times) == pytest.approx(expected)
    sent = [e["bytes"] for e in of(got.run.trace, Event.ALL_REDUCE)]
    assert sum(sent[:4]) == pytest.approx(3 * 4 * D, abs=4)  # of two, each pass is all of it once


def test_a_step_is_that_of_one_machine_with_all_the_samples():
    # Parts of more samples than a worker has are all of them.
    n = [len(DATA[2].client(k)[0]) for k in (0, 1)]
    batch = 16 * (2 * max(n) // 16 + 2)
    got, samples = trained(Cephalo(batch, granule=batch // 2), (1.0, 1.0), 2)
    assert samples[1:] == [sum(n)] * 2
    worker = references(2, Sgd(lr=PLAIN.lr))[0]
    both = [DATA[2].client(k) for k in (0, 1)]
    worker.x, worker.y = (torch.cat([torch.as_tensor(part[i]) for part in both]) for i in (0, 1))
    for row in got.rows[1:]:
        worker.train(1)
        np.testing.assert_allclose(row, worker.w, atol=3e-6)


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("rule", {"rule": LocalSGD(inner_steps=2)}),
        ("buckets", {"buckets": Buckets()}),
        ("allreduce", {"allreduce": TreeAllReduce()}),
        ("aggregator", {"aggregator": Median()}),
        ("accumulate", {"accumulate": 2}),
        ("on_failure", {"on_failure": "retry"}),
        ("drop", {"drop": 0.1}),
        ("compressor", {"compressor": Cast("bf16")}),
    ],
)
def test_what_wants_another_exchange_than_shards_is_refused(key, more):
    given = {"rule": PARALLEL, **more}
    with pytest.raises(ConfigError, match=f"sharding is .*{key} is"):
        driven(given.pop("rule"), sharding=Cephalo(16), **given)


def test_more_workers_than_samples_are_refused():
    with pytest.raises(ConfigError, match=r"a batch of 16 samples in parts of granule 8.* to 24"):
        driven(PARALLEL, sharding=Cephalo(16, granule=8)).check_clients(3)


def test_passes_of_shards_send_the_bytes_of_their_steps():
    class Links:
        def __len__(self):
            return 4

        def rates(self, i, j, fanout=1, fanin=1):
            return np.full(np.shape(i), 8.0)

        def delays(self, i, j):
            return np.zeros(np.shape(i))

    by, sizes = ShardedRing((0.1, 0.2, 0.3, 0.4), 2, 1), [100] * 4
    closed, sent = by.closed(Links(), sizes), np.zeros(4)
    for step in by.steps(Links(), sizes):
        np.add.at(sent, step.sources, step.sizes)
    assert closed.seconds == pytest.approx(3 * 3 * 40.0)
    assert closed.sent == pytest.approx(sent)
    assert sent.sum() == pytest.approx(3 * 3 * 100)
