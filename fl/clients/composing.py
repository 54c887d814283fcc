"""The rule that clients follow: an optimizer, and what is done to its gradients or their order."""

from __future__ import annotations

from fl.clients.correction import Corrected, Correction
from fl.clients.local_first import LocalFirst
from fl.clients.local_optimizer import LocalOptimizer
from fl.clients.rule import Rule
from fl.errors import ConfigError


def composed(rule: Rule, correction: Correction | None, local_first: float | None) -> Rule:
    """Returns a rule whose gradients are corrected, or which moves the local layers first.

    Args:
        rule: what a local step does.
        correction: of the gradients; None leaves them as they are.
        local_first: share of the steps that move the local layers alone; None has no such steps.

    Raises:
        ConfigError: the rule does not step by gradients, or both are asked for.
    """
    if correction is None:
        if local_first is None:
            return rule
        return LocalFirst(_by_gradients(rule, f"local_layers.first is {local_first}"), local_first)
    corrected = Corrected(
        _by_gradients(rule, f"correction is {type(correction).__name__}"), correction
    )
    if local_first is not None:
        raise ConfigError(
            f"local_layers.first is {local_first}, and correction is {type(correction).__name__}: "
            "what trains one part after the other is not corrected, leave one of them out"
        )
    return corrected


def _by_gradients(rule: Rule, what: str) -> LocalOptimizer:
    if not isinstance(rule, LocalOptimizer):
        raise ConfigError(
            f"{what}, and rule is {type(rule).__name__}, which does not step by gradients: use an "
            "optimizer such as Sgd, or leave it out"
        )
    return rule
