"""Sync-ST: several models trained at once, in common rounds; what FedAST is compared with.

Askin, Sharma, Joe-Wong, Joshi, "FedAST: Federated Asynchronous Simultaneous Training",
arXiv:2406.00302 (UAI 2024); the rules are those of the authors' code (askinb/FedAST).
"""

from __future__ import annotations

from dataclasses import dataclass

from fl.strategies.simultaneous_rule import Averaged


@dataclass(frozen=True)
class SyncST(Averaged):
    """FedAvg of every task: w_m <- w_m + eta mean_i (x_i - w_m) over the task's clients.

    They are of `fl.strategies.SimultaneousRounds`.
    """
