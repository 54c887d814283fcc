"""Streaming DiLoCo and its quantised outer gradients: schedule, equalities, bytes, Algorithm 2."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from islands import (
    ADAMW,
    AVERAGE,
    CUT,
    DATA,
    LAYOUT,
    MODEL,
    SGD,
    Nesterov,
    crashes,
    of,
    references,
    run,
)
from stand_ins import Client, fleet_of

from fl.clients.app.island import Fragments
from fl.compression import Cast, TopK
from fl.errors import ConfigError
from fl.flower.records import layout_of
from fl.models import CharGPT, LogisticRegression, build
from fl.simulation.kernel.trace import Event
from fl.strategies import DiLoCo, OuterSgd, OuterSteps, StreamingDiLoCo
from fl.strategies.drivers.outer.schedule import FragmentSchedule
from fl.vectors.layout import Layout

GPT = Layout.of(build(partial(CharGPT, width=8, layers=7, heads=2), (16,), 65, 0))


# ---- fragments -----------------------------------------------------------------------------------


def blocks_of(cut, layout):
    """Returns the names of the blocks in each fragment, with "" for what is in none."""
    found = []
    for slices in cut.slices:
        inside = [e.name for s in slices for e in layout.floats if s.start <= e.offset < s.stop]
        found.append(
            {
                name.split(".")[1] if "." in name and name.startswith("blocks") else ""
                for name in inside
            }
        )
    return found


def test_blocks_are_dealt_in_turn_or_in_sequence_and_embeddings_join_the_first():
    strided = blocks_of(Fragments.of(GPT, 3), GPT)
    assert strided == [{"", "0", "3", "6"}, {"1", "4"}, {"2", "5"}]
    sequential = blocks_of(Fragments.of(GPT, 3, "sequential"), GPT)
    assert sequential == [{"", "0", "1", "2"}, {"3", "4"}, {"5", "6"}]
    # As in the paper: a fragment for three blocks.
    assert len(Fragments.of(GPT, None)) == 3
    logistic = Layout.of(build(LogisticRegression, (1, 8, 8), 10, 0))
    assert len(Fragments.of(logistic, None)) == 1


@pytest.mark.parametrize("pattern", ["strided", "sequential"])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_parameter_is_in_one_fragment(count, pattern):
    cut = Fragments.of(GPT, count, pattern)
    row = np.arange(GPT.size, dtype=np.float32)
    parts = [cut.take(row, p) for p in range(count)]
    assert [part.size for part in parts] == [shapes.size for shapes in cut.shapes]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), row)
    again = np.zeros_like(row)
    for p, part in enumerate(parts):
        cut.put(again, p, part)
    np.testing.assert_array_equal(again, row)


# ---- the schedule --------------------------------------------------------------------------------


def test_of_two_fragments_one_is_due_at_100_200_and_the_other_at_50_150_250():
    schedule = FragmentSchedule(inner_steps=100, count=2, overlap=1)
    due = [[t for t in range(401) if schedule.sends(p, t)] for p in range(2)]
    assert due == [[100, 200, 300, 400], [50, 150, 250, 350]]
    merged = [[t for t in range(401) if schedule.merges(p, t)] for p in range(2)]
    assert merged == [[101, 201, 301], [51, 151, 251, 351]]
    assert [schedule.next_stop(t, 400) for t in (0, 50, 51, 100, 101, 150, 399)] == [
        50, 51, 100, 101, 150, 151, 400,
    ]  # fmt: skip


@pytest.mark.parametrize(("inner_steps", "count"), [(6, 3), (12, 4), (5, 1), (8, 8)])
def test_every_fragment_is_due_once_in_every_h_steps(inner_steps, count):
    schedule = FragmentSchedule(inner_steps, count, overlap=0)
    for p in range(count):
        due = [schedule.sends(p, t) for t in range(1, 9 * inner_steps)]
        windows = np.lib.stride_tricks.sliding_window_view(due, inner_steps)
        assert set(windows.sum(axis=1)) == {1}
    assert max(len(schedule.sent(t)) for t in range(99)) == 1  # never two at once


def test_fragments_are_due_when_torchfts_are():
    # torchft counts local steps from the last sync; at every H / P it syncs the next fragment.
    h, count = 12, 4
    schedule = FragmentSchedule(h, count, overlap=0)
    expected = {(k + 1) * h // count: k % count for k in range(5 * count)}
    found = {t: p for t in range(5 * h + 1) for p in schedule.sent(t)}
    assert {t: (p - 1) % count for t, p in found.items()} == expected  # ours begins with 1


# ---- equalities ----------------------------------------------------------------------------------


def test_one_fragment_without_overlap_mixing_and_quantiser_is_diloco():
    outer = OuterSgd(0.7, 0.9)
    streaming = StreamingDiLoCo(inner_steps=3, optimizer=outer, fragments=1, overlap=0, mixing=0.0)
    a, b = (
        run(strategy, 3, workers=3, rule=ADAMW, batch_size=16)
        for strategy in (streaming, DiLoCo(inner_steps=3, optimizer=outer))
    )
    assert a.summary["model_sha256"] == b.summary["model_sha256"]
    assert a.summary["trace_sha256"] == b.summary["trace_sha256"]


def test_it_is_algorithm_2_with_torchs_optimizers():
    h, tau, alpha, rounds = 6, 3, 0.3, 3  # an overlap of more than H / P: two are in flight
    outer = OuterSgd(lr=0.4, momentum=0.9)
    strategy = StreamingDiLoCo(
        inner_steps=h, optimizer=outer, fragments=3, overlap=tau, mixing=alpha
    )
    got = run(strategy, rounds, rule=ADAMW)

    workers = references(2, ADAMW)
    start = workers[0].w.astype(np.float32)
    servers = [Nesterov(CUT.take(start, p), outer) for p in range(3)]
    in_flight = {}
    for t in range(1, h * rounds + 1):
        for worker in workers:
            worker.train(1)
        for p, server in enumerate(servers):
            due = t - (p * h // 3 or h)
            if due >= 0 and due % h == 0:
                in_flight[p] = np.mean(
                    [server.theta - CUT.take(worker.w, p) for worker in workers], axis=0
                )
            if due - tau >= 0 and (due - tau) % h == 0:
                server.step(in_flight.pop(p))
                for worker in workers:
                    w = worker.w
                    CUT.put(w, p, alpha * CUT.take(w, p) + (1 - alpha) * server.theta)
                    worker.w = w
    # The all-reduce of the end of the last round has an outcome that nobody goes on from.
    for p, delta in in_flight.items():
        servers[p].step(delta)
    expected = np.empty_like(start)
    for p, server in enumerate(servers):
        CUT.put(expected, p, server.theta)
    np.testing.assert_allclose(got.rows[-1], expected, atol=5e-5)
    assert np.abs(got.rows[-1] - got.rows[0]).max() > 0.05


def test_of_identical_workers_that_keep_nothing_the_overlapped_steps_vanish():
    # Plain SGD remembers nothing, so what was done during the overlap leaves no trace: with tau
    # more steps for every all-reduce it is local SGD of one worker.
    overlapped = StreamingDiLoCo(
        inner_steps=5, optimizer=AVERAGE, fragments=1, overlap=2, mixing=0.0
    )
    got = run(overlapped, 4, workers=2, data=DATA[1], rule=SGD, batching="off")
    (alone,) = references(1, SGD)
    expected = [alone.w]
    for steps in (5, 3, 3, 3):  # of 5 steps to the next all-reduce, 2 are undone
        alone.train(steps)
        expected.append(alone.w)
    np.testing.assert_allclose(got.rows, expected, atol=2e-6)


def test_what_a_worker_sent_before_it_crashed_is_not_in_a_mean_that_begins_later():
    # Worker 0 is three times as fast. It has sent, and is in its overlapped steps when it crashes;
    # worker 1 has yet to send.
    fleet = fleet_of([Client(flops=3e7), Client(flops=1e7)], faults=crashes((0, 1)))
    strategy = StreamingDiLoCo(inner_steps=4, optimizer=AVERAGE, fragments=1, overlap=2, mixing=0.0)
    got = run(strategy, 2, fleet=fleet)
    _, slow = references(2, SGD)
    slow.train(4)
    np.testing.assert_allclose(got.rows[1], slow.w, atol=2e-6)
    assert [got.result.train_metrics_clientapp[v]["islands"] for v in (1, 2)] == [1, 2]


# ---- bytes ---------------------------------------------------------------------------------------


def sent(run_of, workers):
    """Returns what each worker sent in each all-reduce, by order of time."""
    return [row["bytes"] for row in of(run_of.run.trace, Event.ALL_REDUCE)][::workers]


@pytest.mark.parametrize(
    ("quantiser", "entry_bits", "per_tensor"),
    [(None, 32, 0), (Cast("bf16"), 16, 0), (Cast("fp8_e4m3"), 8, 4), (Cast("e3m0"), 4, 4)],
    ids=["fp32", "bf16", "fp8", "e3m0"],
)
def test_an_all_reduce_carries_what_was_encoded_of_a_fragment(quantiser, entry_bits, per_tensor):
    got = run(StreamingDiLoCo(inner_steps=3, fragments=3), 3, compressor=quantiser)
    # Fragment 0 after 3, 6 and 9 steps, the others a step or two before; a ring of two sends all of
    # a payload: half to the other, then the other half.
    order = [1, 2, 0, 1, 2, 0, 1, 2, 0]
    header = 0 if quantiser is None else 6
    expected = [
        header + per_tensor * len(CUT.shapes[p].shapes) + -(-CUT.shapes[p].size * entry_bits // 8)
        for p in order
    ]
    assert sent(got, 2) == expected
    peak = max(shapes.size for shapes in CUT.shapes)
    assert max(expected) == pytest.approx(peak * entry_bits / 8, rel=0.2)
    assert got.summary["totals"]["bytes_up"] == 2 * sum(expected)
    assert got.summary["totals"]["bytes_down"] == 0


def test_the_mean_is_of_what_the_workers_sent():
    outer = OuterSgd(0.5, 0.0, nesterov=False)
    quantiser = Cast("e3m0")
    got = run(DiLoCo(inner_steps=2, optimizer=outer), 2, compressor=quantiser)
    workers = references(2, SGD)
    theta = workers[0].w
    (shapes,) = Fragments.of(LAYOUT, 1).shapes
    for version in (1, 2):
        decoded = []
        for worker in workers:
            worker.w = theta
            worker.train(2)
            delta = (theta - worker.w).astype(np.float32)
            payload, _ = quantiser.encode(delta, shapes, {}, np.random.default_rng(0))
            decoded.append(quantiser.decode(payload, shapes))
        theta = theta - 0.5 * np.mean(decoded, axis=0)
        # An entry next to the middle of two codes may go either way.
        off = np.abs(got.rows[version] - theta) > 1e-5
        assert off.mean() < 0.01
        theta = got.rows[version].astype(np.float64)


def test_finer_outer_gradients_are_nearer_to_float32():
    outer = OuterSgd(0.7, 0.9)
    runs = {
        name: run(
            DiLoCo(inner_steps=4, optimizer=outer),
            3,
            batch_size=16,
            compressor=None if name == "fp32" else Cast(name),
        ).rows[-1]
        for name in ("fp32", "bf16", "fp8_e4m3", "e3m0")
    }
    errors = [np.linalg.norm(runs[n] - runs["fp32"]) for n in ("bf16", "fp8_e4m3", "e3m0")]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.5 * np.linalg.norm(runs["fp32"])


# ---- what it takes -------------------------------------------------------------------------------


def refused(words, make):
    with pytest.raises(ConfigError, match=words):
        make()


def test_bad_arguments_are_refused_with_the_remedy():
    refused(
        "overlap is 5; it must be below inner_steps, 5.*eager_updates",
        lambda: StreamingDiLoCo(inner_steps=5, overlap=5),
    )
    refused("overlap is -1", lambda: StreamingDiLoCo(inner_steps=5, overlap=-1))
    refused("mixing is 1", lambda: StreamingDiLoCo(inner_steps=5, mixing=1.0))
    refused("inner_steps is 0", lambda: StreamingDiLoCo(inner_steps=0))
    refused(
        "inner_steps is 10, which 3 fragments do not divide.*multiple of 3",
        lambda: StreamingDiLoCo(inner_steps=10, fragments=3),
    )
    refused("pattern is 'random'", lambda: StreamingDiLoCo(inner_steps=4, pattern="random"))
    refused(
        "fragments is 8, but the model has 7 blocks",
        lambda: OuterSteps(StreamingDiLoCo(inner_steps=8, fragments=8)).cut(GPT),
    )
    refused(
        "inner_steps is 10, which 3 fragments",
        lambda: OuterSteps(StreamingDiLoCo(inner_steps=10)).cut(GPT),
    )


def test_a_model_that_cannot_be_cut_is_refused_before_the_run():
    strategy = StreamingDiLoCo(inner_steps=8, fragments=4)
    with pytest.raises(ConfigError, match="has 3 blocks"):
        run(strategy, 1)
    assert len(Layout.of(MODEL()).floats) == 6


def test_models_with_statistics_are_refused():
    normed = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    for layout in (Layout.of(normed), layout_of(ArrayRecord(normed.state_dict()))):
        refused("made of differences of parameters.*BatchNorm", lambda x=layout: Fragments.of(x, 1))


def test_sparse_outer_gradients_may_be_sent_too():
    got = run(DiLoCo(inner_steps=2), 2, compressor=TopK(density=0.1))
    assert np.isfinite(got.rows[-1]).all()
