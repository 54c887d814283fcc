"""Connects a run to its record: evaluations, with the virtual time, bytes and joules so far."""

from __future__ import annotations

import hashlib
import inspect
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from numbers import Real
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.server.history import History
from flwr.serverapp.strategy import Result, Strategy

from fl.metrics import Progress, RunWriter, Status, Totals
from fl.recovery import Recovery
from fl.simulation.grid import SimGrid, mean_metrics


class AppliedUpdates:
    """What asynchronous clients reported since the last row.

    Attributes:
        staleness: how many updates had each staleness.
    """

    def __init__(self) -> None:
        self.staleness: Counter[int] = Counter()
        self._sums: dict[str, float] = {}
        self._weight = 0.0

    def add(self, staleness: int, metrics: Mapping[str, Any]) -> None:
        """Counts one update."""
        self.staleness[staleness] += 1
        weight = metrics.get("num-examples", 1)
        if not isinstance(weight, int | float) or not 0 < weight < math.inf:
            return
        self._weight += weight
        for name, value in metrics.items():
            if isinstance(value, float):
                self._sums[name] = self._sums.get(name, 0.0) + weight * value

    def means(self) -> dict[str, float]:
        """Returns mean metrics, weighted by examples, under `train_...`, and mean staleness."""
        count = self.staleness.total()
        if not count:
            return {}
        means = {"staleness": sum(s * n for s, n in self.staleness.items()) / count}
        for name, total in self._sums.items():
            name = name.replace("-", "_")
            means[name if name.startswith("train_") else f"train_{name}"] = total / self._weight
        return means


_SHOWN = 5  # different errors of clients

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
PureEvaluateFn = Callable[[int, ArrayRecord], MetricRecord]


