"""Coded rounds with real clients: what is decoded is the gradient of all data, whoever is late."""

from __future__ import annotations

from collections import Counter

import every_strategy
import numpy as np
import pytest
import torch
from every_strategy import configured
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from stand_ins import FakeExecutor, FixedWork, Scripted, ScriptedFaults
from torch.nn.functional import cross_entropy

from fl import simulate
from fl.data import Partitions
from fl.errors import ConfigError
from fl.execution.contract import Result
from fl.runs.build import build
from fl.runs.experiment import app_of
from fl.runs.run import serve
from fl.simulation.cost import CostModel
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.trace import Event, Trace
from fl.simulation.world.faults import TaskFaults
from fl.simulation.world.fleets import durations
from fl.simulation.world.slowdowns import Constant
from fl.strategies import CodedRounds, GradientCoding, OuterSgd

# ---- with the clients that there are -------------------------------------------------------------

N, JOBS, LR = 6, 6, 0.5
SMALL = [
    *(f"num_clients={N}", f"num_rounds={JOBS}", f"strategy.min_available_nodes={N}"),
    *(f"strategy.optimizer.lr={LR}", "views=false", "partition=coded", "client.batch_size=null"),
    *("fleet=durations", "fleet/slowdown@fleet.task_slowdown=shifted_exponential"),
]
ONE = [*SMALL, "data=digits", "model=logistic"]
TWO = [*SMALL, "tasks.digits.model.hidden=[4]"]
CASES = {
    "repetition": ("gradient_coding", *ONE, "strategy.rule.s=2"),
    "cyclic": ("gradient_coding", *ONE, "strategy.rule.s=2", "strategy.rule.code=cyclic"),
    "waits": ("gradient_coding", *ONE, "strategy.mu=0.2", "strategy.wait_out=all"),
    "uncoded": ("gradient_coding", *ONE, "strategy.rule.s=0"),
    "sr_sgc": ("sr_sgc", *TWO, "strategy.rule.code=cyclic", "strategy.rule.lam=4"),
    "m_sgc": ("m_sgc", *TWO, "strategy.rule.lam=2"),
    "batches": ("m_sgc", *TWO, "strategy.rule.lam=2", "strategy.batch_size=7"),
}
QUICK = ("cyclic", "batches")


def ran(*overrides):
    """Returns an experiment and its run."""
    config = configured(*overrides)
    experiment = build(config)

    def server(grid, context, recorder):
        serve(experiment, config, grid, recorder)

    app = app_of(experiment)
    run = simulate(server, app, experiment.fleet, executor="serial", progress=False)
    return experiment, run


def descended(learning, scheme, size, steps):
    """Returns the weights after steps of gradient descent on all that workers hold.

    Or on so many examples of each chunk, one after the other.
    """
    data, model = learning.data, learning.model()
    chunks = {}
    for i in range(N):
        held = np.concatenate([scheme.chunks(part)[i] for part in range(scheme.parts)])
        chunks |= dict(zip(held, data.partitions[i].reshape(len(held), -1), strict=True))
    every = np.array(list(chunks.values()))
    assert len(every) == scheme.num_chunks
    size = size or every.shape[1]
    for t in range(steps):
        rows = every[:, np.arange(t * size, (t + 1) * size) % every.shape[1]].ravel()
        x, y = data.tensors(data.train, rows)
        model.zero_grad()
        cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for w in model.parameters():
                w -= LR * w.grad
    return {name: w.detach().numpy() for name, w in model.named_parameters()}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES]
)
def test_models_move_as_by_gradient_descent_on_all_data(case):
    experiment, run = ran(*CASES[case])
    assert run.summary["status"] == "completed"
    counts = {name: [row[name] for row in run.history[1:]] for name in ("stragglers", "waited_out")}
    assert (counts["stragglers"][-1] > 0) == (case != "uncoded")
    assert all(of == sorted(of) for of in counts.values())  # of all rounds so far
    tasks = experiment.tasks or {"": experiment}
    for i, (name, one) in enumerate(tasks.items()):
        steps = len(range(i, JOBS, len(tasks)))
        strategy = experiment.strategy
        for entry, w in descended(one, strategy.rule, strategy.batch_size, steps).items():
            key = f"{name}/{entry}" if name else entry
            np.testing.assert_allclose(run.arrays[key].numpy(), w, rtol=2e-4, atol=2e-5)


