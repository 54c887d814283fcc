"""Everything a run leaves behind, in one directory.

    metrics.csv     one row per evaluation, complete at any moment
    tb/             TensorBoard, on virtual time
    trace.parquet   every event
    summary.json    what was run, what came out, what it cost
    model.safetensors, and with _best, _averaged or _clusters in its name    as the run asked for
    timeline.json.gz   the trace for Perfetto or chrome://tracing
    plots/*.png     metrics against time, bytes and rounds; what the clients did; what each has
    personal.csv    what each client has after every evaluation of that, if that is kept
    confusion.csv   how many held-out examples of each class (row) are taken for which (column) by
                    the final model, and plots/confusion.png; if metrics has it

The first two grow with the run. The others are written by `finish`, for a failed or interrupted run
just as for a complete one: first the data, then summary.json, then the views drawn from them, so a
failure while drawing loses nothing that cannot be drawn again. Files replaced as a whole are never
half written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import subprocess
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib import metadata
from itertools import chain
from numbers import Integral, Real
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from fl import extras
from fl.errors import ConfigError
from fl.reports.atomic import remove_leftovers, replacing
from fl.reports.callbacks import Callback, Told
from fl.reports.client_rows import ClientRow, ClientRows
from fl.reports.history import History, Row
from fl.reports.model_file import FROZEN, write_model
from fl.reports.target import Target, best, better
from fl.reports.tensorboard_log import TensorBoardLog, flattened

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fl.simulation.kernel.trace import Trace

log = logging.getLogger("fl")

Status = Literal["completed", "diverged", "failed", "interrupted"]

_VIEWS = tuple(f"plots/{of}.png" for of in ("metrics", "clients", "personal", "confusion"))
_WRITTEN_BY = {"trace.parquet": "pyarrow.parquet", "plots": "matplotlib.figure"}
CLIENTS = "personal.csv"
CONFUSION = "confusion.csv"
MODELS = tuple(f"model{which}.safetensors" for which in ("", "_best", "_averaged", "_clusters"))


@dataclass(frozen=True)
class Totals:
    """What a run cost, from its start to its end.

    Args:
        virtual_s: simulated time, s.
        wall_s: host time, s.
        bytes_down: payload bytes sent by the server.
        bytes_up: payload bytes sent by clients, to the server or to each other.
        compute_j: energy of all devices while computing, J.
        radio_j: while transferring, J.
        idle_j: the rest of the time, J.
        servers_j: energy of the server and of machines between it and the clients, J.
        client_updates: replies with a trained model.
        utilisation: share of the time that clients computed, over those that were sent anything.
        rounds: that have begun, evaluated or not.
    """

    virtual_s: float = 0.0
    wall_s: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    compute_j: float = 0.0
    radio_j: float = 0.0
    idle_j: float = 0.0
    servers_j: float = 0.0
    client_updates: int = 0
    utilisation: float = 0.0
    rounds: int = 0


class RunWriter:
    """Records a run while it goes on, and its results when it ends.

    The directory belongs to one run: what an earlier run left there under the names above is
    removed or replaced, so no file can be mistaken for this run's.

    Args:
        directory: the run's directory, made if missing; None keeps `history` only.
        config: the resolved configuration, nested mappings of plain values.
        seed: root seed of the run.
        target: metric value whose cost is reported, or None.
        tensorboard: whether to write `tb/`.
        timeline: whether to write `timeline.json.gz` (some 15 bytes an event).
        plots: whether to draw `plots/*.png`.
        client_rows: whether to write `personal.csv`.
        callbacks: who is told the same as TensorBoard; their `begin` is called here.

    Raises:
        ConfigError: the configuration holds something that JSON cannot.
    """

    lasting = ("_history",)

    def __init__(
        self,
        directory: Path | str | None,
        config: Mapping[str, Any],
        seed: int,
        target: Target | None = None,
        *,
        tensorboard: bool = True,
        timeline: bool = True,
        plots: bool = True,
        client_rows: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.directory = None if directory is None else Path(directory)
        self.config: dict[str, Any] = plain(config)
        self.digest = config_digest(config)
        self.seed = int(seed)
        self.target = target
        self._timeline, self._plots = timeline, plots
        self._writable: dict[str, bool] = {}  # what of `_WRITTEN_BY` can be written, once known
        self.confusion: NDArray[np.int64] | None = None
        self._log: TensorBoardLog | None = None
        path = None
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            for folder in (self.directory, self.directory / "plots"):
                remove_leftovers(folder)
            data = ("summary.json", "trace.parquet", "timeline.json.gz", CLIENTS, CONFUSION)
            for name in (*data, *MODELS, *_VIEWS):
                (self.directory / name).unlink(missing_ok=True)
            path = self.directory / "metrics.csv"
            if not extras.installed("pyarrow"):
                self._can_write("trace.parquet")
        self._history = History(path)
        kept = self.directory / CLIENTS if self.directory is not None and client_rows else None
        self._clients = ClientRows(kept)
        self._log_failed = False
        if self.directory is not None and tensorboard:
            self._log = self._new_log(self.directory / "tb")
        self._told = Told(callbacks)
        self._told.begin(self.directory, self.config, self.seed)

    def _new_log(self, folder: Path) -> TensorBoardLog:
        hparams = {**flattened(self.config), "seed": self.seed}
        made = TensorBoardLog(folder, hparams, self.target)
        for row in self.history:
            made.evaluation(row)
        return made

    @property
    def history(self) -> list[Row]:
        """The evaluations so far, one dict each; `pandas.DataFrame(writer.history)` is a table."""
        return self._history.rows

    def evaluation(
        self, row: Mapping[str, float], histograms: Mapping[str, Mapping[int, int]] | None = None
    ) -> None:
        """Records one evaluation, in memory, in metrics.csv and in TensorBoard.

        Args:
            row: round, time_s, wall_s, bytes_down, bytes_up, energy_j (see
                `fl.reports.history.COLUMNS`), then the metrics. Later rows may bring new metrics
                or leave some out.
            histograms: how often each whole number occurred, by name; for TensorBoard only.

        Raises:
            ConfigError: one of the six is missing, or a value is not a number.
        """
        clean = self._history.append(row)
        if clean["round"] > 0 and self.directory is not None:
            self._can_write("trace.parquet")
            if self._plots:
                self._can_write("plots")
        self._write_log(lambda log: log.evaluation(clean, histograms))
        self._told.evaluation(clean)

    def _can_write(self, what: str) -> bool:
        """Returns whether the package that writes something works; tells the first time if not.

        Asked when the first model is there: packages take a while to import, which is not to keep
        training waiting, and the end of a run is too late to hear of one that is broken.
        """
        if what not in self._writable:
            try:
                extras.check_importable("it", _WRITTEN_BY[what])
            except ConfigError as error:
                log.warning("no %s will be written: %s", what, error)
                self._writable[what] = False
            else:
                self._writable[what] = True
        return self._writable[what]

    def went_on(self, known: int) -> None:
        """Notes that the rows have become those of a run that goes on.

        Args:
            known: of them, those that were recorded already.
        """
        if self._log is not None:
            self._log = self._new_log(self._log.path.parent)
        for row in self.history[known:]:
            self._told.evaluation(row)

    def clients(self, server_round: int, time_s: float, rows: Sequence[ClientRow]) -> None:
        """Records what each client has; arguments as of `ClientRows.add`."""
        self._clients.add(server_round, time_s, rows)
        self._write_log(lambda log: log.clients(server_round, time_s, rows))
        self._told.clients(server_round, time_s, rows)

    def _write_log(self, write: Callable[[TensorBoardLog], None]) -> None:
        if self._log is None or self._log_failed:
            return
        try:
            write(self._log)
        except OSError as error:
            self._log_failed = True  # half an event may be there: written anew at the end
            log.warning(
                "%s cannot be written (%s): it follows when the run ends, without histograms",
                self._log.path,
                error.strerror,
            )

    def finish(
        self,
        totals: Totals,
        *,
        status: Status = "completed",
        trace: Trace | None = None,
        participation: Mapping[str, Any] | None = None,
        model_sha256: str | None = None,
        models: Mapping[str, Mapping[str, NDArray[Any]]] | None = None,
        error: BaseException | str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Writes the results and returns the summary.

        Call it once, also when the run failed: with status "failed" or "interrupted", and the
        error; or "diverged", if it came to its end without a finite model. A second call (the first
        one failed while drawing) replaces the files.

        Args:
            totals: the run's cost.
            status: how the run ended.
            trace: its events; without one there is no trace, timeline or client plot.
            participation: who contributed, see `fl.reports.participation`; None if nobody knows.
            model_sha256: hash of the final model.
            models: arrays of models to keep, by name: to the file's name, one of `MODELS`.
            error: what stopped a run that is not completed; an exception is written with its
                traceback.
            extra: more facts for the summary (executor, batching, data fingerprint, ...), plain
                values; they appear under "extra".

        Raises:
            ConfigError: unknown status, or `extra` holds something JSON cannot.
        """
        if status not in get_args(Status):
            raise ConfigError(
                f"status is {status!r}; it must be one of {', '.join(get_args(Status))}"
            )
        summary = self._summary(
            totals, status, trace, participation, model_sha256, error, extra or {}
        )
        self._told.end(summary)
        self._told = Told()  # a second call has no more to tell
        if self.directory is None:
            return summary
        self._history.complete()
        if trace is not None and self._can_write("trace.parquet"):
            _write_trace(self.directory / "trace.parquet", trace, summary)
        facts = {"config_digest": self.digest}
        if frozen := (extra or {}).get(FROZEN):
            facts[FROZEN] = str(frozen)
        for name, arrays in (models or {}).items():
            write_model(self.directory / name, arrays, facts)
        if self.confusion is not None:
            with replacing(self.directory / CONFUSION) as temporary:
                np.savetxt(temporary, self.confusion, fmt="%d", delimiter=",")
        write_json(self.directory / "summary.json", summary)
        self._close_log(summary)
        if trace is not None and self._timeline:
            from fl.reports.timeline import write_timeline

            write_timeline(trace, self.directory / "timeline.json.gz", self.history)
        if self._plots and self._can_write("plots"):
            from fl.reports import plots

            if self.history:
                plots.metrics(self.history, self.directory / _VIEWS[0], target=self.target)
            if trace is not None and len(trace):
                plots.clients(trace, self.directory / _VIEWS[1])
            if self._clients.latest:
                plots.personal(self._clients.latest, self.directory / _VIEWS[2])
            if self.confusion is not None:
                from fl.reports import confused

                confused.picture(self.confusion, self.directory / _VIEWS[3])
        return summary

    def _summary(
        self,
        totals: Totals,
        status: Status,
        trace: Trace | None,
        participation: Mapping[str, Any] | None,
        model_sha256: str | None,
        error: BaseException | str | None,
        extra: Mapping[str, Any],
    ) -> dict[str, Any]:
        metrics = self._history.metrics
        final = {name: row[name] for row in self.history for name in metrics if name in row}
        rounds = {name: row["round"] for row in self.history for name in metrics if name in row}
        modes = {name: better(name, self.target) for name in metrics}
        records = {n: best(self.history, n, mode) for n, mode in modes.items() if mode is not None}
        joules = {"compute": totals.compute_j, "radio": totals.radio_j, "idle": totals.idle_j}
        if totals.servers_j:
            joules["servers"] = totals.servers_j
        summary: dict[str, Any] = {
            "status": status,
            "error": _error_text(error),
            "config_digest": self.digest,
            "config": self.config,
            "seed": self.seed,
            "versions": versions(),
            "evaluations": len(self.history),
            "final": final,
            "final_of_round": {  # of those that the last evaluation does not have
                name: last for name, last in rounds.items() if name not in self.history[-1]
            },
            "best": {name: record for name, record in records.items() if record is not None},
            "target": None if self.target is None else self.target.report(self.history),
            "totals": {
                "rounds": max([totals.rounds, *(row["round"] for row in self.history[-1:])]),
                "virtual_s": totals.virtual_s,
                "wall_s": totals.wall_s,
                "bytes_down": totals.bytes_down,
                "bytes_up": totals.bytes_up,
                "energy_j": {"total": sum(joules.values()), **joules},
                "client_updates": totals.client_updates,
                "utilisation": totals.utilisation,
                "events": None if trace is None else len(trace),
            },
            "faults": None if trace is None else trace.faults(),
            "staleness": None if trace is None else trace.staleness(),
            "poll_gap": None if trace is None else trace.poll_gap(),
            "participation": participation,
            "trace_sha256": None if trace is None else trace.sha256(),
            "model_sha256": model_sha256,
            "extra": extra,
        }
        clean: dict[str, Any] = plain(summary)
        return clean

    def _close_log(self, summary: Mapping[str, Any]) -> None:
        if self._log is None:
            return
        if self._log_failed:
            self._log = self._new_log(self._log.path.parent)
        # A summary has text for what is not finite.
        scalars: Row = {f"best/{name}": float(r["value"]) for name, r in summary["best"].items()}
        if self.target is not None and summary["target"]["reached"]:
            for name in ("round", "time_s", "bytes", "energy_j"):
                scalars[f"to_target/{name}"] = summary["target"][name]
        totals = summary["totals"]
        succeeded = summary["status"] == "completed"
        self._log.finish(totals["virtual_s"], totals["rounds"], succeeded, scalars)
        self._log = None


