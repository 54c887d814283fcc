"""Results as tables for the terminal: one run in full, and many runs beside each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fl.errors import ConfigError
from fl.reports import units
from fl.reports.files import printable
from fl.reports.history import changes
from fl.reports.participation import told
from fl.reports.run_writer import MODELS
from fl.reports.runs import Run
from fl.reports.target import when

_Show = Callable[[float], str]
_UnitOf = Callable[[float], units.Unit]

_MOST_SHARES = 5  # that it shows, of what takes time
_MOST_METRICS = 20  # that the table of one run shows
_AGES = ("staleness", "poll_gap")
_UNBOUNDED = 10_000  # characters
_FILES = (
    "summary.json",
    "metrics.csv",
    "personal.csv",
    "fl.log",
    *MODELS,
    "trace.parquet",
    "timeline.json.gz",
    "tb",
    "plots",
    "checkpoint",
)


def print_results(
    summary: Mapping[str, Any],
    directory: Path | None = None,
    console: Console | None = None,
) -> None:
    """Prints the table of one run, and below it where its files are, which no width may cut.

    Args:
        summary: content of summary.json, or what `RunWriter.finish` returned.
        directory: the run's directory.
        console: where to; by default standard output.
    """
    console = Console() if console is None else console
    console.print(results(summary))
    if directory is not None:
        names = [name for name in _FILES if (directory / name).exists()]
        print_path(console, directory, f": {'  '.join(names)}")


def print_path(console: Console, path: Path, note: str = "") -> None:
    """Prints a path in one line of its own, however long, as it can be copied."""
    console.print(Text(f"{path}{note}"), soft_wrap=True)


def results(summary: Mapping[str, Any]) -> Table:
    """Returns the table of one run.

    Args:
        summary: content of summary.json, or what `RunWriter.finish` returned.
    """
    table = Table(title=f"Run {summary['status']}", title_justify="left", show_header=False)
    table.add_column("what", style="bold", no_wrap=True)
    table.add_column("value")
    if summary["error"]:
        table.add_row("error", _plain(str(summary["error"]).splitlines()[-1]), style="red")
    for row in _metric_rows(summary):
        table.add_row(*map(_plain, row))
    if summary["extra"].get("trained") is False:
        table.add_row("training", "none (client.train=false): what it takes, not what it learns")
    table.add_section()
    totals = summary["totals"]
    deployed = _is_deployed(summary)
    if not deployed:
        table.add_row("simulated time", units.duration(totals["virtual_s"]))
    if shares := summary["extra"].get("time_shares", {}).get("clients"):
        table.add_row("of a client's task", _shares(shares))
    table.add_row("sent to clients", units.size(totals["bytes_down"]))
    table.add_row("sent by clients", units.size(totals["bytes_up"]))
    if not deployed:
        joules = totals["energy_j"]
        parts = ", ".join(
            f"{units.energy_part(name)} {units.energy(joules[name])}"
            for name in joules
            if name != "total"
        )
        table.add_row("energy", f"{units.energy(joules['total'])} ({parts})")
    table.add_row("rounds", units.count(totals["rounds"]))
    if summary["faults"] is not None:
        faults = [
            f"{units.count(number)} {name.replace('_', ' ')}"
            for name, number in summary["faults"].items()
        ]
        table.add_row("faults", ", ".join(faults) or "none")
    if found := summary["extra"].get("checkpointing"):
        table.add_row("checkpoints", _checkpoints(found))
    if summary.get("participation") and (without := told(summary["participation"])):
        table.add_row("never contributed", without)
    table.add_section()
    updates, wall_s = totals["client_updates"], totals["wall_s"]
    table.add_row("client updates", units.count(updates))
    speed = f" ({units.rate(updates / wall_s)})" if wall_s > 0 else ""
    table.add_row("time" if deployed else "time on this host", f"{units.duration(wall_s)}{speed}")
    table.add_row("model", _short(summary["model_sha256"]))
    table.add_row("trace", _short(summary["trace_sha256"]))
    return table


def comparison(runs: Mapping[str, Sequence[Run]], metrics: Sequence[str] | None = None) -> Table:
    """Returns a table with one row for each group of runs, in the order given.

    The number of seeds is that of completed runs, "2 of 3" if one diverged, which counts with what
    it reached. Numbers are mean ± sample standard deviation over the group's runs (its seeds); a
    single run shows its value alone. Time, bytes and energy are those to the target if the first
    run has one, over the seeds that reached it (`2/3` of them, say), and the totals otherwise. A
    metric that a run reports of its initial model alone is not shown. "staleness" is that of
    updates that arrived, "poll gap" that between two polls of a client, both in versions;
    "time computing" is the share of the time that clients computed, over those that were sent
    anything.

    Args:
        runs: label to runs; see `fl.reports.runs.group_runs`.
        metrics: final metrics to show; by default the target's metric if the runs have a target,
            otherwise three of those that there are, first what changes in a run.

    Raises:
        ConfigError: a label without runs, or no labels.
    """
    if not runs or not all(runs.values()):
        raise ConfigError("a comparison needs at least one run under each label, and one label")
    first = next(iter(runs.values()))[0].summary
    target = first["target"]
    if metrics is None:
        metrics = [target["metric"]] if target else _telling(runs)
    several = any(len(group) > 1 for group in runs.values())
    over_seeds = "mean ± standard deviation over seeds" if several else None
    table = Table(title=over_seeds, title_justify="left")
    table.add_column("runs", no_wrap=True)
    table.add_column("seeds", justify="right")
    every = [run.summary for group in runs.values() for run in group]
    with_best = {name: any(name in s["best"] for s in every) for name in metrics}
    for name, has_best in with_best.items():
        table.add_column(_plain(f"final {units.name(name)}"), justify="right")
        if has_best:
            table.add_column(_plain(f"best {units.name(name)}"), justify="right")
    what = f" to {target['value']:g}" if target else ""
    for name in (f"time{what}", f"bytes{what}", f"energy{what}"):
        table.add_column(name, justify="right")
    ages = [name for name in _AGES if not all(_is_young(s, name) for s in every)]
    busy = any(summary["totals"].get("utilisation") for summary in every)
    for name in (*ages, *["time computing"] * busy):
        table.add_column(name.replace("_", " "), justify="right")
    for label, group in runs.items():
        summaries = [run.summary for run in group]
        ended = sum(s["status"] == "completed" for s in summaries)
        seeds = str(ended) if ended == len(group) else f"{ended} of {len(group)}"
        cells = [*_cells(group, with_best, target)]
        for name in ages:
            means = [float(s[name]["mean"]) for s in summaries if s.get(name)]
            cells.append(_spread(means, units.metric))
        if busy:
            shares = [100.0 * s["totals"].get("utilisation", math.nan) for s in summaries]
            cells.append(
                _spread(shares, lambda share: f"{share:.3g} %", lambda _: units.Unit(1.0, "%"))
            )
        table.add_row(_plain(label), seeds, *cells)
    return table


def _telling(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    every = [run for group in runs.values() for run in group]
    names = dict.fromkeys(name for run in every for name in run.summary["final"])
    return sorted(names, key=lambda n: not any(changes(run.history, n) for run in every))[:3]


def print_comparison(console: Console, runs: Mapping[str, Sequence[Run]]) -> None:
    """Prints the table of many runs; upright, one value under another, where words do not fit."""
    table = comparison(runs)
    unbounded = console.options.update(width=_UNBOUNDED)
    if console.measure(table, options=unbounded).minimum <= console.width:
        console.print(table)
        return
    upright = Table(title=table.title, title_justify="left", show_header=False)
    upright.add_column("what", style="bold")
    upright.add_column("value")
    heads, *columns = [list(column.cells) for column in table.columns]
    names = [str(column.header) for column in table.columns[1:]]
    for i, head in enumerate(heads):
        upright.add_section()
        upright.add_row(str(table.columns[0].header), head)
        for name, cells in zip(names, columns, strict=True):
            upright.add_row(name, cells[i])
    console.print(upright)


def _metric_rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    central = (summary.get("extra") or {}).get("central") or {}  # trained on all data in one place
    ages = [name for name in _AGES if _is_young(summary, name)]
    metrics = [item for item in summary["final"].items() if item[0] not in ages]
    shown = metrics[:_MOST_METRICS]
    for name, value in shown:
        text = units.metric(float(value))
        if (last := summary.get("final_of_round", {}).get(name)) is not None:
            text += f" {when(last)}"
        record = summary["best"].get(name)
        if record is not None:
            text += f" (best {units.metric(float(record['value']))} {when(record['round'])})"
        if name in central:
            text += f", central {units.metric(central[name])}"
        yield units.name(name), text
    if more := len(metrics) - len(shown):
        yield f"and {more:,} more", "in summary.json and metrics.csv"
    target = summary["target"]
    if target is None:
        return
    sign = ">=" if target["mode"] == "max" else "<="
    name = f"to {units.name(target['metric'])} {sign} {target['value']:g}"
    if target["reached"]:
        cost = [units.duration(target["time_s"]), units.size(target["bytes"])]
        if not _is_deployed(summary):
            cost.append(units.energy(target["energy_j"]))
        yield name, ", ".join([*cost, f"round {target['round']}"])
    else:
        yield name, target["reason"]


def _shares(shares: Mapping[str, float]) -> str:
    """Returns what takes most of the time from a message to its reply."""
    largest = sorted(shares.items(), key=lambda item: -item[1])[:_MOST_SHARES]
    return ", ".join(f"{units.name(name)} {100 * of:.0f} %" for name, of in largest if of >= 0.005)


def _cells(
    runs: Sequence[Run],
    metrics: Mapping[str, bool],
    target: Mapping[str, Any] | None,
) -> Iterator[str]:
    for name, has_best in metrics.items():
        trained = [run.summary for run in runs if _has_trained(run, name)]
        yield _spread([float(s["final"][name]) for s in trained], units.metric)
        if has_best:
            best = [float(s["best"][name]["value"]) for s in trained if name in s["best"]]
            yield _spread(best, units.metric)
    group = [run.summary for run in runs]
    if target:
        reached = [s["target"] for s in group if s["target"] and s["target"]["reached"]]
        costs = [(t["time_s"], float(t["bytes"]), t["energy_j"]) for t in reached]
    else:
        totals = [s["totals"] for s in group]
        costs = [
            (t["virtual_s"], float(t["bytes_down"] + t["bytes_up"]), t["energy_j"]["total"])
            for t in totals
        ]
    # The mean over the seeds that got there says little without how many did not.
    note = "" if len(costs) == len(group) else f" ({len(costs)}/{len(group)})"
    yield _spread([time_s for time_s, _, _ in costs], units.duration, units.time_unit) + note
    yield _spread([moved for _, moved, _ in costs], units.size, units.byte_unit) + note
    yield _spread([joules for _, _, joules in costs], units.energy, units.energy_unit) + note


def _has_trained(run: Run, metric: str) -> bool:
    """Returns whether a run reports a metric of another model than the one it began with."""
    trained = any(row["round"] > 0 and metric in row for row in run.history)
    return trained and metric in run.summary["final"]


def _spread(values: Sequence[float], show: _Show, unit: _UnitOf | None = None) -> str:
    """Returns `mean ± deviation unit` to the deviation's second digit.

    One value, or several that are equal, is as `show` does it.
    """
    if not values:
        return units.MISSING
    mean = fmean(values)
    if len(values) == 1 or not all(map(math.isfinite, values)):
        return show(mean)
    divisor, symbol = (1.0, "") if unit is None else unit(mean)
    deviation = stdev(values) / divisor
    if deviation == 0:
        return f"{show(mean)} ± 0"
    mean /= divisor
    digits = max(0, min(6, 1 - math.floor(math.log10(deviation))))
    return f"{mean:,.{digits}f} ± {deviation:.{digits}f} {symbol}".rstrip()


def _is_young(summary: Mapping[str, Any], age: str) -> bool:
    """Returns whether a run has no ages of updates, or all are 0, as where there are rounds."""
    found = summary.get(age)
    return not found or found.get("max", found["mean"]) == 0


def _is_deployed(summary: Mapping[str, Any]) -> bool:
    """Returns whether a run was no simulation: its time is the wall's, its energy not known."""
    return "deployment" in summary["extra"]


def _plain(text: str) -> Text:
    """Returns anybody's text as it is: neither markup nor an order to the terminal."""
    return Text(printable(text))


def _checkpoints(found: Mapping[str, Any]) -> str:
    """Returns what checkpoints and failures of the whole job have cost, in words."""
    said = f"{units.count(found['checkpoints'])}, {units.duration(found['stalled_s'])} of stalls"
    if not found["failures"]:
        return said
    return (
        f"{said}; {units.count(found['failures'])} failures: "
        f"{units.duration(found['lost_s'])} of work done over, "
        f"{units.duration(found['restarting_s'])} of restarts"
    )


def _short(digest: str | None) -> str:
    return units.MISSING if digest is None else digest[:16]
