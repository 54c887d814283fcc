"""Connects a run to its record: evaluations, with the virtual time, bytes and joules so far."""

from __future__ import annotations

import hashlib
import inspect
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common import Parameters
from flwr.server import History
from flwr.server.strategy import Strategy as OlderStrategy
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from fl.errors import NoStep, NotFinite
from fl.flower.private import older_conversions, wrapping
from fl.flower.records import not_finite
from fl.reports import Progress, RunWriter, Status, Totals
from fl.reports.client_rows import ClientRow
from fl.reports.columns import Columns, Means, Number, Source
from fl.reports.target import Target
from fl.runs.journal import Recovery
from fl.simulation.grid import SimGrid
from fl.simulation.rounds import RoundCounter, round_of
from fl.strategies import ClusterModels

if TYPE_CHECKING:
    from fl.flower.grid_view import Snapshots
    from fl.runs.evaluation import EvaluationSchedule


class AppliedUpdates:
    """What asynchronous clients reported since the last row.

    Attributes:
        ages: how many updates had each age in versions, by the name of what that is: "staleness" of
            updates that arrived, "poll_gap" of those the server asked for.
        means: of their metrics.
    """

    def __init__(self) -> None:
        self.ages: dict[str, Counter[int]] = {}
        self.means = Means()

    def add(self, age: int, metrics: Mapping[str, Any], polled: bool) -> None:
        """Counts one update."""
        self.ages.setdefault("poll_gap" if polled else "staleness", Counter())[age] += 1
        self.means.add(metrics)

    def add_all(self, metrics: Sequence[Mapping[str, Any]], which: NDArray[np.int64]) -> None:
        """Counts updates that are not late, see `Means.add_all`."""
        if len(which):
            self.ages.setdefault("staleness", Counter())[0] += len(which)
            self.means.add_all(metrics, which)

    def mean_ages(self) -> dict[str, float]:
        """Returns the updates' mean age, by its name."""
        return {
            name: sum(age * n for age, n in counts.items()) / counts.total()
            for name, counts in self.ages.items()
        }


_SHOWN = 5  # different errors of clients,
_LONGEST = 100  # characters of each
_WORSE = 2.0  # times the first loss: above it, a run has a warning

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
PureEvaluateFn = Callable[[int, ArrayRecord], MetricRecord]


@dataclass
class _Row:
    """What a row of metrics.csv is made of, but for the server's metrics.

    Attributes:
        costs: its first columns.
        values: of the others.
        ages: of updates since the row before, see `AppliedUpdates`.
        measured: by the strategy since then.
    """

    costs: Mapping[str, float]
    values: dict[str, Number]
    ages: Mapping[str, Mapping[int, int]]
    measured: Mapping[str, float]


