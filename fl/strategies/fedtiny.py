"""FedTiny: the best of several sparse models, whose mask then moves one block of layers at a time.

Huang, Zhang, Sun, Fang, Yuan, Wu, "Distributed Pruning Towards Tiny Neural Networks in Federated
Learning", arXiv:2212.01977 (ICDCS 2023). The paper's text was not at hand: gradients and schedule
are those of FedPruning/FedPruning (fedtinyclean), selection and blocks by the abstract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fl.checks import at_least, share
from fl.clients.pruning import FIRST_KEY, FORWARD_KEY, LAST_KEY, TOP_KEY
from fl.errors import NoStep
from fl.randomness import generator
from fl.strategies.round_rule import Updates
from fl.strategies.sparse import CosineSparseRule, moved
from fl.submodels import Layer, Mask, by_magnitude, shared_out
from fl.vectors.rows import Row

_LOSS = "train-loss"


class Candidates(NamedTuple):
    """A sparse model, and while it is one of several, what these are.

    Attributes:
        w: the model, shape (d,).
        mask: what it has, shape (d,).
        layers: that it masks.
        whole: the model before pruning, shape (d,); empty once a candidate is chosen.
        first: the layers of candidate 0.
        losses: of the candidates that clients have seen.
    """

    w: Row
    mask: Mask
    layers: Sequence[Layer] = ()
    whole: Row = np.empty(0, np.float32)
    first: Sequence[Layer] = ()
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class FedTiny(CosineSparseRule):
    """Adaptive batch-normalisation selection, then progressive pruning.

    Selection: candidate 0 has the largest numbers of each layer; candidate c > 0 as many together,
    with the layers' shares multiplied by draws from [1 - spread, 1 + spread]. In round c + 1
    clients are sent candidate c, and return their mean loss; in training mode, so that batch
    normalisation goes by their own statistics. The one with the smallest mean is trained from then
    on.

    Pruning: as `FedMef` without extrusion, and in each adjustment of one block of layers alone,
    from the last to the first and again. Layers form as equal blocks as can be.

    Attributes:
        candidates: C, at least 1; 1 selects nothing. A run of C rounds or fewer trains nothing.
        spread: in [0, 1).
        blocks: at least 1; 1 adjusts all layers at once.
        seed: of the draws.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    reads: ClassVar[tuple[str, ...]] = (_LOSS,)

    candidates: int = 5
    spread: float = 0.5
    blocks: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("candidates", self.candidates, 1)
        share("spread", self.spread)
        at_least("blocks", self.blocks, 1)

    def pruned(self, w: Row, layers: Sequence[Layer]) -> Candidates:
        """Returns the first candidate."""
        whole = w if self.candidates > 1 else w[:0]
        return self._candidate(Candidates(w, np.ones(len(w), dtype=bool), layers, whole, layers), 0)

    def _candidate(self, state: Candidates, c: int) -> Candidates:
        """Returns a state with candidate c."""
        w = state.whole if len(state.whole) else state.w
        layers = state.first
        if c and layers:
            draws = generator(self.seed, "fedtiny", c).uniform(-1, 1, len(layers))
            score = (1 + self.spread * draws) * [layer.held for layer in layers]
            sizes = [layer.place.stop - layer.place.start for layer in layers]
            counts = shared_out(score, sizes, sum(layer.held for layer in layers))
            layers = tuple(
                layer._replace(held=count) for layer, count in zip(layers, counts, strict=True)
            )
        mask = by_magnitude(layers, w)
        return state._replace(w=np.where(mask, w, np.float32(0)), mask=mask, layers=layers)

    def step(self, state: Candidates, updates: Updates) -> Candidates:
        """Returns the next candidate, or the chosen one; or the model and mask after a round."""
        if not len(state.whole):
            return super().step(state, updates)  # type: ignore[no-any-return]
        if not updates.weights.any():
            raise NoStep("no client has examples")
        losses = (*state.losses, updates.typical(updates.metric(_LOSS)))
        if len(losses) < self.candidates:
            return self._candidate(state._replace(losses=losses), len(losses))
        chosen = self._candidate(state._replace(losses=losses), int(np.argmin(losses)))
        return chosen._replace(whole=state.whole[:0])

    def ratio(self, server_round: int) -> float:
        """Returns alpha_t; 0 while candidates are looked at."""
        looked_at = self.candidates if self.candidates > 1 else 0
        return 0.0 if server_round <= looked_at else super().ratio(server_round)

    def configs(
        self, state: Any, server_round: int, n: int, rng: np.random.Generator
    ) -> Sequence[Mapping[str, Any] | None]:
        """Returns that clients are to look at a candidate, or what else the round asks."""
        if len(state.whole):
            return [{FORWARD_KEY: 1.0}] * n
        return super().configs(state, server_round, n, rng)

    def asked(self, state: Any, server_round: int, ratio: float) -> Mapping[str, Any]:
        """Returns that gradients of a block are to be sent."""
        first, last = self.block(len(state.layers), server_round)
        return {TOP_KEY: ratio, FIRST_KEY: first, LAST_KEY: last}

    def adjusted(self, state: Any, updates: Updates, ratio: float) -> Any:
        """Returns the state after the adjustment of the block that clients were told."""
        first, last = (int(updates.told[0][key]) for key in (FIRST_KEY, LAST_KEY))
        return moved(state, self.growth(updates), ratio, state.layers[first : last + 1])

    def block(self, layers: int, server_round: int) -> tuple[int, int]:
        """Returns the first and the last layer of the block that is adjusted after a round."""
        blocks = np.array_split(np.arange(layers), min(self.blocks, layers))
        number = server_round // self.adjust_every - 1
        block = blocks[-1 - number % len(blocks)]
        return int(block[0]), int(block[-1])
