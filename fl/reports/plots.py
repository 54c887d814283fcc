"""Pictures of one run, and of several beside each other.

Figures are made with matplotlib's object interface: no global state, no display, no choice of
backend. Each function returns its figure, so a notebook can show it, and writes a PNG if given a
path. Colours are those of Okabe and Ito, which colour-blind people can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.extras import check_importable
from fl.reports import units
from fl.reports.atomic import replacing
from fl.reports.client_rows import ACCURACY_EDGES, ClientRow
from fl.reports.files import printable
from fl.reports.history import COLUMNS, Row, changes
from fl.reports.runs import Run
from fl.reports.spans import STAGES, Spans, spans
from fl.reports.target import Target, better, is_share
from fl.simulation.kernel.trace import Event

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fl.simulation.kernel.trace import Trace

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")
_STAGE_COLOURS = {
    "download": "#56B4E9",
    "compute": "#E69F00",
    "upload": "#009E73",
    "all-reduce": "#CC79A7",
}
_STAGES = (*STAGES, "all-reduce")
_IDLE_COLOUR = "#E8E8E8"
_STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#D9D9D9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "axes.formatter.useoffset": False,  # values of a metric, not what they are beyond another
}
_MAX_ROWS = 4
_ROUNDING = 1e-9  # below which two values of a metric are one
_MAX_LABEL = 120  # characters
_LARGEST = 1e100  # what is beyond is a gap in a curve
_MAX_BARS = 40
_MAX_POINTS = 1000
_BINS = 200
_SPREAD = 20  # times the shortest run, from which on the longest has a logarithmic axis
_MAX_POSITIONS = 2000  # at which runs of several seeds are compared

AXES = {"time_s": "virtual time", "bytes": "data moved", "round": "round", "energy_j": "energy"}
"""Horizontal axes: virtual time, bytes in both directions, rounds, joules."""


def metrics(
    history: Sequence[Row],
    path: Path | None = None,
    *,
    names: Sequence[str] | None = None,
    target: Target | None = None,
    time: str | None = None,
) -> Figure:
    """Draws metrics against virtual time, bytes and rounds: a row of three panels for each.

    Args:
        history: evaluations of one run, at least one.
        path: PNG to write, replaced as a whole.
        names: metrics to draw, a row each; by default the target's metric, accuracies and losses,
            or if none is called so whatever there is, what changes first, in four rows at most.
            `train_x`, `client_x` and `latest_x` share the row of `x`. If nothing changes, as where
            clients do not train, it is what the rounds took.
        target: drawn as a line, with a mark where the run got there.
        time: what to call the time, where it is not virtual.

    Raises:
        ConfigError: no evaluation has one of `names`, or there is no metric at all.
    """
    rows = _panel_rows(history, names, target)
    measured = {name for shown in rows for name in shown}
    telling = names or worth_drawing(measured, [target.metric] if target is not None else [])
    if not telling and len(history) > 1 and not any(changes(history, name) for name in measured):
        return _costs(history, path, time)
    with drawing(10.5, 0.5 + 2.5 * len(rows), path) as figure:
        grid = figure.subplots(len(rows), 3, squeeze=False, sharex="col", sharey="row")
        for r, shown in enumerate(rows):
            values = np.array([row[n] for row in history for n in shown if n in row], dtype=float)
            _constant(grid[r][0], values[_can_be_drawn(values)])
            for c, axis in enumerate(("time_s", "bytes", "round")):
                axes: Axes = grid[r][c]
                unit = _unit(axis, max(_position(row, axis) for row in history))
                for k, name in enumerate(shown):
                    _line(axes, history, name, axis, unit, (PALETTE[k], _DASHES[k % len(_DASHES)]))
                if target is not None and target.metric in shown:
                    _target_mark(axes, history, target, axis, unit)
                if c == 0:
                    axes.set_ylabel(_readable(shown[0]))
                if r == len(rows) - 1:
                    _label_axis(axes, axis, unit)
                    if axis == "time_s" and time is not None:
                        axes.set_xlabel(f"{time} ({unit.symbol})")
            handles, labels = grid[r][2].get_legend_handles_labels()
            if len(labels) > 1:
                grid[r][2].legend(handles, labels, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def clients(trace: Trace, path: Path | None = None) -> Figure:
    """Draws what the clients did: how many were in each stage over time, and each one's shares.

    The upper panel is the mean number of clients' tasks and all-reduces in each stage, over each
    1/200 of the run. The lower one has a bar for every client that had a task, busiest first; above
    40 clients the bars become filled curves over the ranking. Where tasks of one client overlap,
    computing counts before transfers, and uploading before downloading, so shares add up to one.
    Of what peers send each other, the trace has when it arrived and not since when it was on its
    way: a third panel has the bytes that arrived, where there are any.

    Args:
        trace: events of the run, at least one.
        path: PNG to write, replaced as a whole.
    """
    end = trace.end
    edges = np.linspace(0.0, end if end > 0 else 1.0, _BINS + 1)
    arrived = _arrived(trace, edges)
    panels = 2 + int(arrived is not None)
    with drawing(8.5, 3.1 * panels, path) as figure:
        over_time, *between, per_client = figure.subplots(panels, 1)
        unit = units.time_unit(end)
        counts, ids, share = _activity(trace, edges)
        over_time.stackplot(
            edges / unit.divisor,
            np.concatenate([counts, counts[:, -1:]], axis=1),
            colors=[*_STAGE_COLOURS.values()],
            step="post",
            linewidth=0,
        )
        over_time.set(xlabel=f"virtual time ({unit.symbol})", ylabel="tasks (mean)")
        over_time.set_title("Tasks in each stage over time", loc="left")
        over_time.set_xlim(0, end / unit.divisor if end > 0 else 1)
        over_time.set_ylim(bottom=0)
        if arrived is not None:
            _arrivals(between[0], edges, arrived, unit)
        _share_panel(per_client, ids, share)
        handles, labels = per_client.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right upper")
    return figure


def personal(rows: Sequence[ClientRow], path: Path | None = None) -> Figure:
    """Draws how many clients have which accuracy on their own examples, with each model.

    Args:
        rows: of an evaluation, at least one.
        path: PNG to write, replaced as a whole.
    """
    with drawing(8.5, 3.9, path) as figure:
        axes: Axes = figure.subplots()
        for k, name in enumerate(rows[0].models):
            accuracies = np.array([row.models[name][1] for row in rows])
            label = f"{name} (mean {accuracies.mean():.3f})"
            axes.hist(
                accuracies,
                ACCURACY_EDGES,
                histtype="step",
                color=PALETTE[k],
                linewidth=1.8,
                label=label,
            )
        axes.set(xlabel="accuracy on the client's own examples", ylabel="clients", xlim=(0, 1))
        axes.set_title(f"What each of {len(rows)} clients has", loc="left")
        figure.legend(loc="outside right upper")
    return figure


def compare(
    runs: Mapping[str, Sequence[Run]],
    metric: str,
    path: Path | None = None,
    *,
    axes: Sequence[str] = ("time_s", "bytes", "round"),
    confidence: float = 0.95,
    target: float | None = None,
    central: float | None = None,
) -> Figure:
    """Draws one metric of several methods, each the mean over its seeds with a confidence band.

    The band is mean ± t s / sqrt(n), with Student's t for n - 1 degrees of freedom and s the
    standard deviation over the n seeds at that position. For two seeds, whose band would be 13
    deviations wide and say nothing, it is from one to the other; there is none for one seed. Seeds
    that were evaluated at different positions are compared over the stretch that all of them cover:
    over time each has the value of its last evaluation, else they are interpolated linearly. Where
    the shortest run ends before a 20th of the longest, the axis is logarithmic. Bands of
    accuracies and other shares end at 0 and 1.

    Args:
        runs: label to the runs (seeds) under it; see `fl.reports.runs.group_runs`.
        metric: name of the metric.
        path: PNG to write, replaced as a whole.
        axes: panels, keys of `AXES`.
        confidence: level of the band, in (0, 1).
        target: a value to draw as a line.
        central: what training on all data in one place reaches, drawn as a line with a name.

    Raises:
        ConfigError: unknown axis, level out of range, no runs, or a run without the metric.
    """
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown or not axes:
        raise ConfigError(f"axes are {list(axes)}; choose from {list(AXES)}")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}; it must lie between 0 and 1")
    if not runs or not all(runs.values()):
        raise ConfigError("compare() needs at least one run under each label, and one label")
    every = [row for group in runs.values() for run in group for row in run.history]
    with drawing(0.6 + 3.5 * len(axes), 3.9, path) as figure:
        panels = figure.subplots(1, len(axes), squeeze=False, sharey="row")[0]
        for panel, axis in zip(panels, axes, strict=True):
            unit = _unit(axis, max((_position(row, axis) for row in every), default=1.0))
            spread: list[NDArray[np.float64]] = []
            for k, (label, group) in enumerate(runs.items()):
                curves = [_curve(run, metric, axis) for run in group]
                spread += [positions for positions, _ in curves]
                x, mean, half = _band(curves, confidence, steps=axis == "time_s")
                low, high = _possible(metric, [y for _, y in curves])
                colour, dash = PALETTE[k % len(PALETTE)], _DASHES[k // len(PALETTE) % len(_DASHES)]
                of = f"{len(group)} seed{'' if len(group) == 1 else 's'}"
                (line,) = panel.plot(
                    x / unit.divisor,
                    mean,
                    dash,
                    color=colour,
                    label=_shown(f"{label} ({of})"),
                    drawstyle=_drawn(axis),
                )
                line.set_gid(f"curve-{k}-{axis}")  # by which a page's script hides it
                band = panel.fill_between(
                    x / unit.divisor,
                    np.maximum(mean - half, low),
                    np.minimum(mean + half, high),
                    color=colour,
                    alpha=0.18,
                    lw=0,
                    step="post" if axis == "time_s" else None,
                )
                band.set_gid(f"curve-{k}-{axis}-band")
            if target is not None:
                panel.axhline(target, color="#555555", linewidth=1, linestyle=(0, (2, 2)))
            if central is not None:
                panel.axhline(central, color="#555555", linewidth=1, label="all data in one place")
            _label_axis(panel, axis, unit)
            _logarithmic(panel, spread, unit)
        values = np.array([row[metric] for row in every if metric in row], dtype=float)
        levels = [level for level in (target, central) if level is not None]
        _limits(panels[0], values[_can_be_drawn(values)], metric, levels)
        panels[0].set_ylabel(_readable(metric))
        handles, labels = panels[0].get_legend_handles_labels()
        longest = max(len(label) for label in labels)
        columns = max(1, min(len(labels), int(46 * len(axes) / (longest + 6))))
        seeds = {len(group) for group in runs.values()}
        bands = [f"{100 * confidence:g} % confidence band"] * any(n > 2 for n in seeds)
        bands += ["range of two seeds"] * (2 in seeds)
        title = f"mean and {' or '.join(bands)}" if bands else None
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=title)
    return figure


# ---- one run's metrics ---------------------------------------------------------------------------


def worth_drawing(present: Collection[str], targets: Collection[str]) -> list[str]:
    """Returns the metrics that say how good models are, in the order of their interest.

    Those of the targets, for a metric over clients its worst decile, accuracies, losses. Means
    that differ in their weights only, and best deciles, come last.

    Args:
        present: what there is.
        targets: metrics that runs aim at.
    """
    first = [name for target in targets for name in (target, f"{target}_worst_decile")]
    names = [n for n in present if "acc" in n] + [n for n in present if "loss" in n]
    names.sort(key=lambda name: name.endswith(("_weighted", "_decile")))
    return [name for name in dict.fromkeys([*first, *names]) if name in present]


def _panel_rows(
    history: Sequence[Row], names: Sequence[str] | None, target: Target | None
) -> list[list[str]]:
    present = dict.fromkeys(n for row in history for n in row if n not in COLUMNS)
    unknown = [name for name in names or () if name not in present]
    if unknown or not present:
        raise ConfigError(f"no evaluation has {unknown or 'any metric'}; there are {list(present)}")
    if names is not None:
        return [[name] for name in names]
    wanted = worth_drawing(present, [target.metric] if target is not None else [])
    rows: dict[str, list[str]] = {}
    for name in wanted or sorted(present, key=lambda name: not changes(history, name)):
        base = name
        for beside in ("train_", "client_", "latest_"):
            base = base.removeprefix(beside)
        rows.setdefault(base if base in present else name, []).append(name)
    # The server's own metric before its counterparts, whichever was reported first.
    return [sorted(shown, key=len) for shown in list(rows.values())[:_MAX_ROWS]]


def _costs(history: Sequence[Row], path: Path | None, time: str | None) -> Figure:
    """Draws rounds, bytes and joules against virtual time."""
    seconds = _unit("time_s", max(row["time_s"] for row in history))
    with drawing(10.5, 3.0, path) as figure:
        for axes, axis in zip(figure.subplots(1, 3), ("round", "bytes", "energy_j"), strict=True):
            unit = _unit(axis, max(_position(row, axis) for row in history))
            x = np.array([row["time_s"] for row in history]) / seconds.divisor
            y = np.array([_position(row, axis) for row in history]) / unit.divisor
            axes.plot(x, y, color=PALETTE[0])
            axes.set_xlabel(f"{time or AXES['time_s']} ({seconds.symbol})")
            axes.set_ylabel(f"{AXES[axis]} ({unit.symbol})" if unit.symbol else f"{AXES[axis]}s")
            axes.set_ylim(bottom=0)
    return figure


def _line(
    axes: Axes,
    history: Sequence[Row],
    name: str,
    axis: str,
    unit: units.Unit,
    look: tuple[str, str],
) -> None:
    rows = [row for row in history if name in row]
    x = np.array([_position(row, axis) for row in rows]) / unit.divisor
    y = np.array([row[name] for row in rows], dtype=float)
    y[~_can_be_drawn(y)] = np.nan  # a gap, instead of an axis that reaches to infinity
    marker = "o" if len(rows) <= 30 else None
    colour, dash = look
    axes.plot(
        x,
        y,
        dash,
        color=colour,
        marker=marker,
        markersize=3.5,
        label=_readable(name),
        drawstyle=_drawn(axis),
    )


def _drawn(axis: str) -> Literal["default", "steps-post"]:
    """Returns how points are joined: over time a model stays what it is until the next one."""
    return "steps-post" if axis == "time_s" else "default"


def _target_mark(
    axes: Axes, history: Sequence[Row], target: Target, axis: str, unit: units.Unit
) -> None:
    axes.axhline(target.value, color="#555555", linewidth=1, linestyle=(0, (2, 2)))
    first = next((row for row in history if target.met_by(row)), None)
    if first is None:
        return
    x = _position(first, axis)
    y = first[target.metric]
    axes.plot(x / unit.divisor, y, "*", color="#000000", markersize=11, zorder=5)
    # The corners beside a rising curve are lower right and upper left; the other two if it falls.
    leftward = x > 0.7 * max(_position(row, axis) for row in history)
    below = leftward != (target.mode == "max")
    axes.annotate(
        {"time_s": units.duration, "bytes": units.size}.get(axis, units.count)(x),
        (x / unit.divisor, y),
        xytext=(-8 if leftward else 8, -15 if below else 9),
        textcoords="offset points",
        ha="right" if leftward else "left",
    )


# ---- clients -------------------------------------------------------------------------------------


def _activity(
    trace: Trace, edges: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Returns the mean number of tasks in each stage between edges (b + 1,) in s, shape (4, b).

    And clients (m,), busiest first, and their shares of the time in each stage (4, m).
    """
    active = np.zeros((len(_STAGES), len(edges) - 1))
    seconds = np.zeros((len(_STAGES), 0))  # of each client
    had = np.zeros(0, dtype=bool)  # who had a task
    for stages in spans(trace):
        active += _task_seconds(stages, edges)
        more = int(stages.client.max(initial=-1)) + 1 - len(had)
        if more > 0:
            seconds, had = np.pad(seconds, ((0, 0), (0, more))), np.pad(had, (0, more))
        had[stages.client] = True
        ids, of_each = _client_seconds(stages)
        seconds[:, ids] += of_each
    counts = active / np.diff(edges)
    ids = np.flatnonzero(had)
    share = seconds[:, ids] / edges[-1]
    ranking = np.argsort(-share.sum(axis=0), kind="stable")
    # Differences of large sums leave a little rounding error where nothing runs.
    return np.where(counts < 1e-9, 0.0, counts), ids[ranking], share[:, ranking]


