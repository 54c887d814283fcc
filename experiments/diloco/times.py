"""When the runs of run.sh would have been where, at any bandwidth: nothing is trained.

    python experiments/diloco/times.py RUNS

Virtual time depends on FLOPs and bytes, not on what is learnt: a run with clients that compute
nothing, but are charged for it, has the times of the real one. For the runs of run.sh, at their own
bandwidth, the trace's hash is compared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid
from hydra import compose, initialize_config_module
from torch import Tensor

from fl import simulate
from fl.clients import AdamW, Finished, Gradient, TrainingApp
from fl.clients.rule import Batch, Received, Scalar, State
from fl.runs.build import build
from fl.runs.recorder import Recorder
from fl.runs.simulator import SimulatedRun

PARAMETERS = 117_216
GBPS = (0.1, 1.0, 10.0)
METHODS = {
    "data_parallel": ["strategy=data_parallel", "num_rounds=300"],
    "local_sgd": ["strategy=local_sgd"],
    "diloco": ["strategy=diloco"],
    "streaming": ["strategy=streaming_diloco"],
    "streaming_e3m0": ["strategy=streaming_diloco", "compressor=e3m0"],
    "delayed": ["strategy=delayed_updates"],
    "eager": ["strategy=eager_updates"],
    "eager_e3m0": ["strategy=eager_updates", "compressor=e3m0"],
}


@dataclass(frozen=True)
class Still(AdamW):
    """Does not move, and costs what AdamW costs."""

    def step(
        self, w: Tensor, state: State, received: Received, batch: Batch, t: int
    ) -> tuple[Tensor, State, Tensor]:
        """Returns everything as it was."""
        return w, state, torch.zeros(())


@dataclass(frozen=True)
class Nothing(Gradient):
    """A gradient of 0, at the cost of one."""

    def step(
        self, w: Tensor, state: State, received: Received, batch: Batch, t: int
    ) -> tuple[Tensor, State, Tensor]:
        """Returns everything as it was."""
        return w, state, torch.zeros(())

    def finish(self, w: Tensor, state: State, received: Received, steps: Scalar) -> Finished:
        """Returns the model and a gradient of 0."""
        return Finished(w, {"gradient": torch.zeros_like(w)}, {})


@dataclass(frozen=True)
class Timed:
    """A run without training.

    Attributes:
        run: it.
        times: when each round ended, s.
    """

    run: SimulatedRun
    times: list[float]


def timed(overrides: Sequence[str]) -> Timed:
    """Returns the times of a run of this experiment."""
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", ["+experiment=diloco", *overrides])
    parts = build(config)
    still = Nothing() if isinstance(parts.app.rule, Gradient) else Still(keep_moments=True)
    app = TrainingApp(
        parts.model,
        parts.data,
        still,
        batch_size=parts.app.batch_size,
        local_epochs=None,
        local_steps=1,
        uplink=parts.app.uplink,
        downlink=parts.app.downlink,
        batching="off",
    )
    times: list[float] = []

    def server(grid: Grid, context: Context, recorder: Recorder) -> None:
        parts.strategy.start(
            grid,
            parts.initial(),
            num_rounds=config.num_rounds,
            evaluate_fn=lambda *_: times.append(grid.clock.now()),  # type: ignore[attr-defined]
        )

    run = simulate(server, app, parts.fleet, seed=config.seed, executor="serial", progress=False)
    return Timed(run, times)


def at(gbps: float) -> str:
    """Returns the override for a bandwidth, as for a model of 1e9 parameters."""
    return f"fleet.access_bps={gbps * PARAMETERS}"


def main(runs: Path) -> None:
    """Prints times, utilisation and bytes, and whether they are those of the runs."""
    for name, overrides in METHODS.items():
        again = timed([*overrides, at(1.0)])
        kept = sorted((runs / name).glob("*/summary.json"))
        same = [
            json.loads(path.read_text(encoding="utf-8"))["trace_sha256"]
            == again.run.summary["trace_sha256"]
            for path in kept
        ]
        print(f"{name}: {sum(same)} of {len(same)} runs have this trace")
        for gbps in GBPS:
            found = timed([*overrides, at(gbps)])
            totals = found.run.summary["totals"]
            print(
                f"  {gbps:4g} Gbit/s: {found.times[-1]:8.1f} s, computing "
                f"{100 * totals['utilisation']:5.1f} %, {totals['bytes_up'] / 1e6:.2f} MB"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
