"""DIMAT: peers that bring each other's units to their own order before they average.

Saadati, Pham, Saleem, Waite, Balu, Jiang, Hegde, Sarkar, "DIMAT: Decentralized Iterative
Merging-And-Training for Deep Learning Models", arXiv:2404.08079 (CVPR 2024), Algorithm 1; details
by the authors' code, github.com/nsaadati/DIMAT. Its baseline by weights is Ainsworth, Hayase,
Srinivasa, "Git Re-Basin", arXiv:2209.04836.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

from fl.checks import at_least
from fl.errors import ConfigError
from fl.strategies.gossip_rule import LocalTraining, MergedByNode, MergingRule
from fl.vectors.rows import Row

By = Literal["activations", "weights", "order"]
Initial = Literal["drawn", "same"]


class Unmerged(NamedTuple):
    """What a node has when its round ends.

    Attributes:
        x: its model x_i, shape (d,).
        others: what it has heard, shape (d,) each.
        shares: the weights W_ij, its own first.
    """

    x: Row
    others: tuple[Row, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class DIMAT(MergingRule):
    """Merges models by their units' partners, and trains on.

        x_i <- W_ii x_i + sum_j W_ij P_ij x_j,    P_ij the order of j's units that fits i's
        x_i <- local steps of the client's rule from x_i

    Unit u of model i has as its partner the unit of model j that is active when u is, on node i's
    own examples (`by` "activations"): P_ij maximises the sum of the correlations of partners over
    all orders of a layer. With "weights" it is the unit of the closest weights, which is Git
    Re-Basin, and with "order" the one of the same number, which is plain averaging (DFedAvg). Nodes
    merge when their next local training begins, by what they have heard in the round before.

    The paper's nodes have trained apart before they first meet, from initial models of their own:
    `initial` "drawn", for `pretraining` epochs. From the same one, models stay close, and plain
    averaging is as good. Models of a round are those after its local training; of their mean, and
    how far they are apart, all are brought to the first node's order by their weights.

    The authors' code takes activations and statistics of batch normalisation over the whole
    training set, which every node has; here a node has its own examples. It has separate match
    points on a residual stream; here the correlations of all layers that read it add up.

    Attributes:
        by: how partners are found.
        initial: whether the nodes' initial models are drawn apart, or one.
        pretraining: epochs of the first round, at least 1; None as many as of others.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    linear: ClassVar[str] = "a node matches every model with its own before it adds them up"

    by: By = "activations"
    initial: Initial = "drawn"
    pretraining: int | None = None

    def __post_init__(self) -> None:
        for name, kinds in (("by", get_args(By)), ("initial", get_args(Initial))):
            if (value := getattr(self, name)) not in kinds:
                raise ConfigError(f"{name} is {value!r:.80}; it must be one of {', '.join(kinds)}")
        if self.pretraining is not None:
            at_least("pretraining", self.pretraining, 1)

    @property
    def drawn_apart(self) -> bool:
        """Whether nodes begin with models of their own."""
        return self.initial == "drawn"

    def told(self, t: int) -> dict[str, Any]:
        """Returns how many epochs nodes train for, in the first round."""
        return {"local-epochs": self.pretraining} if self.pretraining and not t else {}

    def init(self, w: Row) -> Unmerged:
        """Returns the initial model; nothing has been heard."""
        return Unmerged(w, (), (1.0,))

    def merging(self, state: Unmerged) -> MergedByNode:
        """Returns what the node is to merge with its model."""
        return MergedByNode(self.by, state.others, state.shares)

    def adapt(self, state: Unmerged, progress: LocalTraining) -> Unmerged:
        """Returns the state with the model after merging and training."""
        return Unmerged(progress.x, (), (1.0,))

    def gather(self, state: Unmerged, others: Sequence[Row], shares: Sequence[float]) -> Unmerged:
        """Returns the state with what has been heard."""
        return Unmerged(state.x, tuple(others), tuple(shares))