def _task_seconds(stages: Spans, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the seconds of tasks in each stage between edges (b + 1,) in s, shape (4, b)."""
    seconds = np.empty((len(_STAGES), len(edges) - 1))
    for stage in range(len(_STAGES)):
        mine = stages.stage == stage
        # Integral of the number of tasks up to t: sum of (t - start)+ - (t - end)+.
        integral = _ramps(stages.start[mine], edges) - _ramps(stages.end[mine], edges)
        seconds[stage] = np.diff(integral)
    return seconds


def _ramps(times: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the sum over `times` of max(t - time, 0), for each t in `at`."""
    times = np.sort(times)
    passed = np.searchsorted(times, at)
    return np.asarray(passed * at - np.append(0.0, np.cumsum(times))[passed])


def _arrived(trace: Trace, edges: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Returns the bytes that arrived from peers between edges, shape (b,); None if none did."""
    arrived, any_did = np.zeros(len(edges) - 1), False
    for rows in trace.parts():
        among = rows[rows["kind"] == Event.TRANSFER]
        if len(among):
            any_did = True
            arrived += np.histogram(among["time"], edges, weights=among["bytes"])[0]
    return arrived if any_did else None


def _arrivals(
    axes: Axes,
    edges: NDArray[np.float64],
    arrived: NDArray[np.float64],
    unit: units.Unit,
) -> None:
    """Draws the bytes that arrived from peers in each bin."""
    bytes_unit = units.byte_unit(arrived.max())
    axes.stairs(
        arrived / bytes_unit.divisor,
        edges / unit.divisor,
        fill=True,
        color=_STAGE_COLOURS["upload"],
    )
    axes.set(xlabel=f"virtual time ({unit.symbol})", ylabel=f"arrived ({bytes_unit.symbol})")
    axes.set_title(f"What peers sent each other, in each 1/{_BINS} of the time", loc="left")
    axes.set_xlim(0, edges[-1] / unit.divisor)
    axes.set_ylim(bottom=0)


def _client_seconds(stages: Spans) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns clients (m,) and their seconds in each stage, each second once (4, m)."""
    ids, row = np.unique(stages.client, return_inverse=True)
    n = len(stages)
    client = np.concatenate([row, row])
    time = np.concatenate([stages.start, stages.end])
    change = np.zeros((2 * n, len(_STAGES)), dtype=np.int64)
    change[np.arange(n), stages.stage] = 1
    change[np.arange(n, 2 * n), stages.stage] = -1
    order = np.lexsort((time, client))
    client, time = client[order], time[order]
    # A client's changes add up to zero, so one running sum serves all clients.
    active = np.cumsum(change[order], axis=0) > 0
    lasts = np.diff(time, append=time[-1:]) * (np.diff(client, append=-1) == 0)
    seconds = np.zeros((len(_STAGES), len(ids)))
    free = np.ones(2 * n, dtype=bool)
    for name in ("compute", "all-reduce", "upload", "download"):
        stage = _STAGES.index(name)
        mine = active[:, stage] & free
        free &= ~mine
        seconds[stage] = np.bincount(client[mine], lasts[mine], minlength=len(ids))
    return ids, seconds


def _share_panel(axes: Axes, ids: NDArray[np.int64], share: NDArray[np.float64]) -> None:
    busiest = float(100.0 * share.sum(axis=0).max(initial=0.0))
    whole = busiest > 50 or busiest == 0
    layers = 100.0 * np.concatenate([share, 1.0 - share.sum(axis=0, keepdims=True)])
    # What nobody did is not in the legend.
    shown = zip(_STAGES, share, strict=True)
    names = [*(name if some.any() else "" for name, some in shown), "idle"]
    colours = [*_STAGE_COLOURS.values(), _IDLE_COLOUR]
    if not whole:  # idle would end at the edge of the picture as if all of it were there
        layers, names = layers[:-1], names[:-1]
        colours = colours[:-1]
    x = np.arange(len(ids))
    if len(ids) <= _MAX_BARS:
        bottom = np.zeros(len(ids))
        for layer, name, colour in zip(layers, names, colours, strict=True):
            axes.bar(x, layer, 0.85, bottom=bottom, color=colour, label=name or None)
            bottom += layer
        axes.set_xticks(x, [str(i) for i in ids], rotation=90 if len(ids) > 20 else 0)
        axes.tick_params(axis="x", length=0)
        axes.set_xlabel("client, busiest first")
        axes.grid(axis="x", visible=False)
        axes.set_xlim(-0.6, max(len(ids), 1) - 0.4)
    else:
        # More points than pixels would only cost time: neighbours in rank are averaged.
        first = np.unique(np.linspace(0, len(ids), _MAX_POINTS, endpoint=False).astype(int))
        layers = np.add.reduceat(layers, first, axis=1) / np.diff(first, append=len(ids))
        axes.stackplot(first, layers, labels=names, colors=colours, linewidth=0)
        axes.set_xlabel(f"rank among the {len(ids):,} clients that had a task")
        axes.set_xlim(0, first[-1])
    # Clients that are rarely sampled would be a thin line at the bottom of a full scale.
    axes.set_ylim(0, 100 if whole else 1.25 * busiest)
    axes.set_ylabel("share of time (%)")
    axes.set_title("What each client did", loc="left")


# ---- several runs --------------------------------------------------------------------------------


def _curve(run: Run, metric: str, axis: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = [row for row in run.history if _can_be_drawn(row.get(metric, math.nan))]
    if not rows:
        raise ConfigError(f"the run in {run.directory} has no finite value of {metric!r}")
    x = np.array([_position(row, axis) for row in rows], dtype=float)
    return x, np.array([row[metric] for row in rows], dtype=float)


def _band(
    curves: list[tuple[NDArray[np.float64], NDArray[np.float64]]],
    confidence: float,
    *,
    steps: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Returns positions, mean, and half the width of the band (zero for one curve)."""
    from scipy.stats import t as student

    x = curves[0][0]
    if not all(np.array_equal(x, other) for other, _ in curves):
        low, high = max(c[0][0] for c in curves), min(c[0][-1] for c in curves)
        if low > high:
            raise ConfigError(
                f"the seeds of a method share no stretch of this axis: one starts at {low}, "
                f"another ends at {high}; compare runs of similar length"
            )
        x = np.unique(np.concatenate([position for position, _ in curves]))
        x = x[(x >= low) & (x <= high)]
        x = x[np.unique(np.linspace(0, len(x) - 1, _MAX_POSITIONS).astype(int))]
    values = np.stack(
        [
            value[np.searchsorted(position, x, side="right") - 1]
            if steps
            else np.interp(x, position, value)
            for position, value in curves
        ]
    )
    n = len(curves)
    if n <= 2:
        return x, values.mean(axis=0), np.ptp(values, axis=0) / 2
    half = student.ppf(0.5 + confidence / 2, n - 1) * values.std(axis=0, ddof=1) / math.sqrt(n)
    return x, values.mean(axis=0), half


def _logarithmic(axes: Axes, positions: Sequence[NDArray[np.float64]], unit: units.Unit) -> None:
    """Makes an axis logarithmic from the first evaluation on where some runs are much longer."""
    ends = [float(x[-1]) for x in positions]
    if min(ends) <= 0 or max(ends) <= _SPREAD * min(ends):
        return
    first = min(float(x[x > 0][0]) for x in positions) / unit.divisor
    axes.set_xscale("symlog", linthresh=first, linscale=0.6)  # what is at 0 has its place
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{axes.get_xlabel()}, logarithmic")


def _limits(axes: Axes, values: NDArray[np.float64], metric: str, levels: Sequence[float]) -> None:
    # By the data, not the bands: Student's t makes the band of three seeds 2.5 deviations wide.
    low, high = min([float(values.min()), *levels]), max([float(values.max()), *levels])
    if better(metric) != "max" and 0 < low < high / 100:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, high * 1.3)
        return
    if not _constant(axes, np.array([low, high])):
        margin = 0.06 * (high - low)
        axes.set_ylim(low - margin, high + margin)


def _constant(axes: Axes, values: NDArray[np.float64]) -> bool:
    """Returns whether values are one but for rounding; then the axis shows it in the middle."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    size = max(abs(low), abs(high))
    if high - low > _ROUNDING * size:
        return False
    margin = 0.1 * size or 0.1
    axes.set_ylim(low - margin, high + margin)
    return True


def _possible(metric: str, values: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Returns what a metric can be: shares are in [0, 1], if they are not in percent."""
    if is_share(metric) and all(((y >= 0) & (y <= 1)).all() for y in values):
        return 0.0, 1.0
    return -math.inf, math.inf


# ---- for all -------------------------------------------------------------------------------------


@contextmanager
def drawing(width: float, height: float, path: Path | None) -> Iterator[Figure]:
    """Gives a figure of so many inches, which is written after the block if there is a path.

    Raises:
        ConfigError: Matplotlib is missing or broken.
    """
    check_importable("a plot", "matplotlib.figure")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]  # keys are a Literal there
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        if path is not None:
            with replacing(path) as temporary:
                # Without the software's version, equal figures are equal files.
                figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})


def _can_be_drawn(values: Any) -> Any:
    """Whether numbers, or each in an array, are finite, and so are their squares."""
    return np.abs(values) < _LARGEST


def _position(row: Row, axis: str) -> float:
    return row["bytes_down"] + row["bytes_up"] if axis == "bytes" else row[axis]


def _unit(axis: str, largest: float) -> units.Unit:
    if axis == "time_s":
        return units.time_unit(largest)
    if axis == "bytes":
        return units.byte_unit(largest)
    return units.energy_unit(largest) if axis == "energy_j" else units.Unit(1.0, "")


def _label_axis(axes: Axes, axis: str, unit: units.Unit) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(f"{AXES[axis]} ({unit.symbol})" if unit.symbol else AXES[axis])
    if axis == "round":
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))  # there is no round 2.5


def _readable(metric: str) -> str:
    return _shown(units.name(metric).replace("_", " "))


def _shown(text: str) -> str:
    """Returns anybody's text as Matplotlib draws it: no formula, and no longer than its picture."""
    short = text if len(text) <= _MAX_LABEL else f"{text[:_MAX_LABEL]}..."
    # A label that starts with an underscore is left out of the legend.
    return printable(short).replace("$", r"\$").removeprefix("_")
