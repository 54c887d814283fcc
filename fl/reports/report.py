"""`fl report DIR...`: one HTML page about any set of runs.

The page is one file: pictures are inside it, it needs no network, and reads without its script.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.table import Table

from fl.errors import ConfigError
from fl.reports import plots, shell, units
from fl.reports.atomic import replacing
from fl.reports.files import printable, read_file
from fl.reports.history import COLUMNS, changes
from fl.reports.jobs import EVERY, JOBS, Job, by_overrides, members, read_jobs
from fl.reports.jobs import title as name_of
from fl.reports.runs import Run, ended, load_runs
from fl.reports.table import comparison
from fl.reports.tensorboard_log import flattened

FILE = "report.html"

_AXES = ("round", "time_s", "bytes", "energy_j")
_MOST_METRICS = 4
_MOST_LABELS = 6
_CHOSEN_TOO = {  # what a strategy may choose beside itself, to the keys that tell it
    "fleet": ("fleet._target_",),
    "client": ("client.rule._target_", "client.correction._target_"),
    "model": ("model._target_",),
    "num_clients": ("num_clients",),
    "num_rounds": ("num_rounds",),
}
_MOST_PICTURES = 12  # configurations
_OF_CLIENTS = {
    "clients.png": "What the clients did",
    "personal.png": "What each client has",
    "confusion.png": "Which classes are taken for which",
}
_PICTURE_BYTES = 5 * 10**6  # most that a run's picture may have
_LONGEST = 1000  # characters of a value
_HASH = 12  # characters of a SHA-256 that are shown


def main(arguments: Sequence[str]) -> None:
    """Runs `fl report`.

    Raises:
        ConfigError: there is no run to report, or the page cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="fl report",
        description="Writes one HTML page about all runs at or below directories: curves, costs to "
        "the target, utilisation, faults, and in which keys their configurations differ.",
    )
    parser.add_argument(
        "directories", nargs="+", metavar="DIR", type=Path, help="of runs or sweeps"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help=f"default: {FILE} in DIR, or here if there are several",
    )
    parser.add_argument("-t", "--title", metavar="TEXT", help="default: what the runs differ in")
    parser.add_argument(
        "--live",
        action="store_true",
        help="instead of a file, a page on this machine that follows runs while they go on",
    )
    parser.add_argument("--port", type=int, metavar="N", help="of the live page; default: any")
    given = parser.parse_args(arguments)
    if given.live:
        from fl.reports import live

        live.serve(given.directories, given.title, given.port, given.output)
        return
    if given.port is not None:
        raise ConfigError(f"--port is {given.port}, and only --live reads it: leave it out")
    several = len(given.directories) > 1
    path: Path = given.output or (Path() if several else given.directories[0]) / FILE
    runs, problems = load_runs(given.directories)
    failed, unread = failed_jobs(given.directories, runs)
    problems += unread
    for problem in problems:
        print(printable(f"fl: left out: {problem}"), file=sys.stderr)
    if not runs:
        where = ", ".join(map(str, given.directories))
        raise ConfigError(
            f"there is no run to report at or below {where}; give directories of runs or sweeps "
            "that have ended"
        )
    text = page(runs, problems, failed, path.parent, given.title)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; give -o FILE") from error
    count = f"{len(runs)} run{'' if len(runs) == 1 else 's'}"
    print(f"{path}: {count}, {len(text.encode()) / 1e6:.1f} MB")


def failed_jobs(roots: Sequence[Path], runs: Sequence[Run]) -> tuple[list[Job], list[str]]:
    """Returns the failed jobs of sweeps at or below directories that left no run.

    Also returns what is wrong with lists of jobs that cannot be read.
    """
    known = {run.directory.resolve() for run in runs if run.directory is not None}
    jobs: list[Job] = []
    unread: list[str] = []
    for path in (path for root in roots for path in sorted(root.rglob(JOBS))):
        try:
            jobs += read_jobs(path.parent)
        except ConfigError as error:
            unread.append(str(error))
    failed = [job for job in jobs if job.status == "failed"]
    return [job for job in failed if Path(job.directory).resolve() not in known], unread


