"""Server optimizers: rules of rounds that other methods give their directions to.

Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, "Adaptive Federated Optimization",
arXiv:2003.00295 (ICLR 2021): to the server, the clients' mean change is the negative gradient of an
optimizer. What else a method makes a step of, as a buffer's mean, may take its place: every rule
of rounds that looks at the mean change alone is such an optimizer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fl.checks import is_a
from fl.errors import ConfigError
from fl.strategies.round_rule import RoundRule, Updates, check_state
from fl.vectors.rows import Row


def check_optimizer(rule: RoundRule) -> None:
    """Raises ConfigError unless a rule steps along the mean change, and needs nothing else."""
    is_a("server_optimizer", rule, RoundRule, such_as="FedAvg() or FedAdam()")
    wants = (*rule.carries, *rule.needs, *rule.reads, *rule.tells)
    if wants or not rule.folds or rule.num_models > 1:
        raise ConfigError(
            f"server_optimizer is {type(rule).__name__}, which needs more of clients than how they "
            "change the model: use one that steps along their mean change, such as FedAvg, FedAvgM "
            "or FedAdam"
        )


def stepped(optimizer: RoundRule, state: Any, delta: Row) -> Any:
    """Returns an optimizer's state after a step.

    Args:
        optimizer: see `check_optimizer`.
        state: before; its `w` is where the step begins.
        delta: in the place of the clients' mean change, shape (d,), float32.

    Raises:
        NotFinite: what the optimizer keeps beside the model would not be finite.
    """
    only = Updates(delta[None], np.ones(1), combine=lambda *_: delta)
    state = optimizer.step(state, only)
    check_state(optimizer, state)
    return state
