"""What this host takes for the terms of a runtime: measured, in processor time.

Each measurement is repeated, and what is kept are the single values. A host that does something
else beside makes the wall's time longer, and processor time hardly: so all values are of the
latter, and the ratio of the two says how far they can be believed.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fl.execution.contract import Payload, Request, RunInfo
from fl.flower.identity import assume_identity
from fl.flower.private import deflated, inflated, node_at
from fl.flower.records import from_record
from fl.randomness import SEED_KEY
from fl.vectors.layout import Layout
from fl.vectors.rows import mean
from fl.vectors.threads import limit_blas, limit_threads

HIDDEN = (16, 256, 1024, 4096)  # widths of the model whose steps are measured
BATCHES = (8, 32, 128)
_LEAST_S = 0.05  # of processor time, that steps are measured for
_SIZES = (2**18, 2**23)  # bytes of the models that are serialised
_ROWS = 8  # models that are added up
_CALLS = 50  # of a SuperNode, that are measured together
_STARTING = "import flwr.supernode.cli.flwr_clientapp, fl.deployment.client as c; c.prepare(())"


@dataclass(frozen=True)
class StepTime:
    """How long one local step takes.

    Attributes:
        parameters: of the model.
        flops: of the step.
        seconds: of each repetition.
    """

    parameters: int
    flops: float
    seconds: tuple[float, ...]


@dataclass
class Measured:
    """What was measured, s of processor time where nothing else is said.

    Attributes:
        start: of each process that was started.
        age: of the same, by the wall.
        decode, encode: from messages to models and back, for each byte.
        aggregate: for each number of each model that is added up.
        steps: of local training.
        calls: of a SuperNode to its SuperLink, both ends; only on a host that has both.
        call_age: of the same, by the wall.
        processor_s, wall_s: that all of it took.
    """

    start: list[float] = field(default_factory=list)
    age: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)
    aggregate: list[float] = field(default_factory=list)
    steps: list[StepTime] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    call_age: list[float] = field(default_factory=list)
    processor_s: float = 0.0
    wall_s: float = 0.0

    @property
    def busy(self) -> float:
        """The wall's time over the processor's; 1 on an idle host."""
        return self.wall_s / self.processor_s if self.processor_s else 1.0

    def timed(self, work: Callable[[], object]) -> float:
        """Does work, and returns the s of processor time that it took."""
        wall, processor = time.perf_counter(), time.process_time()
        work()
        took = time.process_time() - processor
        self.processor_s += took
        self.wall_s += time.perf_counter() - wall
        return took


def measure(repetitions: int = 5, *, processes: bool = True) -> Measured:
    """Measures this host; takes about half a minute, on one core.

    Args:
        repetitions: of each measurement.
        processes: start processes, too; a SuperNode's process is started by others.
    """
    measured = Measured()
    with limit_threads(1), limit_blas(1):
        _measure_messages(measured, repetitions)
        _measure_sums(measured, repetitions)
        for hidden in HIDDEN:
            _measure_steps(measured, hidden, repetitions)
    if processes:
        _measure_starts(measured, repetitions)
    return measured


def measure_calls(measured: Measured, address: str, superlink: int, repetitions: int = 5) -> None:
    """Measures what one call of a SuperNode takes both ends; some seconds, on Linux.

    Args:
        measured: where it is kept.
        address: of a SuperLink of this host, without TLS.
        superlink: the id of its process.
        repetitions: of many calls each.
    """
    with node_at(address) as call:
        call()  # what the first one makes the others reuse
        for _ in range(repetitions):
            wall, before = time.perf_counter(), time.process_time() + _processor_s(superlink)
            for _ in range(_CALLS):
                call()
            took = time.process_time() + _processor_s(superlink) - before
            age = time.perf_counter() - wall
            measured.calls.append(took / _CALLS)
            measured.call_age.append(age / _CALLS)
            measured.processor_s += took
            measured.wall_s += age


def process_age_s() -> float:
    """Returns how long ago this process was started, in s of the wall, to a hundredth; on Linux."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - _ticks("self", 19) / os.sysconf("SC_CLK_TCK")


def _processor_s(process: int) -> float:
    """Returns the processor time that a process has taken so far, s, to a hundredth."""
    ticks = _ticks(str(process), 11) + _ticks(str(process), 12)  # as user, and in the kernel
    return ticks / os.sysconf("SC_CLK_TCK")


def _ticks(process: str, field: int) -> int:
    """Returns a field of /proc/.../stat, counted from after the command's name."""
    with open(f"/proc/{process}/stat", encoding="ascii") as file:
        return int(file.read().rpartition(")")[2].split()[field])


# ---- one after the other -------------------------------------------------------------------------