def plain(value: Any) -> Any:
    """Returns a value as JSON knows it: dict with text keys, list, str, int, float, bool, None.

    Paths become text, enumeration members their name, NumPy scalars numbers. A float that is not
    finite becomes "inf", "-inf" or "nan", which `float()` reads back; JSON has no such number.

    Raises:
        ConfigError: the value is something else.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(value[key]) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(item) for item in value]
    raise ConfigError(
        f"{value!r} is a {type(value).__name__}; a configuration holds mappings, lists, text, "
        "numbers, booleans and null only"
    )


def config_digest(config: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a configuration, as hexadecimal text.

    It is taken over canonical JSON (`plain` values, keys sorted, no spaces, ASCII), so the order of
    keys does not matter, and 1 differs from 1.0.
    """
    text = json.dumps(plain(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def versions() -> dict[str, str | None]:
    """Returns the versions that a result depends on; None for what is not installed.

    `commit` is the Git commit of `fl`'s own source tree, with "-dirty" if it has changes; None
    if `fl` does not run from a checkout.
    """
    return {**installed(), "commit": _commit(Path(__file__).parents[2])}


@cache
def installed() -> Mapping[str, str | None]:
    """Returns the versions of installed packages that a result depends on.

    They, and the commit, are those of when this process first asked, as its code is.
    """
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("fl", "flwr", "torch", "ray", "numpy"):
        try:
            found[name] = metadata.version("fl-simulator" if name == "fl" else name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return MappingProxyType(found)


@cache
def _commit(root: Path) -> str | None:
    # Only a checkout of fl itself: an installed copy may lie inside somebody else's repository.
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def write_json(path: Path, value: Any) -> None:
    """Writes plain values as indented JSON; `path` is replaced whole or not at all."""
    with replacing(path) as temporary:
        text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _write_trace(path: Path, trace: Trace, summary: Mapping[str, Any]) -> None:
    """Writes the events."""
    import pyarrow.parquet as pq

    facts = {name: summary[name] for name in ("trace_sha256", "config_digest")}
    tables = (table.replace_schema_metadata(facts) for table in trace.tables())
    with replacing(path) as temporary:
        first = next(tables)
        with pq.ParquetWriter(temporary, first.schema, compression="zstd") as writer:
            for table in chain([first], tables):
                writer.write_table(table)


def _error_text(error: BaseException | str | None) -> str | None:
    if isinstance(error, BaseException):
        return "".join(traceback.format_exception(error)).rstrip()
    return error