def page(
    runs: Sequence[Run],
    problems: Sequence[str] = (),
    failed: Sequence[Job] = (),
    base: Path | None = None,
    title: str | None = None,
    running: Sequence[Run] = (),
    version: str | None = None,
) -> str:
    """Returns the page as HTML.

    Args:
        runs: at least one; of a live page any number.
        problems: what is wrong with runs that could not be read.
        failed: jobs that left no run.
        base: directory of the page, from which links start; None makes them absolute.
        title: of the page; None says in what the runs differ, of one configuration what it is.
        running: those that have not ended yet, of a live page.
        version: of a live page, as of `document`.
    """
    # What has not ended goes into no mean of results.
    groups = _named(ended(runs)[0] or runs, running)
    going = _named(running, runs)
    title = title or _few([*groups, *(label for label in going if label not in groups)])
    title = title or "no run has been evaluated yet"
    drawn = {**groups, **{f"{label} (running)": found for label, found in going.items()}}
    parts = [
        _heading(title, runs, groups, len(running)),
        _running(going),
        _problems(runs, problems, failed),
        _unlike(groups),
        *(_costs(target, chosen) for target, chosen in _by_target(groups)),
        *(["<h2>Curves</h2>", *_curves(drawn)] if drawn else []),
    ]
    if groups:
        parts += [
            _utilisation(groups),
            *_pictures(groups),
            _faults(groups),
            _differences(groups),
            _list(_named(runs, running), base, linked=version is None),
        ]
    return shell.document(title, "\n".join(part for part in parts if part), version)


def _named(runs: Sequence[Run], beside: Sequence[Run] = ()) -> dict[str, list[Run]]:
    groups = by_overrides(runs, beside)
    return {name_of(alike[0]) if k == EVERY else k: alike for k, alike in groups.items()}


# ---- sections ------------------------------------------------------------------------------------


def _heading(
    title: str, runs: Sequence[Run], groups: Mapping[str, Sequence[Run]], running: int
) -> str:
    versions = {json.dumps(run.summary.get("versions"), sort_keys=True) for run in runs}
    facts = []
    for text in sorted(versions):
        found = json.loads(text) or {}
        facts.append(", ".join(f"{name} {value}" for name, value in found.items() if value))
    completed = sum(run.summary["status"] == "completed" for run in runs)
    configurations = f"{len(groups)} configuration{'' if len(groups) == 1 else 's'} but for seeds"
    count = f"{len(runs)} run{'' if len(runs) == 1 else 's'}"
    count += f" that ended and {running} that still run{'s' if running == 1 else ''}" * bool(
        running
    )
    text = f'<h1 class="long">{shell.text(title)}</h1>\n'
    text += f"<p>{shell.text(f'{count}, {completed} of them completed; {configurations}.')}</p>"
    made = (f'\n<p class="note long">Made with {shell.text(fact)}.</p>' for fact in facts)
    return text + "".join(made)


def _running(groups: Mapping[str, Sequence[Run]]) -> str:
    """Returns how far those are that go on."""
    runs = [(label, run) for label, group in groups.items() for run in group if run.history]
    names = dict.fromkeys(name for _, run in runs for name in run.history[-1])
    shown = plots.worth_drawing(list(names), [])[:_MOST_METRICS]
    rows = []
    for label, run in runs:
        row, rounds = run.history[-1], run.summary["config"].get("num_rounds")
        of = f" of {rounds}" if isinstance(rounds, int) else ""
        cells = [label, f"{int(row['round'])}{of}", units.duration(row["time_s"])]
        values = [units.metric(row[name]) if name in row else units.MISSING for name in shown]
        rows.append([*map(shell.text, (*cells, *values)), shell.code(str(run.directory))])
    if not rows:
        return ""
    return (
        f"<h2>Running</h2>\n{shell.cells(['runs', 'round', 'simulated', *shown, 'folder'], rows)}"
    )


def _problems(runs: Sequence[Run], problems: Sequence[str], failed: Sequence[Job]) -> str:
    lines = [f"left out: {problem}" for problem in problems]
    lines += [f"{job}: {job.reason}" for job in failed]
    for run in runs:
        if run.summary["status"] != "completed":
            error = str(run.summary.get("error") or "").strip().splitlines()
            reason = f": {error[-1]}" if error else ""
            lines.append(f"{run.directory} was {run.summary['status']}{reason}")
    if not lines:
        return ""
    items = "".join(f'<li class="bad">{shell.text(line)}</li>' for line in lines)
    return f"<h2>What did not work</h2>\n<ul>{items}</ul>"


