"""What Cephalo makes of the cluster of its authors' README, and what even parts would take there.

    python experiments/cephalo/report.py

Replaces the table in README.md between the two `report` marks. Profiles are those of
github.com/benson-guo/cephalo, data/model_latencies.json and model_memory.json: a layer of GPT 2.7B
in float16, 512 tokens, in ms and GiB. Nothing is trained.
"""

from __future__ import annotations

from pathlib import Path

from fl.reports.page import replace_tables
from fl.strategies.cephalo import BatchPart, Cephalo, Machine

HERE = Path(__file__).parent
GIB = 2.0**30
PARAMETERS, BATCH = 2_770_621_440, 64
CLUSTER = ("L4", "L4", "A6000", "P40")
PROFILES = {  # memory; (a, s) of a pass of m samples, a + s m
    "L4": (22.5, (1.181504, 7.415036), (4.842824, 10.94616)),
    "A6000": (47.99, (0.664214, 2.835478), (2.404014, 4.22101)),
    "P40": (22.5, (4.132932, 15.637328), (1.877118, 28.016862)),
}
RULE = Cephalo(
    BATCH,
    sample_bytes=0.371 * GIB,
    fixed_bytes=(0.7495 + 2.0) * GIB,
    overhead_s=0.01,
    recompute=True,
)


def machines() -> list[Machine]:
    """Returns the GPUs of the cluster, in s and bytes."""
    found = []
    for kind in CLUSTER:
        memory, (a, s), (b, t) = PROFILES[kind]
        found.append(Machine(memory * GIB, (a / 1e3, s / 1e3), (b / 1e3, t / 1e3)))
    return found


def row(what: str, parts: list[BatchPart]) -> tuple[str, float]:
    """Returns a row of the table, and the seconds that the slowest takes for a layer."""
    slowest = max(
        RULE.seconds(one, part, 0.0, 0.0) for one, part in zip(machines(), parts, strict=True)
    )
    dealt = ", ".join(
        f"{part.samples}" + (f" in {part.micro_batches}" if part.micro_batches > 1 else "")
        for part in parts
    )
    return f"| {what} | {dealt} | {1e3 * slowest:.0f} ms", slowest


def main() -> None:
    """Writes the table."""
    most = [RULE.largest(one.memory) for one in machines()]
    each = BATCH // len(CLUSTER)
    even = [
        BatchPart(each // k, k)
        for k in (next(k for k in (1, 2, 4, 8) if each // k <= m) for m in most)
    ]
    rows = [row("even parts", even), row("Cephalo", RULE.divided(machines(), PARAMETERS))]
    first = rows[0][1]
    lines = [f"| parts | samples of {', '.join(CLUSTER)} | a layer takes | over even parts |"]
    lines.append("|---|---|---:|---:|")
    lines += [f"{cells} | {first / took:.2f} |" for cells, took in rows]
    replace_tables(HERE / "README.md", "\n".join(lines))


if __name__ == "__main__":
    main()