class Recorder:
    """Collects what a run measures and passes it to the writer and the progress display.

    A row of `metrics.csv` is an evaluation by the server, or, in apps whose server does not
    evaluate, a round (`fl.simulation.rounds`). It carries what clients have reported since the last
    row as well: in training under `train_...`, in federated evaluation under `client_...`, in
    answer to queries under `query_...`, as means weighted by examples.

    Args:
        writer: where rows go.
        progress: display.
        recovery: keeps what a resumed run finds again; None keeps nothing.
        save_models: which models to keep: "final", "best" by the writer's target, or both.
    """

    lasting = (
        *("writer", "_best", "_columns", "_pending_costs", "_open", "_rounds"),
        *("_unchanged", "_stayed", "_not_taken"),
    )

    def __init__(
        self,
        writer: RunWriter,
        progress: Progress,
        recovery: Recovery | None = None,
        save_models: Sequence[str] = ("final",),
    ) -> None:
        self.writer = writer
        self._save_models = save_models
        self._best: tuple[float, ArrayRecord] | None = None
        # A row whose metrics come later, of which model, and what returns them.
        self._open: tuple[_Row, int, ArrayRecord | None] | None = None
        self._later: Callable[[], Mapping[str, Any]] = dict
        self.final_arrays: ArrayRecord | None = None
        self.averaged_arrays: ArrayRecord | None = None  # what the last evaluation is of, if it is
        self._progress = progress
        self._grid: SimGrid | None = None
        self._began = time.perf_counter()
        self._recovery = recovery
        self._columns = Columns()
        self._reports: list[tuple[Source, list[Message]]] = []  # of exchanges, not looked at yet
        self._means: dict[Source, Means] = {}
        self._pending: dict[str, Number] = {}
        self._pending_costs: dict[str, float] = {}
        self._rounds = RoundCounter()
        self._reports_itself = False  # the strategy that runs says which replies it uses
        self._status = Status()
        self._applied = AppliedUpdates()
        self._initial: ArrayRecord | None = None
        self._limit_s: float | None = None
        self._may_stay = ""
        self._measured: dict[str, float] = {}  # by the strategy, since the last row
        self._unchanged = 0  # rounds that left the model as it was
        self._stayed = ""  # why the last of them did
        self._not_taken: dict[str, NotFinite] = {}  # models whose last step was not finite
        self._never_finite: frozenset[str] = frozenset()  # entries of the initial model, as masks

    def expect(
        self, initial: ArrayRecord, limit_s: float | None = None, may_stay: str = ""
    ) -> None:
        """Notes that this run is to learn something.

        Args:
            initial: the model that it begins with.
            limit_s: time after which it ends, s; None is no limit.
            may_stay: see `Driver.may_stay`.
        """
        self._initial, self._limit_s, self._may_stay = initial, limit_s, may_stay

    def expect_no_training(self) -> None:
        """Notes that clients do not train, so that the loss that they report is none."""
        self._columns.leave_out("train", "train-loss")

    def attach(self, grid: SimGrid) -> None:
        """Takes time, bytes and joules from this grid from now on."""
        self._grid = grid

    # ---- what happens ------------------------------------------------------------------------

    def on_applied(self, age: int, metrics: Mapping[str, Any], polled: bool) -> None:
        """Notes an update that an asynchronous strategy used, until the next row is written."""
        self._applied.add(age, metrics, polled)

    def on_used(self, metrics: Sequence[Mapping[str, Any]], which: NDArray[np.int64]) -> None:
        """Notes updates of one instant, of which there are few different reports."""
        self._applied.add_all(metrics, which)

    def on_step(self, why_not: NoStep | None, model: str) -> None:
        """Notes that a round has changed a model, or why not."""
        if why_not is None:
            self._not_taken.pop(model, None)
            return
        self._unchanged += 1
        self._stayed = str(why_not)
        if isinstance(why_not, NotFinite):
            self._not_taken[model] = why_not

    def on_measured(self, metrics: Mapping[str, float]) -> None:
        """Notes what the strategy has measured, until the next row is written."""
        self._measured.update(metrics)

    def on_sent(self, messages: Sequence[Message], *, exchange: bool) -> None:
        """Notes messages that the server sends.

        Args:
            messages: at least one.
            exchange: the server waits for the replies, in a `send_and_receive`.
        """
        kind = _kind(messages[0])
        if kind not in _SOURCES or (self._reports_itself and not (exchange and kind == "train")):
            return
        if self._rounds.sent(kind, round_of(messages[0]), len(messages)):
            self._flush()  # the round before ended without an evaluation by the server

    def on_replies(self, replies: Sequence[Message], *, exchange: str | None = None) -> None:
        """Notes replies that the server gets.

        Args:
            replies: any number.
            exchange: type of the messages of the `send_and_receive` that ends, perhaps without a
                reply; None if replies were pulled.
        """
        if exchange is not None:
            source = _SOURCES.get(exchange.partition(".")[0])
            if source is not None:
                # Looking at a reply may mean to wait for its client: the strategy comes first.
                self._rounds.ended()
                self._reports.append((source, list(replies)))
                self._pending_costs = self.costs(self._rounds.number)
            return
        if self._reports_itself:
            return
        for reply in replies:
            kind = _kind(reply)
            if kind not in _SOURCES:
                continue
            if self._rounds.answered(kind):
                self._flush()
            self._read(_SOURCES[kind], reply)
            self._pending_costs = self.costs(self._rounds.number)

    def on_progress(self) -> None:
        """Refreshes the display; called after every instant of virtual time."""
        grid, status = self._grid, self._status
        if grid is not None:
            status.time_s = grid.clock.elapsed()
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
                self.evaluation(server_round, metrics, arrays)
            return metrics

        recorded.recorded = True  # type: ignore[attr-defined]
        return recorded

    def evaluating(self, evaluate: PureEvaluateFn) -> PureEvaluateFn:
        """Returns `evaluate` with its results kept for a resumed run; see `Recovery.evaluating`."""
        return evaluate if self._recovery is None else self._recovery.evaluating(evaluate)

    @property
    def may_be_longer(self) -> bool:
        """Whether a longer run may go on from the journal, which it asks in the order of this one.

        So the last evaluation may not be noted after answers of a next round, which this one lacks,
        and the last round must be asked for as a whole.
        """
        return self._recovery is not None and self._recovery.keep

    @property
    def answered(self) -> bool:
        """Whether what is asked next may have an answer already, of a run that is resumed."""
        return self._recovery is not None and self._recovery.replaying

    def remember(self, kind: str, request: list[Any], compute: Callable[[], Any]) -> Any:
        """Returns what `compute` returns, kept for a resumed run; see `Recovery.remember`."""
        if self._recovery is None:
            return compute()
        return self._recovery.remember(kind, request, compute)

    def clients(self, server_round: int, rows: Sequence[ClientRow]) -> None:
        """Keeps what clients have at a round, each with models of its own."""
        self.writer.clients(server_round, self.totals().virtual_s, rows)

    def evaluation(
        self,
        server_round: int,
        metrics: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
        arrays: ArrayRecord | None = None,
    ) -> None:
        """Writes one row: the server's metrics and the clients' latest, at the current cost.

        Args:
            server_round: its number.
            metrics: the server's; or what returns them, which is called by `settle`: the row is
                written then.
            arrays: the model that was evaluated, if it is known.
        """
        self.settle()
        later = metrics if callable(metrics) else None
        row = {} if callable(metrics) else self._columns.row("server", metrics)
        self._read_reports()
        self._pending_costs = self.costs(server_round)
        if self._applied.ages:
            self._pending.update(self._applied.mean_ages())
            self._pending.update(self._columns.means("train", self._applied.means))
        if self._unchanged:
            self._pending["unchanged_rounds"] = self._unchanged
        if later is not None:
            self._open, self._later = (self._taken(), server_round, arrays), later
            return
        self._pending.update(row)
        self._flush()
        self._compare(arrays)

    def settle(self) -> None:
        """Writes the row whose metrics were still to come, if there is one."""
        if self._open is None:
            return
        (row, _, arrays), self._open = self._open, None
        row.values.update(self._columns.row("server", self._later()))
        self._write(row)
        self._compare(arrays)

    def late_evaluation(
        self, metrics: Mapping[str, Any], costs: Mapping[str, float], arrays: ArrayRecord
    ) -> None:
        """Writes one row for a model of an earlier time; what clients reported since is left out.

        Args:
            metrics: the server's.
            costs: what `costs` returned at that time.
            arrays: the model.
        """
        self.settle()
        self._read_reports()  # so that they are counted
        self._pending, self._applied, self._measured = {}, AppliedUpdates(), {}
        self._pending_costs = dict(costs)
        self._pending.update(self._columns.row("server", metrics))
        self._flush()
        self._compare(arrays)

    def enough(self) -> str | None:
        """Returns why the run is to end after the last row, by its target; None if it is not."""
        target = self.writer.target
        return None if target is None else target.enough(self.writer.history)

    def _compare(self, arrays: ArrayRecord | None) -> None:
        """Keeps the model of the last row if none before was as good."""
        target = self.writer.target
        if arrays is None or target is None or "best" not in self._save_models:
            return
        value = self.writer.history[-1].get(target.metric, math.nan)
        sign = 1.0 if target.mode == "max" else -1.0
        known = -math.inf if self._best is None else sign * self._best[0]
        if sign * value > known:  # a NaN never is
            self._best = value, arrays

    def costs(self, server_round: int) -> dict[str, float]:
        """Returns the columns of a row that say what it took to get here."""
        totals = self.totals()
        return {
            "round": server_round,
            "time_s": totals.virtual_s,
            "wall_s": totals.wall_s,
            "bytes_down": totals.bytes_down,
            "bytes_up": totals.bytes_up,
            "energy_j": totals.compute_j + totals.radio_j + totals.idle_j + totals.servers_j,
        }

    def confusion(self, counts: NDArray[np.int64]) -> None:
        """Keeps how many examples of each class the final model takes for which, shape (C, C)."""
        self.writer.confusion = counts

    def final(self, arrays: ArrayRecord | None) -> None:
        """Keeps the final model."""
        if arrays is not None and len(arrays):
            self.final_arrays = arrays

    @contextmanager
    def observing_strategies(self) -> Iterator[None]:
        """Records evaluations and the final model of any strategy that is used in the block.

        Apps written by others hand their evaluation function to `Strategy.start` and keep its
        result to themselves; this listens at that call, also where a strategy has a `start` of its
        own. Flower's older servers note what they evaluate in a `History`, and show every model to
        their strategy's `evaluate`.
        """
        shown: list[Parameters] = []
        try:
            with (
                wrapping(Strategy, "start", self._observed, subclasses=True),
                wrapping(OlderStrategy, "evaluate", partial(_watched, shown), subclasses=True),
                wrapping(History, "add_metrics_centralized", self._noted),
            ):
                yield
        finally:
            if self.final_arrays is None and shown:
                to_record = older_conversions().parameters_to_arrayrecord
                self.final(to_record(shown[0], keep_input=True))

    def _noted(self, add: Callable[..., None]) -> Callable[..., None]:
        @wraps(add)
        def added(history: History, server_round: int, metrics: dict[str, Any]) -> None:
            add(history, server_round, metrics)
            _, loss = history.losses_centralized[-1]  # noted just before
            self.evaluation(server_round, {"loss": loss, **metrics})

        return added

    def _observed(self, start: Callable[..., Result]) -> Callable[..., Result]:
        takes = inspect.signature(start)
        ours = start.__module__.partition(".")[0] == "fl"

        @wraps(start)
        def observed(*args: Any, **kwargs: Any) -> Result:
            call = takes.bind(*args, **kwargs)
            if call.arguments.get("grid") is not self._grid:
                return start(*args, **kwargs)
            self._never_finite = not_finite(call.arguments.get("initial_arrays"))
            evaluate = call.arguments.get("evaluate_fn")
            if evaluate is not None:
                call.arguments["evaluate_fn"] = self.recording(evaluate)
            before, self._reports_itself = self._reports_itself, self._reports_itself or ours
            try:
                result = start(*call.args, **call.kwargs)
            finally:
                self._reports_itself = before
            if isinstance(result, Result):
                self.final(result.arrays)
            return result

        return observed

    # ---- between rounds --------------------------------------------------------------------------

    @property
    def at_rest(self) -> bool:
        """Whether nothing has been reported since the last row."""
        since = (self._reports, self._means, self._pending, self._measured, self._applied.ages)
        return not any(since)

    def snapshots(self, grid: SimGrid, schedule: EvaluationSchedule) -> Snapshots | None:
        """Returns who keeps what there is between rounds; None if nobody does."""
        if self._recovery is None:
            return None
        return self._recovery.snapshots(grid, self, schedule)

    def go_on(self, evaluate: PureEvaluateFn, known: int) -> None:
        """Notes that what lasts has become that of a run that goes on.

        Args:
            evaluate: returns the metrics of the row that is still to be written.
            known: rows that had been written here.
        """
        if self._open is not None:
            _, server_round, arrays = self._open
            assert arrays is not None
            self._later = partial(evaluate, server_round, arrays)
        self.writer.went_on(known)

    # ---- how it ends -------------------------------------------------------------------------

    def flush(self) -> None:
        """Writes what clients reported after the last row."""
        self.settle()
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
            virtual_s=self._grid.clock.elapsed(),
            wall_s=wall_s,
            bytes_down=engine.bytes_down,
            bytes_up=engine.bytes_up,
            compute_j=engine.energy_j["compute"],
            radio_j=engine.energy_j["radio"],
            idle_j=engine.energy_j["idle"],
            servers_j=self._grid.servers_j,
            client_updates=self._grid.client_updates,
            utilisation=self._grid.utilisation,
            rounds=self._rounds.number,
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
        limited = self._limit_s is not None and now >= self._limit_s
        if asked and not updates and not limited:
            said = f"of {asked} requests to train, none brought an update in {now:.6g} s"
        elif self._initial is None or _differ(self._initial, self.final_arrays):
            return None
        elif limited:
            said = (
                f"time_limit_s={self._limit_s:g} ended the run before the first new model, with "
                f"{updates} updates of clients: raise it"
            )
        elif asked:
            said = f"{updates} updates of clients came in {now:.6g} s, and the model never changed"
            said += f"; {self._may_stay}" * bool(self._may_stay)
        else:
            said = f"no client was asked to train in {now:.6g} s"
        if self._unchanged:
            said += f"; {self._unchanged} rounds made no step, the last one as {self._stayed}"
        return "; ".join([f"nothing was learnt: {said}", *_reasons(source)])

    def worse(self) -> str | None:
        """Returns that the last evaluation's loss is far above the first's; None if it is not."""
        losses = [row["loss"] for row in self.writer.history if "loss" in row]
        if not losses or not losses[-1] > _WORSE * losses[0] > 0:
            return None
        return (
            f"the last loss is {losses[-1]:.4g}, and the first was {losses[0]:.4g}: the run has "
            "unlearnt, as with rates that are too high (client.rule.lr), or with attacks"
        )

    def diverged(self) -> str | None:
        """Returns why the run has no good final model, in words; None if it has one."""
        for model, why_not in self._not_taken.items():
            of = f"of {model} " if model else ""
            return f"the last step {of}was not taken, and the final model is older: {why_not}"
        bad = sorted(not_finite(self.final_arrays) - self._never_finite)
        return f"the final model is not finite, first in {bad[0]!r:.80}" if bad else None

    def model_sha256(self) -> str | None:
        """Returns the hash of the final model: names, dtypes, shapes and values.

        Of a method with a model for each cluster, that of all of them.
        """
        if isinstance(self.final_arrays, ClusterModels):
            return arrays_sha256(self.final_arrays.each)
        return None if self.final_arrays is None else arrays_sha256(self.final_arrays)

    def models(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Returns the arrays of the models to keep, by the names of their files.

        The mean that is evaluated with LAWA goes with the final model, and so do those of clusters.
        """
        latest = (self.final_arrays, self.averaged_arrays) if "final" in self._save_models else ()
        best = None if self._best is None else self._best[1]
        kept = dict(zip(("model", "model_averaged"), latest, strict=False)) | {"model_best": best}
        if latest and isinstance(self.final_arrays, ClusterModels):
            kept["model_clusters"] = self.final_arrays.each
        return {
            f"{name}.safetensors": {key: array.numpy() for key, array in arrays.items()}
            for name, arrays in kept.items()
            if arrays is not None
        }

    def report(self) -> dict[str, Any]:
        """Returns facts for the run's summary."""
        return self._columns.report()

    # ---- inside ------------------------------------------------------------------------------

    def _read(self, source: Source, reply: Message) -> None:
        metrics = reported(reply.content) if reply.has_content() else None
        if metrics is not None:
            self._means.setdefault(source, Means()).add(metrics)

    def _read_reports(self) -> None:
        reports, self._reports = self._reports, []
        for source, replies in reports:
            for reply in replies:
                self._read(source, reply)
        means, self._means = self._means, {}
        for source, of_source in means.items():
            self._pending.update(self._columns.means(source, of_source))

    def _flush(self) -> None:
        self._read_reports()
        # What was measured, and nothing evaluated that it could stand beside, has no row.
        if self._pending or (self._measured and self._pending_costs):
            self.settle()
            self._write(self._taken())

    def _taken(self) -> _Row:
        """Returns what the next row has, which the one after it does not."""
        row = _Row(self._pending_costs, self._pending, self._applied.ages, self._measured)
        self._pending, self._applied, self._measured = {}, AppliedUpdates(), {}
        return row

    def _write(self, row: _Row) -> None:
        row.values.update(self._columns.row("server", row.measured))
        self.writer.evaluation({**row.costs, **row.values}, row.ages)
        self._status.round = int(row.costs["round"])
        self._status.metrics = _shown(self.writer.history[-1], self.writer.target)
        self.on_progress()


_SOURCES: dict[str, Source] = {"train": "train", "evaluate": "client", "query": "query"}


def _kind(message: Message) -> str:
    return message.metadata.message_type.partition(".")[0]


def reported(content: RecordDict) -> dict[str, Any] | None:
    """Returns what a client reports; None if that is nothing.

    That is its MetricRecord, or what a NumPyClient returned. Of several, the first counts as that;
    names of the others have the record's in front, as in "data/num-classes".
    """
    records = dict(content.items())
    for older in ("fitres", "evaluateres"):
        counted = records.get(f"{older}.num_examples")
        if isinstance(counted, MetricRecord):
            return {
                **content.metric_records.get(f"{older}.loss", {}),
                **content.config_records.get(f"{older}.metrics", {}),
                "num-examples": counted["num_examples"],
            }
    found: dict[str, Any] | None = None
    for key, record in records.items():
        if not isinstance(record, MetricRecord):
            continue
        if found is None:
            found = dict(record.items())
        else:
            found |= {f"{key}/{name}": value for name, value in record.items()}
    return found


def _watched(shown: list[Parameters], evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """Returns an older strategy's `evaluate` that leaves the latest model in `shown`."""
    takes = inspect.signature(evaluate)

    @wraps(evaluate)
    def watched(*args: Any, **kwargs: Any) -> Any:
        parameters = takes.bind(*args, **kwargs).arguments.get("parameters")
        if isinstance(parameters, Parameters) and parameters.tensors:
            shown[:] = [parameters]
        return evaluate(*args, **kwargs)

    return watched


def _reasons(source: Any) -> list[str]:
    """Returns what is known to have gone wrong with the clients' tasks."""
    counts = source.client_errors.counts()
    errors = [f"{n} failed with {_shortened(said)}" for said, n in counts.most_common(_SHOWN)]
    hidden = len(counts) - _SHOWN
    if hidden > 0:
        errors.append(f"{hidden} other errors")
    faults = source.trace.faults()
    faults["client_error"] = faults.get("client_error", 0) - counts.total()
    errors += [
        f"{number} {name.replace('_', ' ')}" for name, number in faults.items() if number > 0
    ]
    if source.trace.came_too_late() and not counts:
        errors.append("with a larger round_timeout_s, clients have more time")
    return errors


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _differ(one: ArrayRecord, other: ArrayRecord | None) -> bool:
    """Returns whether two models of one form have different values."""
    if other is None or one is other:
        return False
    return any(
        not np.array_equal(array.numpy(), other[name].numpy()) for name, array in one.items()
    )


def _shown(row: Mapping[str, float], target: Target | None) -> dict[str, float]:
    """Returns the metrics of a row worth a place on one line.

    They are accuracies and losses, and the target's first.
    """
    shown = {name: value for name, value in row.items() if "acc" in name or "loss" in name}
    if target is None or target.metric not in row:
        return shown
    return {target.metric: row[target.metric], **shown}


def arrays_sha256(arrays: ArrayRecord) -> str:
    """Returns the hash of a model: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name}|{array.dtype}|{tuple(array.shape)}|{array.stype}|".encode())
        digest.update(array.data)
    return digest.hexdigest()