def _measure_messages(measured: Measured, repetitions: int) -> None:
    assume_identity()
    rng = np.random.default_rng(0)
    for _ in range(repetitions):
        took = []
        for size in _SIZES:
            letter = _Letter(rng.standard_normal(size // 4, dtype=np.float32))
            took.append((measured.timed(letter.encode), measured.timed(letter.decode)))
        (encode_1, decode_1), (encode_2, decode_2) = took
        more = _SIZES[1] - _SIZES[0]
        measured.encode.append(max(0.0, encode_2 - encode_1) / more)
        measured.decode.append(max(0.0, decode_2 - decode_1) / more)


class _Letter:
    """A model as a message, and back."""

    def __init__(self, row: NDArray[np.float32]) -> None:
        self._row = row
        self._layout = Layout.of_entries([("w", row.shape, "float32")])
        self._name = ""
        self._objects: dict[str, bytes] = {}

    def encode(self) -> None:
        record = ArrayRecord({"w": Array(self._row)})
        message = Message(RecordDict({"arrays": record}), 1, "train")
        self._name, self._objects = deflated(message)

    def decode(self) -> None:
        content = inflated(self._name, self._objects).content
        from_record(self._layout, content.array_records["arrays"])


def _measure_sums(measured: Measured, repetitions: int) -> None:
    models = np.random.default_rng(0).standard_normal((_ROWS, _SIZES[1] // 4), dtype=np.float32)
    weights = np.arange(1.0, _ROWS + 1.0)
    mean(models, weights)  # the first makes what the others reuse
    for _ in range(repetitions):
        took = measured.timed(partial(mean, models, weights))
        measured.aggregate.append(took / models.size)


def _measure_steps(measured: Measured, hidden: int, repetitions: int) -> None:
    from fl.runs.build import build  # heavy
    from fl.runs.experiment import app_of
    from fl.runs.python import composed

    words = ["data=digits", "model=mlp", f"model.hidden=[{hidden}]", "num_clients=1"]
    words += ["partition=iid", "client.batching=off"]
    with composed(words) as config:
        experiment = build(config)
    app, model = app_of(experiment), experiment.initial()
    run = RunInfo(0, 1, {SEED_KEY: 0})
    for batch in BATCHES:

        def train(steps: int, batch: int = batch) -> None:
            told = ConfigRecord({"local-steps": steps, "batch-size": batch})
            payload = Payload(RecordDict({"arrays": model, "config": told}))
            request = Request(0, 0, payload, "train", "1", ttl=60.0)
            reply = app(request.message(own_content=False), request.context(run))
            if reply.has_error():
                raise RuntimeError(reply.error.reason)

        def flops(steps: int, batch: int = batch) -> float:
            told = ConfigRecord({"local-steps": steps, "batch-size": batch})
            payload = Payload(RecordDict({"arrays": model, "config": told}))
            return float(app.plan(payload, "train", 0, 1e-9).flops)

        train(1)
        steps = 4
        while measured.timed(partial(train, steps)) < _LEAST_S:
            steps = 2 * steps
        seconds = []
        for _ in range(repetitions):
            one, many = measured.timed(partial(train, 1)), measured.timed(partial(train, steps + 1))
            seconds.append(max(0.0, many - one) / steps)
        parameters = experiment.app.layout.size
        measured.steps.append(
            StepTime(parameters, (flops(steps + 1) - flops(1)) / steps, tuple(seconds))
        )


def _measure_starts(measured: Measured, repetitions: int) -> None:
    command: Sequence[str] = [sys.executable, "-c", _STARTING]
    subprocess.run(command, check=True)  # what is on disk comes to memory
    for _ in range(repetitions):
        wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        measured.start.append(took)
        measured.processor_s += took
        measured.age.append(time.perf_counter() - wall)
        measured.wall_s += measured.age[-1]


# ---- as a message --------------------------------------------------------------------------------


def to_metrics(measured: Measured) -> MetricRecord:
    """Returns what was measured, for a reply."""
    steps = measured.steps
    return MetricRecord(
        {
            "start": measured.start,
            "age": measured.age,
            "decode": measured.decode,
            "encode": measured.encode,
            "aggregate": measured.aggregate,
            "parameters": [step.parameters for step in steps],
            "flops": [step.flops for step in steps],
            "step-seconds": [second for step in steps for second in step.seconds],
            "processor-s": measured.processor_s,
            "wall-s": measured.wall_s,
        }
    )


def from_metrics(metrics: MetricRecord) -> Measured:
    """Returns what a reply says that was measured.

    Raises:
        ValueError: it is no such record.
    """

    def numbers(name: str) -> list[float]:
        values = metrics.get(name)
        if not isinstance(values, list) or not all(0 <= x < np.inf for x in values):
            raise ValueError(f"{name} is {values!r:.60}; it must be a list of numbers of s")
        return [float(x) for x in values]

    seconds, flops, parameters = map(numbers, ("step-seconds", "flops", "parameters"))
    each = len(seconds) // len(flops) if flops else 0
    if each * len(flops) != len(seconds) or len(parameters) != len(flops):
        raise ValueError("its steps have different numbers of repetitions")
    steps = [
        StepTime(int(d), f, tuple(seconds[i * each : (i + 1) * each]))
        for i, (d, f) in enumerate(zip(parameters, flops, strict=True))
    ]
    processor, wall = metrics.get("processor-s"), metrics.get("wall-s")
    if not isinstance(processor, float) or not isinstance(wall, float):
        raise ValueError("it does not say how long it took")
    lists = {name: numbers(name) for name in ("start", "age", "decode", "encode", "aggregate")}
    return Measured(**lists, steps=steps, processor_s=processor, wall_s=wall)
