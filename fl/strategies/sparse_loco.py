"""SparseLoCo: DiLoCo whose workers send few entries in few bits, with a memory of the rest.

Sarfi, Therien, Lidin, Belilovsky, "Communication Efficient LLM Pre-training with SparseLoCo", 2025,
arXiv:2508.15706; their code, then called CCLoco.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl.checks import positive
from fl.strategies.outer_optimizers import State
from fl.strategies.outer_rule import Outer, OuterGradients, OuterRule, moved
from fl.vectors.rows import Row


@dataclass(frozen=True)
class SparseLoCo(OuterRule):
    """Takes a plain step along what workers sent of their outer gradients.

        theta_m <- theta;    H inner steps on theta_m
        e_m <- beta e_m + (theta - theta_m)
        s_m <- Q(top_k(e_m));    e_m <- e_m - s_m
        theta <- theta - alpha mean of the s_m, each entry's over those who sent it

    The error memories e_m take the place of the outer momentum. They, the k entries of every block
    and the bits Q leaves of them are `compressor=sparse_loco`, the mean `aggregator=sender_mean`.
    Both may be chosen otherwise; with compressor=none and aggregator=mean this is `DiLoCo` with
    plain SGD outside.

    The authors' code has alpha in e_m too, and so takes it twice; here it is in the step alone.

    Attributes:
        inner_steps: H.
        alpha: outer learning rate, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    inner_steps: int = 15
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("alpha", self.alpha)

    def init(self, theta: Row) -> Outer:
        """Returns the model; the memories are the workers'."""
        nothing: State = {}
        return Outer(theta, nothing)

    def reduced(self, s: Outer, gradients: OuterGradients) -> Outer:
        """Returns theta after a phase."""
        theta = moved(s.theta, self.alpha * gradients.mean())
        return s._replace(theta=theta, t=s.t + 1)