def test_workers_that_diverge_at_one_instant_end_the_run_whoever_was_first():
    """One diverges in an earlier round: the job is given up before the last answer is read."""

    def app(experiment):
        honest, made, asked = app_of(experiment), ClientApp(), Counter()

        @made.train()
        def train(message, context):
            reply, i = honest(message, context), context.node_config["partition-id"]
            asked[i] += 1
            if asked[i] >= 3 - 2 * (i == 3):
                sent = reply.content["gradient"].items()
                worst = {name: Array(np.full_like(g.numpy(), np.nan)) for name, g in sent}
                reply.content["gradient"] = ArrayRecord(worst)
            return Message(reply.content, reply_to=message)

        return made

    small = ["views=false", "tasks.digits.model.hidden=[4]"]
    _, run = every_strategy.ran("m_sgc", *small, app=app, cost_model=CostModel(seconds=0.0))
    assert run.summary["status"] == "diverged"
    assert run.summary["faults"]["not_finite"] == every_strategy.ROUNDS


def test_workers_without_the_chunks_of_the_scheme_are_refused():
    with pytest.raises(ConfigError, match=r"use partition=coded, without held-out examples"):
        build(configured("gradient_coding", *ONE, "partition=iid"))


def test_clients_that_send_something_else_are_refused():
    with pytest.raises(ConfigError, match=r"is for clients with CodedGradient"):
        build(configured("gradient_coding", *ONE, "client=gradient"))


@pytest.mark.parametrize(
    ("strategy", "overrides", "why"),
    [
        ("m_sgc", ["strategy.rule.W=3"], "has 3 jobs in flight, and there are 2 models"),
        ("m_sgc", ["tasks.digits.model.dropout=0.1"], r"draws \(dropout 0.1\)"),
        ("sr_sgc", ["compressor=int8"], "multiplied when SRSGC decodes it"),
        ("sr_sgc", ["attack=sign_flip", "num_byzantine=1"], "spoils the whole sum"),
    ],
)
def test_what_does_not_go_with_coded_work_is_refused(strategy, overrides, why):
    with pytest.raises(ConfigError, match=why):
        build(configured(strategy, *TWO, *overrides))


# ---- with workers that are written down ----------------------------------------------------------

START = np.array([4.0, -2.0], dtype=np.float32)


def answer(request):
    """A worker's combination of the gradients w + j of its chunks j."""
    config = request.payload.content["config"]
    w = request.payload.content["arrays"]["w"].numpy()
    scheme = SCHEMES[config["chunks"]]
    part = config["first-chunk"] // scheme.pieces
    B = np.broadcast_to(config["coefficients"], config["local-steps"])
    chunks = scheme.chunks(part)[request.client]
    g = sum(b * (w + j) for b, j in zip(B, chunks, strict=True)).astype(np.float32)
    content = {
        "arrays": ArrayRecord(),
        "gradient": ArrayRecord({"vector": Array(g)}),
        "metrics": MetricRecord({"num-examples": 1, "train-loss": 1.0}),
    }
    return Result(content=RecordDict(content))


SCHEMES = {s + 1: GradientCoding(4, s=s) for s in (0, 1, 3)}


def run(scheme, *, rounds=4, timeout=1e6, mu=1.0, wait_out="all", slow=(), **fleet):
    trace = Trace()
    grid = SimGrid(
        durations(4, 0, client_slowdown=Slow(slow), **fleet),
        FakeExecutor(answer),
        planner=lambda *_: FixedWork(1.0),
        trace=trace,
    )
    times = []
    strategy = CodedRounds(
        scheme, optimizer=OuterSgd(0.5, 0.0, False), mu=mu, wait_out=wait_out, min_available_nodes=1
    )
    strategy.start(
        grid,
        ArrayRecord({"w": Array(START)}),
        num_rounds=rounds,
        timeout=timeout,
        evaluate_fn=lambda version, arrays: times.append((grid.clock.now(), arrays["w"].numpy())),
    )
    return trace, [t for t, _ in times], [w.tolist() for _, w in times]


class Slow(Constant):
    """Clients that take so many times as long, by number."""

    def __init__(self, slow):
        self.slow = dict(slow)

    def of_clients(self, seed, purpose, num_clients):
        return np.array([self.slow.get(i, 1.0) for i in range(num_clients)])


