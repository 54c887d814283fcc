"""A round of gossip beside a copy of the models and beside their training, on one thread.

    python benchmarks/gossip_mixing.py [--out FILE] [--nodes 1000] [--quick]

The models are the MLP 784-64-10 of every node, d = 50,890 weights in float32, as rows of one
matrix. For each topology: the number of weights of its matrix (nnz), the time to make it, and the
time of X <- W X by `fl.topologies.mix` and by scipy's and torch's sparse products. A copy of X is
the bound by memory; 2 nnz d operations are the arithmetic, given as a rate. Training is a local
step of batch 32 of all nodes, by the rule and runner that a simulation uses. All run on one thread,
and take turns; times are the thread's own, the least of a few. Machines differ and are shared: only
the ratios of one run mean something.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read once, when NumPy is imported

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import report
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import nn

from fl.clients import Sgd, TrainingApp
from fl.data import Examples, FederatedData
from fl.data.federated import Partitions
from fl.execution.contract import Payload, Request, RunInfo
from fl.models import MLP
from fl.randomness import SEED_KEY
from fl.topologies import (
    BaseGraph,
    Complete,
    ErdosRenyi,
    ExponentialGraph,
    OnePeerExponential,
    RandomRegular,
    Ring,
    Topology,
    mix,
)

SHAPE, CLASSES, BATCH = (1, 28, 28), 10, 32
LEAST_SECONDS = 0.5  # repeat a measurement for so long, and at least three times


def least_ms(*runs: Callable[[], object]) -> list[float]:
    """Returns the shortest of a few runs of each, in milliseconds; they take turns."""
    times: list[list[float]] = [[] for _ in runs]
    while len(times[0]) < 3 or sum(map(sum, times)) < LEAST_SECONDS:
        for run, of_run in zip(runs, times, strict=True):
            start = time.thread_time()
            run()
            of_run.append(time.thread_time() - start)
    return [1e3 * min(of_run) for of_run in times]


def training_ms(model: nn.Module, nodes: int) -> float:
    """Returns the time of a local step of all nodes, in milliseconds, without making messages."""
    rng = np.random.default_rng(0)
    count = BATCH * nodes
    x = rng.standard_normal((count, *SHAPE), dtype=np.float32)
    examples = Examples(x, rng.integers(0, CLASSES, count))
    data = FederatedData(
        name="noise",
        train=examples,
        test=Examples(x[:1], examples.y[:1]),
        partitions=Partitions.contiguous([BATCH] * nodes),
        num_classes=CLASSES,
        input_shape=SHAPE,
    )
    app = TrainingApp(model, data, Sgd(0.1), batch_size=BATCH, local_steps=1, local_epochs=None)
    config = ConfigRecord({"server-round": 1})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "config": config})
    payload = Payload(content)
    requests = [Request(i, 0, payload, "train", "1", 3600.0) for i in range(nodes)]
    run = RunInfo(0, nodes, {SEED_KEY: 0})
    app.train_many(requests[:10], run)  # compiles what is compiled once
    return least_ms(lambda: app.train_many(requests, run))[0]


def topologies(n: int) -> list[tuple[str, Topology]]:
    """Returns the topologies to measure, fewest edges first."""
    return [
        ("one-peer exponential", OnePeerExponential(n)),
        ("base-3", BaseGraph(n, k=2)),
        ("ring", Ring(n)),
        ("random 4-regular", RandomRegular(n, k=4)),
        ("random 10-regular", RandomRegular(n, k=10)),
        ("exponential", ExponentialGraph(n)),
        ("Erdos-Renyi, 50 each", ErdosRenyi(n, p=min(0.5, 50 / n))),
        ("complete", Complete(n)),
    ]


def measure(name: str, topology: Topology, X: np.ndarray) -> dict[str, Any]:
    """Returns one row: the times of a round of a topology."""
    n, d = X.shape
    out = np.empty_like(X)
    start = time.thread_time()
    W = topology.matrix(0)
    made = 1e3 * (time.thread_time() - start)
    single = W.astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that torch's sparse tensors are in beta
        sparse = torch.sparse_csr_tensor(
            torch.from_numpy(W.indptr.astype(np.int64)),
            torch.from_numpy(W.indices.astype(np.int64)),
            torch.from_numpy(single.data),
            size=W.shape,
        )
    dense = torch.from_numpy(X)
    runs: dict[str, Callable[[], object]] = {
        "copy": lambda: np.copyto(out, X),
        "mix": lambda: mix(W, X, out),
        "scipy": lambda: single @ X,
        "torch": lambda: sparse @ dense,
    }
    if W.nnz > 100 * n:  # takes these ten seconds and more, for what a dense product does in one
        del runs["scipy"], runs["torch"]
    ms = dict(zip(runs, least_ms(*runs.values()), strict=True))
    row: dict[str, Any] = {"topology": name, "n": n, "d": d, "nnz": W.nnz, "make_ms": made}
    row |= {f"{key}_ms": value for key, value in ms.items()}
    row["copies"] = ms["mix"] / ms["copy"]
    row["gflops"] = 2e-6 * W.nnz * d / ms["mix"]
    return row


def main() -> None:
    """Runs the benchmark, prints a table, and writes the JSON file."""
    parser = report.parser("gossip_mixing", __doc__)
    parser.add_argument("--nodes", type=int, default=1000, help="n")
    arguments = parser.parse_args()
    n = 200 if arguments.quick else arguments.nodes
    about = report.machine()
    torch.set_num_threads(1)
    model = MLP(SHAPE, CLASSES)
    d = sum(p.numel() for p in model.parameters())
    X = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    training = training_ms(model, n)
    rows = [measure(name, topology, X) for name, topology in topologies(n)]
    for row in rows:
        row["training_ms"] = training
        row["share"] = row["mix_ms"] / training
    report.table(
        f"n = {n} nodes, d = {d}; a local step of batch {BATCH} of all: {training:.0f} ms",
        [
            "topology",
            "nnz",
            "make ms",
            "copy ms",
            "mix ms",
            "copies",
            "GFLOP/s",
            "scipy ms",
            "torch ms",
            "of a step",
        ],
        [
            (
                row["topology"],
                row["nnz"],
                f"{row['make_ms']:.1f}",
                f"{row['copy_ms']:.1f}",
                f"{row['mix_ms']:.1f}",
                f"{row['copies']:.1f}",
                f"{row['gflops']:.1f}",
                *(f"{row[key]:.1f}" if key in row else "-" for key in ("scipy_ms", "torch_ms")),
                f"{row['share']:.2f}",
            )
            for row in rows
        ],
    )
    report.publish(arguments.out, rows, arguments, about)


if __name__ == "__main__":
    main()
