"""What benchmarks gave at several commits, beside each other.

    python benchmarks/trend.py FOLDER [--out FILE]

FOLDER holds a folder for each time that `make bench` was run, with the JSON files that it wrote; CI
keeps those of every night. Times of different machines do not compare: ratios of figures measured
side by side do. The last column is the newest figure over the median of those before.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import report

SHOWN = 8  # runs, the newest
Line = tuple[str, str, str]
"""Script, what the row is of, and the figure."""


def read(folder: Path) -> dict[str, dict[Line, float]]:
    """Returns the figures of every run in a folder, by date and commit, the oldest first."""
    found: dict[str, dict[Line, float]] = {}
    for path in sorted(folder.rglob("*.json")):
        record = json.loads(path.read_text("utf-8"))
        about = record["machine"]
        run = f"{about['date']} {str(about['commit'])[:8]}"
        for row in record["rows"]:
            found.setdefault(run, {}).update(_figures(path.stem, row))
    return dict(sorted(found.items()))


def _figures(script: str, row: Mapping[str, Any]) -> Iterator[tuple[Line, float]]:
    of = ", ".join(str(value) for value in row.values() if isinstance(value, str))
    for name, value in row.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield (script, of, name), float(value)


def page(runs: Mapping[str, Mapping[Line, float]]) -> Iterator[str]:
    """Yields the lines of a page in Markdown: a table for each script."""
    names = list(runs)[-SHOWN:]
    lines = list(dict.fromkeys(line for name in names for line in runs[name]))
    yield "# Benchmarks, by commit\n"
    for script in dict.fromkeys(script for script, _, _ in lines):
        yield f"## {script}\n"
        yield _row(["of", "figure", *names, "newest / before"])
        yield _row(["---"] * 2 + ["---:"] * (len(names) + 1))
        for line in lines:
            if line[0] == script:
                values = [runs[name].get(line) for name in names]
                shown = ["" if value is None else f"{value:.4g}" for value in values]
                yield _row([*line[1:], *shown, _change(values)])
        yield ""


def _change(values: list[float | None]) -> str:
    before = [value for value in values[:-1] if value is not None]
    newest = values[-1]
    middle = statistics.median(before) if before else 0.0
    return f"{newest / middle:.2f}" if newest is not None and middle else ""


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="of folders with what `make bench` wrote")
    parser.add_argument("--out", type=Path, default=report.RESULTS / "trend.md", help="page")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text("\n".join(page(read(given.folder))) + "\n", encoding="utf-8")
    print(given.out)


if __name__ == "__main__":
    main()
