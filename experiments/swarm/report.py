"""Tables of README.md from the runs of run.sh: python experiments/swarm/report.py outputs/swarm."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean

from fl.reports.history import read_history

LIMIT_S, BATCH = 3600.0, 128


def main(out: Path) -> None:
    """Prints them."""
    print("| width | one way, ms | utilisation | micro-batches a second |\n|---:|---:|---:|---:|")
    found = []
    for folder in (out / "width").iterdir():
        width, latency = folder.name.split("-")
        row = read_history(folder / "metrics.csv")[-1]
        found.append((int(width), 2000 * float(latency), row))
    for width, ms, row in sorted(found, key=lambda one: one[:2]):
        rate = row["micro_batches_per_s"]
        print(f"| {width} | {ms:g} | {100 * row['utilisation']:.1f} % | {rate:.1f} |")
    print("\n| T | seeds | micro-batches a second | utilisation | moves | made again |")
    print("|---|---|---|---|---:|---:|")
    for period in ("60", "300", "inf", "none"):
        rates, used, moves, again, seeds = [], [], [], [], []
        for folder in sorted((out / "rebalancing").glob(f"T{period}-*")):
            rows = [r for r in read_history(folder / "metrics.csv") if 0 < r["time_s"] <= LIMIT_S]
            if not (folder / "summary.json").exists():
                continue
            seeds.append(folder.name.rpartition("-")[2])
            rates.append(BATCH * len(rows) / rows[-1]["time_s"])
            used.append(mean(r["utilisation"] for r in rows))
            moves.append(sum(r["moves"] for r in rows))
            again.append(sum(r["repeated_passes"] for r in rows))
        if seeds:
            print(
                f"| {period} | {', '.join(seeds)} | {', '.join(f'{r:.3f}' for r in rates)} | "
                f"{', '.join(f'{100 * u:.0f} %' for u in used)} | {mean(moves):.0f} | "
                f"{mean(again):.0f} |"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
