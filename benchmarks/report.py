"""How every benchmark says what it measured: a table on standard output and a JSON file.

A script makes its rows (one dictionary per line of the table), and ends with `publish`. The file
holds the rows, the settings and what the numbers depend on: commit, cores, versions, date. Machines
differ and are shared, so what counts are ratios of figures measured side by side in one run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "outputs" / "benchmarks"


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the options all benchmarks have: --quick and --out."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--quick", action="store_true", help="smaller and less exact")
    made.add_argument(
        "--out", type=Path, default=RESULTS / f"{name}.json", help="JSON file to write"
    )
    return made


def host_s() -> float:
    """Returns the host's time in s, also within a simulation, where clocks of `time` show its own.

    What a strategy calls from outside of `fl`, as an `evaluate_fn`, is somebody's app to it, see
    `fl.execution.virtual_time`.
    """
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def cpu_s() -> float:
    """Returns the CPU time of this process in s, also within a simulation."""
    return time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)


def machine() -> dict[str, Any]:
    """Returns what the numbers depend on."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "changed_since": bool(_git("status", "--porcelain", "--", "fl", "benchmarks")),
        "date": time.strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0)),
        "processor": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "numpy", "flwr", "ray")},
    }


def publish(
    out: Path,
    rows: Sequence[Mapping[str, Any]],
    settings: argparse.Namespace,
    about: Mapping[str, Any],
) -> None:
    """Writes rows, settings and machine to `out`.

    Args:
        out: the JSON file; its folder is made.
        rows: what was measured.
        settings: parsed arguments of the script.
        about: `machine()`, taken before measuring, so that `load` is that of the others.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    arguments = {key: str(v) if isinstance(v, Path) else v for key, v in vars(settings).items()}
    record = {"machine": dict(about), "settings": arguments, "rows": list(rows)}
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    commit = str(about["commit"] or "unknown")[:12] + ("+" if about["changed_since"] else "")
    print(f"\ncommit {commit}, {about['cores']} cores, {about['date']}: {out}", flush=True)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table: the first column to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    print(f"\n{title}")
    for row in cells:
        first = row[0].ljust(widths[0])
        print("  ".join([first, *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]))
    sys.stdout.flush()


def peak_bytes() -> int:
    """Returns the most memory this process has had resident so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _git(*arguments: str) -> str | None:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