def expected(rounds):
    """Returns w, w - (w + mean of 0, ..., 3) / 2 and so on."""
    w = [START.astype(float)]
    for _ in range(rounds):
        w.append(w[-1] - 0.5 * (w[-1] + 1.5))
    return np.array(w)


def test_a_straggler_is_waited_for_until_it_is_known_to_be_one():
    trace, times, w = run(SCHEMES[2], slow={3: 9.0})
    assert times == pytest.approx([0, 2, 4, 6, 8])  # (1 + mu) times the first, 1 s
    np.testing.assert_allclose(w, expected(4), rtol=1e-6)
    assert [Event(k) for k in trace.kind].count(Event.CANCELLED) == 3  # and the run's end


def test_two_stragglers_with_the_same_chunks_are_waited_out():
    _, times, w = run(SCHEMES[2], slow={2: 5.0, 3: 9.0})
    assert times == pytest.approx([0, 9, 18, 27, 36])
    np.testing.assert_allclose(w, expected(4), rtol=1e-6)
    _, times, w = run(SCHEMES[2], slow={2: 5.0, 3: 9.0}, wait_out="enough")
    assert times == pytest.approx([0, 5, 10, 15, 20])
    np.testing.assert_allclose(w, expected(4), rtol=1e-6)


def test_without_tolerance_a_round_ends_with_the_first_that_are_enough():
    _, times, _ = run(SCHEMES[2], slow={0: 3.0, 2: 5.0, 3: 9.0}, mu=0.0, wait_out="enough")
    assert times == pytest.approx([0, 5, 10, 15, 20])
    _, times, _ = run(SCHEMES[4], slow={0: 3.0, 2: 5.0, 3: 9.0}, mu=0.0, wait_out="enough")
    assert times == pytest.approx([0, 1, 2, 3, 4])  # everybody has everything


def test_a_worker_that_fails_is_a_straggler_and_asked_again_if_it_is_needed():
    half = TaskFaults(crash_at=0.5)
    fails = ScriptedFaults(script={(3, 0): half, (3, 1): half})
    _, times, w = run(SCHEMES[2], faults=fails)
    assert times == pytest.approx([0, 1, 2, 3, 4])
    np.testing.assert_allclose(w, expected(4), rtol=1e-6)
    trace, times, w = run(SCHEMES[1], faults=fails)  # nobody can be done without
    assert times == pytest.approx([0, 2.5, 3.5, 4.5, 5.5])  # again at 1 s, and at 1.5 s
    np.testing.assert_allclose(w, expected(4), rtol=1e-6)
    assert [Event(k) for k in trace.kind].count(Event.APPLIED) == 16


def test_a_worker_that_is_away_is_done_without_or_waited_for():
    away = {"availability": Scripted(4, {3: [20.5]}, offline=[3])}
    _, times, w = run(SCHEMES[2], **away)
    assert times == pytest.approx([0, 1, 2, 3, 4])
    np.testing.assert_allclose(w, expected(4), rtol=1e-6)
    _, times, w = run(SCHEMES[1], **away)
    assert times[1] > 20.5  # it is looked for every 10 s
    assert np.diff(times[1:]) == pytest.approx([1, 1, 1])
    np.testing.assert_allclose(w, expected(4), rtol=1e-6)


def test_a_worker_that_does_not_answer_in_time_has_failed():
    _, times, _ = run(SCHEMES[2], slow={2: 50.0}, mu=100.0, timeout=3.0)
    assert times == pytest.approx([0, 3, 6, 9, 12])


def test_partitions_are_checked_chunk_by_chunk():
    strategy, scheme = CodedRounds(SCHEMES[2]), SCHEMES[2]
    rows = np.arange(8).reshape(4, 2)  # two examples a chunk
    right = [rows[chunks].ravel() for chunks in scheme.chunks(0)]
    strategy.check_partitions(Partitions.from_arrays(right))
    for wrong in (right[:3], [right[0][::-1], *right[1:]], [right[0][:3], *right[1:]]):
        with pytest.raises(ConfigError, match="decodes what several workers make of the same"):
            strategy.check_partitions(Partitions.from_arrays(wrong))
    with pytest.raises(ConfigError, match=r"there are 5 clients and 4 workers: .*rule.n=5"):
        strategy.check_clients(5)
    with pytest.raises(ConfigError, match="wait_out is 'any'"):
        CodedRounds(scheme, wait_out="any")