class Recorder:
    """Collects what a run measures and passes it to the writer and the progress display.

    A row of `metrics.csv` is an evaluation by the server, or, in apps whose server does not
    evaluate, a round. It carries the latest metrics reported by clients as well: those of training
    under `train_...`, those of federated evaluation under `client_...`, as means weighted by
    examples.

    Args:
        writer: where rows go.
        progress: display.
        recovery: keeps what a resumed run finds again; None keeps nothing.
    """

    def __init__(
        self, writer: RunWriter, progress: Progress, recovery: Recovery | None = None
    ) -> None:
        self.writer = writer
        self.final_arrays: ArrayRecord | None = None
        self._progress = progress
        self._grid: SimGrid | None = None
        self._began = time.perf_counter()
        self._recovery = recovery
        self._reports: list[tuple[str, list[Message]]] = []  # of rounds, not looked at yet
        self._pending: dict[str, float] = {}
        self._pending_costs: dict[str, float] = {}
        self._rounds = 0
        self._status = Status()
        self._applied = AppliedUpdates()
        self._initial: ArrayRecord | None = None
        self._limit_s: float | None = None

    def expect(self, initial: ArrayRecord, limit_s: float | None = None) -> None:
        """Notes that this run is to learn something.

        Args:
            initial: the model that it begins with.
            limit_s: time after which it ends, s; None is no limit.
        """
        self._initial, self._limit_s = initial, limit_s

    def attach(self, grid: SimGrid) -> None:
        """Takes time, bytes and joules from this grid from now on."""
        self._grid = grid

    # ---- what happens ------------------------------------------------------------------------

    def on_applied(self, staleness: int, metrics: Mapping[str, Any]) -> None:
        """Notes an update that an asynchronous strategy used, until the next row is written."""
        self._applied.add(staleness, metrics)

    def on_round(self, message_type: str, replies: list[Message]) -> None:
        """Notes the clients' metrics after a `send_and_receive`, even one that nobody answered."""
        kind = message_type.split(".")[0]
        if kind == "train":
            self._flush()  # the round before ended without an evaluation by the server
            self._rounds += 1
        prefix = {"train": "train_", "evaluate": "client_"}.get(kind)
        if prefix is None:
            return
        # Looking at a reply may mean to wait for its client: the strategy comes first.
        self._reports.append((prefix, replies))
        self._pending_costs = self.costs(self._rounds)

    def on_progress(self) -> None:
        """Refreshes the display; called after every instant of virtual time."""
        grid, status = self._grid, self._status
        if grid is not None:
            status.time_s = grid.engine.queue.now
            status.in_flight = grid.engine.in_flight
            status.faults = grid.trace.num_faults
            status.client_updates = grid.client_updates
        self._progress.update(status)

    def recording(self, evaluate: EvaluateFn) -> EvaluateFn:
        """Returns `evaluate` with its results recorded; one that already is, unchanged."""
        if getattr(evaluate, "recorded", False):
            return evaluate

        @wraps(evaluate)
        def recorded(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = evaluate(server_round, arrays)
            if metrics is not None:
                self.evaluation(server_round, metrics)
            return metrics

        recorded.recorded = True  # type: ignore[attr-defined]
        return recorded

    def evaluating(self, evaluate: PureEvaluateFn) -> PureEvaluateFn:
        """Returns `evaluate` with its results kept for a resumed run; see `Recovery.evaluating`."""
        return evaluate if self._recovery is None else self._recovery.evaluating(evaluate)

    def evaluation(self, server_round: int, metrics: Mapping[str, Any]) -> None:
        """Writes one row: the server's metrics and the clients' latest, at the current cost."""
        row = {k: float(v) for k, v in metrics.items() if isinstance(v, Real)}
        self._read_reports()
        self._pending_costs = self.costs(server_round)
        self._pending.update(self._applied.means())
        self._pending.update(row)
        self._flush()

    def late_evaluation(self, metrics: Mapping[str, Any], costs: Mapping[str, float]) -> None:
        """Writes one row for a model of an earlier time; what clients reported since is left out.

        Args:
            metrics: the server's.
            costs: what `costs` returned at that time.
        """
        self._read_reports()  # so that they are counted
        self._pending, self._applied = {}, AppliedUpdates()
        self._pending_costs = dict(costs)
        self._pending.update({k: float(v) for k, v in metrics.items() if isinstance(v, Real)})
        self._flush()

    def costs(self, server_round: int) -> dict[str, float]:
        """Returns the columns of a row that say what it took to get here."""
        totals = self.totals()
        return {
            "round": server_round,
            "time_s": totals.virtual_s,
            "wall_s": totals.wall_s,
            "bytes_down": totals.bytes_down,
            "bytes_up": totals.bytes_up,
            "energy_j": totals.compute_j + totals.radio_j + totals.idle_j,
        }

    def final(self, arrays: ArrayRecord | None) -> None:
        """Keeps the final model."""
        if arrays is not None and len(arrays):
            self.final_arrays = arrays

    @contextmanager
    def observing_strategies(self) -> Iterator[None]:
        """Records evaluations and the final model of any strategy started in the block.

        Apps written by others hand their evaluation function to `Strategy.start` and keep its
        result to themselves; this listens at that call, also where a strategy has a `start` of its
        own. Flower's older servers note what they evaluate in a `History`.
        """
        starts = {kind: kind.__dict__["start"] for kind in _with_own_start(Strategy)}  # type: ignore[type-abstract]
        add_metrics = History.add_metrics_centralized
        for kind, start in starts.items():
            kind.start = self._observed(start)  # type: ignore[method-assign]

        def added(history: History, server_round: int, metrics: dict[str, Any]) -> None:
            add_metrics(history, server_round, metrics)
            _, loss = history.losses_centralized[-1]  # noted just before
            self.evaluation(server_round, {"loss": loss, **metrics})

        History.add_metrics_centralized = added  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            History.add_metrics_centralized = add_metrics  # type: ignore[method-assign]
            for kind, start in starts.items():
                kind.start = start  # type: ignore[method-assign]

    def _observed(self, start: Callable[..., Result]) -> Callable[..., Result]:
        takes = inspect.signature(start)

        @wraps(start)
        def observed(*args: Any, **kwargs: Any) -> Result:
            call = takes.bind(*args, **kwargs)
            if call.arguments.get("grid") is not self._grid:
                return start(*args, **kwargs)
            evaluate = call.arguments.get("evaluate_fn")
            if evaluate is not None:
                call.arguments["evaluate_fn"] = self.recording(evaluate)
            result = start(*call.args, **call.kwargs)
            if isinstance(result, Result):
                self.final(result.arrays)
            return result

        return observed

    # ---- how it ends -------------------------------------------------------------------------

    def flush(self) -> None:
        """Writes what clients reported after the last row."""
        self._flush()

    def totals(self) -> Totals:
        """Returns the run's cost so far."""
        wall_s = None if self._recovery is None else self._recovery.wall_s
        if wall_s is None:
            wall_s = time.perf_counter() - self._began
        if self._grid is None:
            return Totals(wall_s=wall_s)
        engine = self._grid.engine
        return Totals(
            virtual_s=engine.queue.now,
            wall_s=wall_s,
            bytes_down=engine.bytes_down,
            bytes_up=engine.bytes_up,
            compute_j=engine.energy_j["compute"],
            radio_j=engine.energy_j["radio"],
            idle_j=engine.energy_j["idle"],
            client_updates=self._grid.client_updates,
            utilisation=self._grid.utilisation,
        )

    @property
    def _source(self) -> Any:
        """The grid that the run is on; it counts messages, replies and errors."""
        return self._grid

    def nothing_learnt(self) -> str | None:
        """Returns why a run that was to learn something has not; None if it has.

        A run was to learn if clients were asked to train, or if `expect` was called. Then clients
        must have answered, and a model that is known must have changed.
        """
        source = self._source
        if source is None:
            return None
        asked, updates = source.train_messages, source.client_updates
        now = self.totals().virtual_s
        if asked and not updates:
            said = f"of {asked} requests to train, none brought an update in {now:.6g} s"
        elif self._initial is None or _differ(self._initial, self.final_arrays):
            return None
        elif self._limit_s is not None and now >= self._limit_s:
            said = (
                f"time_limit_s={self._limit_s:g} ended the run before the first new model, with "
                f"{updates} updates of clients: raise it"
            )
        elif asked:
            said = f"{updates} updates of clients came in {now:.6g} s, and the model never changed"
        else:
            said = f"no client was asked to train in {now:.6g} s"
        return "; ".join([f"nothing was learnt: {said}", *_reasons(source)])

    def model_sha256(self) -> str | None:
        """Returns the hash of the final model: names, dtypes, shapes and values."""
        if self.final_arrays is None:
            return None
        digest = hashlib.sha256()
        for name, array in self.final_arrays.items():
            digest.update(f"{name}|{array.dtype}|{tuple(array.shape)}|{array.stype}|".encode())
            digest.update(array.data)
        return digest.hexdigest()

    # ---- inside ------------------------------------------------------------------------------

    def _read_reports(self) -> None:
        reports, self._reports = self._reports, []
        for prefix, replies in reports:
            for name, value in mean_metrics(replies).items():
                name = name.replace("-", "_")
                self._pending[name if name.startswith(prefix) else prefix + name] = value

    def _flush(self) -> None:
        self._read_reports()
        if self._pending:
            staleness = self._applied.staleness
            self.writer.evaluation(
                {**self._pending_costs, **self._pending},
                {"staleness": staleness} if staleness else {},
            )
            self._pending = {}
            self._applied = AppliedUpdates()
            self._status.round = int(self._pending_costs["round"])
            self._status.metrics = _shown(self.writer.history[-1])
            self.on_progress()


def _reasons(source: Any) -> list[str]:
    """Returns what is known to have gone wrong with the clients' tasks."""
    errors = [f"{n} failed with {said}" for said, n in source.client_errors.most_common(_SHOWN)]
    hidden = len(source.client_errors) - _SHOWN
    if hidden > 0:
        errors.append(f"{hidden} other errors")
    faults = source.trace.faults()
    faults.pop("client_error", None)
    errors += [f"{number} {name.replace('_', ' ')}" for name, number in faults.items()]
    if faults.keys() & {"timeout", "expired"} and not source.client_errors:
        errors.append("with a larger round_timeout_s, clients have more time")
    return errors


def _differ(one: ArrayRecord, other: ArrayRecord | None) -> bool:
    """Returns whether two models of one form have different values."""
    if other is None or one is other:
        return False
    return any(
        not np.array_equal(array.numpy(), other[name].numpy()) for name, array in one.items()
    )


def _with_own_start(kind: type[Strategy]) -> list[type[Strategy]]:
    own = [kind] if "start" in kind.__dict__ else []
    return own + [found for child in kind.__subclasses__() for found in _with_own_start(child)]


def _shown(row: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics of a row worth a place on one line: accuracies and losses."""
    return {name: value for name, value in row.items() if "acc" in name or "loss" in name}
