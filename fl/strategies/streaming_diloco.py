"""Streaming DiLoCo: one fragment at a time, while training goes on, in four bits.

Douillard, Donchev, Rush, Kale, Charles, Garrett, Teston, Lacey, McIlroy, Shen, Rame, Szlam,
Ranzato, Barham, "Streaming DiLoCo with overlapping communication: Towards a Distributed Free
Lunch", 2025, arXiv:2501.18512, Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from fl.checks import read_if
from fl.errors import ConfigError
from fl.strategies.outer_optimizers import OuterOptimizer, OuterSgd
from fl.strategies.outer_rule import OuterRule

if TYPE_CHECKING:
    from fl.clients.app.island import Pattern


@read_if(
    lambda a: a["fragments"] != 1,
    "pattern",
    only="it deals blocks to several fragments, and {at}fragments is 1",
)
@dataclass(frozen=True)
class StreamingDiLoCo(OuterRule):
    """DiLoCo fragment by fragment, whose all-reduces are hidden behind inner steps.

    After inner step t, for fragment p with (t - t_p) mod H = 0, t_p = p H / P:

        Delta_{m,p} = theta_p - theta_{m,p};    the all-reduce of Q(Delta_{m,p}) begins

    and tau inner steps later, when it must have ended, for workers wait for it:

        theta_p <- OuterOpt(theta_p, mean_m Q(Delta_{m,p}))
        theta_{m,p} <- alpha theta_{m,p} + (1 - alpha) theta_p

    With one fragment, tau = 0, alpha = 0 and no compressor it is `DiLoCo`. Q is the experiment's
    `compressor`; the paper's is E3M0, `compressor=e3m0`. The mean is over what Q decodes to. The
    paper adds in float32; the cost here is a ring's with Q's bytes at every hop.

    Attributes:
        inner_steps: H.
        optimizer: OuterOpt; the paper's is Nesterov with rate 0.4 and momentum 0.9.
        fragments: P, at most the model's blocks; None is one for every three blocks, as in the
            paper.
        pattern: how blocks are dealt to fragments.
        overlap: tau, below H: a fragment's next all-reduce begins from its new values.
        mixing: alpha, in [0, 1).

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    inner_steps: int = 30
    optimizer: OuterOptimizer = field(default_factory=partial(OuterSgd, lr=0.4))
    fragments: int | None = None
    pattern: Pattern = "strided"
    overlap: int = 1
    mixing: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlap >= self.inner_steps:
            raise ConfigError(
                f"overlap is {self.overlap}; it must be below inner_steps, {self.inner_steps}, as "
                "a fragment's outer gradient is measured against its last outer step. For a whole "
                "phase of delay use strategy=eager_updates"
            )
