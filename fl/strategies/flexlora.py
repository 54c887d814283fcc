"""FlexLoRA: adapters of unequal ranks, of which the server averages the products.

Bai, Chen, Qian, Yao, Li, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks
and Client Resources", arXiv:2402.11505 (NeurIPS 2024). Rules by the authors' branch of
FederatedScope.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np

from fl.strategies.round_rule import RoundRule, Updates
from fl.submodels import SubModel, Whole
from fl.vectors.layout import Entry
from fl.vectors.rows import Row


class Factors(NamedTuple):
    """Where an adapter's factors are: A of shape (r, n), B of shape (m, r)."""

    A: Entry
    B: Entry

    def of(self, w: Row) -> tuple[Row, Row]:
        """Returns A and B of a model of shape (d,), as views."""
        A, B = (w[e.offset : e.offset + e.size].reshape(e.shape) for e in self)
        return A, B


class FlexLoRAState(NamedTuple):
    """The model, shape (d,), and where its adapters are."""

    w: Row
    adapters: Sequence[Factors] = ()


@dataclass(frozen=True)
class FlexLoRA(RoundRule):
    """The best factors, of each client's rank, of the mean of the clients' products.

        D = sum_i n_i B_i A_i / sum_i n_i = U S V^T
        A <- V^T,  B <- U S,  of which a client of rank r has the first r rows and columns

    which are the best approximation of D of every rank (Eckart and Young). An aggregator in the
    place of the mean is given the changes of the products, of all layers in one vector, together
    with those of what else is trained. All ranks have one scale, so that it does not appear.
    """

    folds: ClassVar[bool] = False
    knows_parts: ClassVar[bool] = True
    of_adapters: ClassVar[bool] = True

    def init(self, w: Row, p: int) -> FlexLoRAState:
        """Returns the model without adapters; `init_parts` knows them."""
        return FlexLoRAState(w)

    def init_parts(self, whole: Whole, parts: Sequence[SubModel | None]) -> FlexLoRAState:
        """Returns the state before the first round."""
        entries = {entry.name: entry for entry in whole.layout.floats}
        adapters = [Factors(*(entries[place.entry] for place in u.places)) for u in whole.units]
        return FlexLoRAState(whole.w, adapters)

    def step(self, state: FlexLoRAState, updates: Updates) -> FlexLoRAState:
        """Returns the factors of the mean of the products."""
        x = state.w + updates.deltas
        if updates.holds is not None:
            x = np.where(updates.holds, x, np.float32(0))
        before = np.concatenate([D.reshape(-1) for D in products(state.adapters, state.w)])
        changes = [
            np.concatenate([D.reshape(-1) for D in products(state.adapters, x_i)]) - before
            for x_i in x
        ]
        both = np.concatenate([np.stack(changes), updates.deltas], axis=1)
        change = replace(updates, deltas=both, holds=None).mean()
        w, done = state.w + change[before.size :], 0
        for factors in state.adapters:
            A, B = factors.of(w)
            D = (before + change[: before.size])[done : done + len(B) * A.shape[1]]
            done += D.size
            A[:], B[:] = best(D.reshape(len(B), -1), len(A))
        return state._replace(w=w)


def products(adapters: Sequence[Factors], w: Row) -> Iterator[Row]:
    """Yields B A of each adapter, shape (m, n), of a model of shape (d,)."""
    for factors in adapters:
        A, B = factors.of(w)
        yield B @ A


def best(D: Row, r: int) -> tuple[Row, Row]:
    """Returns A, shape (r, n), and B, shape (m, r), whose product is the nearest to D of rank r."""
    U, S, V = np.linalg.svd(D.astype(np.float64), full_matrices=False)
    A, B = np.zeros((r, D.shape[1]), np.float32), np.zeros((len(D), r), np.float32)
    k = min(r, len(S))
    A[:k], B[:, :k] = V[:k], U[:, :k] * S[:k]
    return A, B
