"""Uniform selection: every client that is there has the same chance.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", arXiv:1602.05629 (AISTATS 2017), Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fl.selection.selection import Choice, Opening, Selection, sample


@dataclass(frozen=True)
class UniformSampling(Selection):
    """S_t is a random set of m clients, without replacement."""

    def select(self, state: Any, opening: Opening) -> tuple[Choice, Any]:
        """Returns m clients, drawn uniformly."""
        return Choice(sample(opening.rng("clients"), opening.idle, opening.count)), state
