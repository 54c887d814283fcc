"""All runs of this page, in one process, and its tables: see experiments/protocol.py.

FL_DATA_DIR=... python experiments/favas/run.py [METHOD ...]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from protocol import Comparison, Method, main

RATE = "client.rule.lr"
SLOW = "fleet.client_slowdown"
# Waiting 4 and interaction 3: the interaction takes no time here.
POLLED = ("strategy.contacted=2", "strategy.waiting_s=7")
FAVAS = ("strategy=favas", *POLLED)
FEDBUFF = ("strategy=fedbuff", "strategy.concurrency=null", "strategy.rule.buffer_size=2")


def fedavg(n: int) -> tuple[str, ...]:
    """Returns the overrides of FedAvg with n clients a round."""
    return ("strategy=fedavg", f"strategy.clients={n}", "aggregator.weighted=false")


COMPARISON = Comparison(
    page=Path(__file__).parent,
    common=(
        *("+experiment=favas", "data.num_train=3600", "data.num_test=1000"),
        *("executor.max_batch=1", "target.value=0.85"),
    ),
    cases={
        "1/9 fast": (f"{SLOW}.shares=[1,8]", f"{SLOW}.drawn=false"),
    },
    methods={
        "favas": Method(FAVAS, {RATE: 0.3}),
        "fedbuff": Method(FEDBUFF, {RATE: 0.03}),
        "fedbuff, own eta": Method(FEDBUFF, {RATE: 0.1, "strategy.rule.server_optimizer.eta": 0.3}),
        "quafl": Method(("strategy=quafl", *POLLED), {RATE: 0.1}),
        "fedavg, 2": Method(fedavg(2), {RATE: 0.1}),
        "fedavg, 9": Method(fedavg(9), {RATE: 0.1}),
    },
    against="favas",
    trials=6,
    seeds=range(5),
    tune=("evaluate_every_s=250",),
)


def tables(records: list[dict[str, Any]]) -> str:
    """Returns what stands between the marks of the page, made of what is kept with it."""
    return COMPARISON.report().tables()


if __name__ == "__main__":
    main(COMPARISON, tables)