def _unlike(groups: Mapping[str, Sequence[Run]]) -> str:
    """Returns what is not the same for all, though no label says so: strategies choose it, too."""
    lines = []
    for what, keys in _CHOSEN_TOO.items():
        if any(f"{what}=" in label for label in groups):
            continue
        found: dict[str, list[str]] = {}
        for label, group in groups.items():
            config = flattened(group[0].summary["config"])
            values = [str(config[key]).rpartition(".")[2] for key in keys if config.get(key)]
            found.setdefault(" with ".join(values) or units.MISSING, []).append(label)
        if len(found) > 1:
            said = [f"{value} of {_few(labels)}" for value, labels in found.items()]
            lines.append(f"{what}: {'; '.join(said)}")
    if not lines:
        return ""
    items = "".join(f"<li>{shell.text(line)}</li>" for line in lines)
    note = "Some strategies choose more than themselves: what follows compares this as well."
    return f'<h2>Not the same for all</h2>\n<p class="note">{note}</p>\n<ul>{items}</ul>'


def _few(labels: Sequence[str]) -> str:
    more = len(labels) - _MOST_LABELS
    return ", ".join(labels[:_MOST_LABELS]) + (f" and {more} others" if more > 0 else "")


def _by_target(
    groups: Mapping[str, Sequence[Run]],
) -> Iterable[tuple[Mapping[str, Any] | None, dict[str, list[Run]]]]:
    """Yields each target that runs have, with these runs; costs to two targets do not compare."""
    found: dict[str, tuple[Mapping[str, Any] | None, dict[str, list[Run]]]] = {}
    for label, group in groups.items():
        for run in group:
            target = run.summary["target"]
            own = None if target is None else {k: target[k] for k in ("metric", "mode", "value")}
            key = json.dumps(own)
            found.setdefault(key, (own, {}))[1].setdefault(label, []).append(run)
    return found.values()


def _costs(target: Mapping[str, Any] | None, groups: Mapping[str, Sequence[Run]]) -> str:
    if target is None:
        heading = "Results and costs"
    else:
        sign = ">=" if target["mode"] == "max" else "<="
        heading = f"Results, and costs to {target['metric']} {sign} {target['value']:g}"
    table = comparison(groups)
    note = ""
    if table.title:
        note = (
            f'<p class="note">{shell.text(str(table.title))}; in parentheses, how many seeds.</p>\n'
        )
    return f"<h2>{shell.text(heading)}</h2>\n{note}{_rich(table)}"


def _curves(groups: Mapping[str, Sequence[Run]]) -> Iterable[str]:
    every = [run for group in groups.values() for run in group]
    targets = [run.summary["target"] for run in every if run.summary["target"] is not None]
    names = [str(target["metric"]) for target in targets]
    present = dict.fromkeys(n for run in every for row in run.history for n in row)
    measured = [name for name in present if name not in COLUMNS]
    varied = [name for name in measured if any(changes(run.history, name) for run in every)]
    shown = dict.fromkeys([*plots.worth_drawing(list(present), names), *varied])
    for name in list(shown)[:_MOST_METRICS]:
        chosen = {
            label: found
            for label, group in groups.items()
            if (found := [run for run in group if _has(run, name)])
        }
        values = {float(target["value"]) for target in targets if target["metric"] == name}
        if not chosen:
            continue
        target = values.pop() if len(values) == 1 else None
        axes: list[str] = []
        for axis in _AXES:
            try:
                plots.compare(chosen, name, axes=[axis])
                axes.append(axis)
            except ConfigError as error:  # seeds that have no simulated time in common, say
                yield f'<p class="note">{shell.text(f"{name}, {plots.AXES[axis]}: {error}")}</p>'
        if axes:
            central = _central(chosen, name)
            figure = plots.compare(chosen, name, axes=axes, target=target, central=central)
            against = ", ".join(plots.AXES[axis] for axis in axes)
            yield shell.picture(shell.svg(figure), f"{name} against {against}", list(chosen))
    if not shown:
        said = "has changed in any run" if any(run.history for run in every) else "was evaluated"
        yield f"<p>No metric {said}.</p>"


