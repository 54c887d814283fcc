"""FADAS: an adaptive server for asynchronous clients, with steps that delays shorten.

Wang, Wang, Lu, Chen, "FADAS: Towards Federated Adaptive Asynchronous Optimization",
arXiv:2407.18365 (ICML 2024), Algorithm 1 and its delay-adaptive rate.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fl.checks import at_least
from fl.strategies.event_rule import Arrivals
from fl.strategies.fedamsgrad import FedAMSGrad
from fl.strategies.fedbuff import BufferedRule
from fl.strategies.round_rule import RoundRule


@dataclass(frozen=True)
class FADAS(BufferedRule):
    """AMSGrad along the mean change of a buffer.

        Delta <- 1 / K sum_i (x_i - x_0)
        m, v, v_max <- as FedAMSGrad
        w <- w + eta_t m / (sqrt(v_max) + epsilon)
        eta_t = eta                 if tau_max <= tau_c
                eta / tau_max       otherwise

    with x_0 the model that client i was sent, and tau_max the largest staleness in the buffer. What
    the authors' code calls a client's delay is the same number. Any other server optimizer may take
    AMSGrad's place: eta_t / eta is a factor on its steps.

    Attributes:
        tau_c: delays in versions up to which steps are not shortened; None shortens none.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    server_optimizer: RoundRule = field(default_factory=FedAMSGrad)
    tau_c: int | None = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau_c is not None:
            at_least("tau_c", self.tau_c, 0)

    def scale(self, updates: Arrivals) -> float:
        """Returns eta_t / eta."""
        tau_max = max(updates.staleness)
        return 1.0 if self.tau_c is None or tau_max <= self.tau_c else 1 / tau_max
