"""Evaluations of the server's model while the run goes on with its next round."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from flwr.app import ArrayRecord, MetricRecord

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord]


class Beside:
    """Evaluates in a thread of its own what is begun, and at once what is not.

    What comes is the same either way: `evaluate` depends on round and model alone, and draws no
    random numbers, which the clients in this process would miss.

    Args:
        evaluate: the function, of round and model. It is called for one model at a time.
        threads: that PyTorch may use in it.
    """

    def __init__(self, evaluate: EvaluateFn, threads: int) -> None:
        self._evaluate = evaluate
        self._pool = ThreadPoolExecutor(1, "evaluation", torch.set_num_threads, (threads,))
        self._begun: dict[int, Future[MetricRecord]] = {}

    def begin(self, server_round: int, arrays: ArrayRecord) -> None:
        """Begins to evaluate a model, which has to stay as it is."""
        self._begun[server_round] = self._pool.submit(self._evaluate, server_round, arrays)

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Returns a model's metrics; waits for them if they have been begun."""
        begun = self._begun.pop(server_round, None)
        return self._evaluate(server_round, arrays) if begun is None else begun.result()