def _central(groups: Mapping[str, Sequence[Run]], metric: str) -> float | None:
    """Returns what training on all data in one place reached, the mean over runs that did it."""
    extras = [run.summary.get("extra") or {} for group in groups.values() for run in group]
    central = [extra.get("central") or {} for extra in extras]
    reached = [float(found[metric]) for found in central if metric in found]
    return sum(reached) / len(reached) if reached else None


def _has(run: Run, metric: str) -> bool:
    return any(math.isfinite(row.get(metric, math.nan)) for row in run.history)


def _utilisation(groups: Mapping[str, Sequence[Run]]) -> str:
    rows = []
    parts = ["compute", "radio", "idle"]
    every = [run.summary["totals"]["energy_j"] for group in groups.values() for run in group]
    parts += ["servers"] if any("servers" in joules for joules in every) else []
    for label, group in groups.items():
        totals = [run.summary["totals"] for run in group]
        joules = [t["energy_j"] for t in totals]
        energy = sum(j["total"] for j in joules)
        rows.append(
            [
                label,
                _mean(100 * t.get("utilisation", math.nan) for t in totals) + " %",
                *(
                    f"{100 * sum(j.get(part, 0.0) for j in joules) / energy:.3g} %"
                    if energy > 0
                    else units.MISSING
                    for part in parts
                ),
                _mean(t.get("client_updates", math.nan) for t in totals),
                _mean(t.get("wall_s", math.nan) for t in totals) + " s",
            ]
        )
    note = "Computing is the share of simulated time, over the clients that were sent anything."
    note += " Communicating is sending and receiving, and waiting for each other in it."
    if _has_seeds(groups):
        note += " The others are means over seeds."
    heads = [
        "runs",
        "computing",
        "energy: computing",
        *map(units.energy_part, parts[1:]),
        "client updates",
    ]
    table = shell.table([*heads, "time on this host"], rows)
    return f'<h2>Utilisation</h2>\n<p class="note">{shell.text(note)}</p>\n{table}'


def _pictures(groups: Mapping[str, Sequence[Run]]) -> Iterable[str]:
    """Yields pictures of clients in the first run of each configuration, where they were drawn."""
    number = 0
    for label, group in groups.items():
        for run in group:
            drawn = {what: _png(run.directory, name) for name, what in _OF_CLIENTS.items()}
            pictures = {what: picture for what, picture in drawn.items() if picture is not None}
            if pictures and number == _MOST_PICTURES:
                yield f'<p class="note">Of {_MOST_PICTURES} configurations; the others are in '
                yield "the runs' folders.</p>"
                return
            for what, picture in pictures.items():
                image = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
                title = f"{what}: {label}, seed {run.summary.get('seed')}"
                shown = f"<summary>{shell.text(title)}</summary>{shell.picture(image, title)}"
                yield f"<details>{shown}</details>"
            if pictures:
                number += 1
                break


def _png(directory: Path | None, name: str) -> bytes | None:
    """Returns a picture of a run; None if there is none, or something else."""
    if directory is None or (directory / "plots").is_symlink():
        return None
    try:
        found = read_file(directory / "plots" / name, _PICTURE_BYTES)
    except ConfigError:
        return None
    return found if found.startswith(b"\x89PNG\r\n\x1a\n") else None


def _faults(groups: Mapping[str, Sequence[Run]]) -> str:
    counts = {
        label: [run.summary.get("faults") or {} for run in group] for label, group in groups.items()
    }
    kinds = list(dict.fromkeys(k for found in counts.values() for one in found for k in one))
    if not kinds:
        return "<h2>Faults</h2>\n<p>None was recorded.</p>"
    rows = [
        [label, *(_mean(one.get(kind, 0) for one in found) for kind in kinds)]
        for label, found in counts.items()
    ]
    table = shell.table(["runs", *(kind.replace("_", " ") for kind in kinds)], rows)
    note = "Number in a run, mean over seeds." if _has_seeds(groups) else "Number in a run."
    return f'<h2>Faults</h2>\n<p class="note">{note}</p>\n{table}'


def _has_seeds(groups: Mapping[str, Sequence[Run]]) -> bool:
    return any(len(group) > 1 for group in groups.values())


