"""Three schemes on three platforms, in seconds and joules.

    FL_DATA_DIR=... python experiments/riscv/run.py

Time alone (client.train=false), 20 rounds of 5 epochs of MNIST, as the authors' reproduce.sh has
them. Writes the table of README.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hydra import compose, initialize_config_module

from fl.reports.page import replace_tables
from fl.runs.run import run_to_end

HERE = Path(__file__).parent
WORKERS = (2, 4, 7)
LINK_BPS, LATENCY_S = 1e9, 1e-4  # Gigabit Ethernet
ADD, COPY, CODE = 8e-10, 3e-10, 1.7e-9  # s per byte, of fl/conf/_base/hierarchy/machine.yaml


class Platform(NamedTuple):
    """What a process of four cores has: README.md says where the numbers are from.

    Attributes:
        flops: in training, FLOP/s.
        slower: in moving memory than the machine on which the constants above were measured.
        idle_w, work_w: power of its cores, W.
    """

    flops: float
    slower: float
    idle_w: float
    work_w: float


PLATFORMS = {
    "x86-64 (Xeon Gold 6230)": Platform(0.2 * 537e9, 1.0, 10.0, 25.0),
    "Arm (Ampere Altra Q80-30)": Platform(0.2 * 192e9, 1.0, 4.2, 10.5),
    "RISC-V (SiFive U740)": Platform(0.2 * 4e9, 9.0, 4.8, 5.9),
}


def overrides(scheme: str, platform: Platform, workers: int) -> Iterator[str]:
    """Yields what a run is configured with."""
    yield from ("data=mnist", "partition=iid", f"num_clients={workers}", "num_rounds=20")
    yield from ("model=mlp", "model.hidden=[64,32]", "client=adamw", "client.batch_size=64")
    yield from ("client.local_epochs=5", "client.train=false", "executor=serial", "target=null")
    yield from ("progress=false", "views=false", "checkpoint=off", "round_timeout_s=1e6")
    yield from ("fleet=uniform", f"fleet.flops={platform.flops}", f"fleet.latency_s={LATENCY_S}")
    yield from (f"fleet.{way}={LINK_BPS}" for way in ("up_bps", "down_bps"))
    yield from (f"fleet.server_{way}={LINK_BPS}" for way in ("up_bps", "down_bps"))
    yield from (f"fleet.idle_w={platform.idle_w}", f"fleet.compute_w={platform.work_w}")
    yield f"fleet.radio_w={platform.idle_w}"  # a cable: what moves bytes is not the cores
    add, copy, code = (x * platform.slower for x in (ADD, COPY, CODE))
    if scheme == "peer-to-peer":
        yield from ("strategy=dfedavg", "topology=complete", "strategy.evaluated_nodes=1")
        return
    yield from ("strategy=fedavg", "strategy.fraction_train=1", "strategy.min_train_nodes=2")
    yield from (f"runtime.server_work_w={platform.work_w}", f"runtime.send_s_per_byte={code}")
    yield f"runtime.server_idle_w={platform.idle_w if scheme == 'master-worker' else 0}"
    if scheme == "master-worker":
        yield from (
            f"runtime.receive_s_per_byte={code}",
            f"runtime.aggregate_s_per_parameter={4 * add}",
        )
        return
    extra = platform.work_w - platform.idle_w
    yield from ("hierarchy=edge", f"hierarchy.edges={math.ceil(workers / 4)}")
    yield from (f"hierarchy.{way}={LINK_BPS}" for way in ("up_bps", "down_bps"))
    machine = {
        "add_s_per_byte": add,
        "copy_s_per_byte": copy,
        "encode_s_per_byte": code,
        "nic_bps": LINK_BPS,
        "nic_latency_s": LATENCY_S,
        "idle_w": platform.idle_w,
        "work_w": extra,
    }
    yield from (f"hierarchy.machine.{key}={value}" for key, value in machine.items())


def measured(scheme: str, platform: Platform, workers: int) -> tuple[float, float, float]:
    """Returns seconds, joules and megabytes of a run, idle workers included."""
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", list(overrides(scheme, platform, workers)))
    totals = run_to_end(config).summary["totals"]
    seconds, joules = totals["virtual_s"], totals["energy_j"]
    busy_s = joules["compute"] / platform.work_w + joules["radio"] / platform.idle_w
    waiting_j = platform.idle_w * max(0.0, workers * seconds - busy_s)
    moved = totals["bytes_down"] + totals["bytes_up"]
    return seconds, joules["total"] + waiting_j, moved / 1e6


def main() -> None:
    """Writes the page's table."""
    lines = [
        "| platform | scheme | workers | s a round | J a round | MB a round |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, platform in PLATFORMS.items():
        for scheme in ("master-worker", "peer-to-peer", "tree"):
            for workers in WORKERS:
                found = (x / 20 for x in measured(scheme, platform, workers))
                cells = " | ".join(f"{x:.3g}" for x in found)
                lines.append(f"| {name} | {scheme} | {workers} | {cells} |")
    replace_tables(HERE / "README.md", "\n".join(lines))


if __name__ == "__main__":
    main()