def _differences(groups: Mapping[str, Sequence[Run]]) -> str:
    if len(groups) == 1:
        ((label, alike),) = groups.items()
        table = shell.table(["group", "member"], [[*pair] for pair in members(alike[0]).items()])
        return f'<h2>Configuration</h2>\n<p class="long">{shell.text(label)}</p>\n{table}'
    configs = {
        label: [flattened(run.summary["config"]) for run in group]
        for label, group in groups.items()
    }
    every = [config for found in configs.values() for config in found]
    keys = dict.fromkeys(key for config in every for key in config)
    rows: dict[bool, list[list[str]]] = {True: [], False: []}
    for key in keys:
        if key.rpartition(".")[2] == "seed" or len({repr(c.get(key)) for c in every}) == 1:
            continue
        cells = []
        for found in configs.values():
            values = dict.fromkeys(_value(config.get(key)) for config in found)
            cells.append(", ".join(values))
        rows[all(key in config for config in every)].append([key, *cells])
    rows = {of_all: _without_references(found) for of_all, found in rows.items()}
    if not rows[True] and not rows[False]:
        return "<h2>Configurations</h2>\n<p>They are all the same, but for seeds.</p>"
    parts = ["<h2>Configurations</h2>", '<p class="note">The keys that differ, but seeds.</p>']
    if rows[True]:
        parts.append(shell.table(["key", *configs], rows[True]))
    if rows[False]:
        title = f"{len(rows[False])} keys that only some configurations have"
        table = shell.table(["key", *configs], rows[False])
        parts.append(f"<details><summary>{title}</summary>{table}</details>")
    return "\n".join(parts)


def _without_references(rows: Sequence[list[str]]) -> list[list[str]]:
    """Returns rows of keys and values but those of keys that refer to another, as it seems.

    `strategy.aggregator.rule.f` has the value of `aggregator.f`, and all parts of it in order.
    """

    def refers(row: Sequence[str], other: Sequence[str]) -> bool:
        parts = iter(row[0].split("."))
        return (
            row is not other
            and row[1:] == other[1:]
            and all(part in parts for part in other[0].split("."))
        )

    return [row for row in rows if not any(refers(row, other) for other in rows)]


def _value(value: bool | float | str | None) -> str:
    if value is None:
        return units.MISSING
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _list(groups: Mapping[str, Sequence[Run]], base: Path | None, *, linked: bool) -> str:
    rows = []
    for label, group in groups.items():
        for run in group:
            summary = run.summary
            hashes = [
                shell.code(str(summary.get(name) or "")[:_HASH] or units.MISSING)
                for name in ("config_digest", "trace_sha256", "model_sha256")
            ]
            data = (summary.get("extra") or {}).get("data_sha256") or units.MISSING
            short = data[:_HASH] if isinstance(data, str) else _value(json.dumps(data))
            place = _link(run.directory, base) if linked else shell.code(str(run.directory))
            seed, status = _value(str(summary.get("seed"))), _value(str(summary["status"]))
            bad = ' class="bad"' if status != "completed" else ""
            cells = [
                shell.text(label),
                shell.text(seed),
                f"<span{bad}>{shell.text(status)}</span>",
                *hashes,
            ]
            rows.append([*cells, shell.code(short), place])
    heads = ["runs", "seed", "status", "configuration", "trace", "model", "data", "folder"]
    note = f"The first {_HASH} characters of SHA-256; whole ones are in each run's summary.json."
    return f'<h2>Runs</h2>\n<p class="note">{shell.text(note)}</p>\n{shell.cells(heads, rows)}'


def _link(directory: Path | None, base: Path | None) -> str:
    if directory is None:
        return units.MISSING
    target = directory.resolve()
    relative = str(target) if base is None else os.path.relpath(target, base.resolve())
    return f'<a href="{shell.text(quote(os.fsencode(relative)))}/">{shell.code(relative)}</a>'


def _rich(table: Table) -> str:
    heads = [str(column.header) for column in table.columns]
    rows = zip(*(map(str, column.cells) for column in table.columns), strict=True)
    return shell.table(heads, list(rows))


def _mean(values: Iterable[float]) -> str:
    known = [float(value) for value in values if math.isfinite(value)]
    return units.metric(sum(known) / len(known)) if known else units.MISSING
