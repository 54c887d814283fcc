"""Which hidden units of one model are those of another, and models brought to another's order.

A model computes the same if the units of a layer are in another order, with all the numbers that
belong to them. So of models that were trained apart, unit u of one is as a rule not unit u of the
other, and their mean is none of both. Matching finds for each unit its partner, by what weights the
units have or by when they are active, and puts them in the partners' order.

Partners are, for each layer of `Units`, an array pi of shape (K,): unit u of the one model is unit
pi[u] of the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.submodels.units import Place, Units
from fl.vectors.layout import Layout
from fl.vectors.rows import Row

Order = NDArray[np.int64]
Partners = Mapping[str, Order]

_SWEEPS = 100


def assigned(similarity: NDArray[np.float64]) -> Order:
    """Returns pi that maximises sum_u R[u, pi[u]] over all orders, shape (K,).

    Args:
        similarity: R, shape (K, K), finite.
    """
    from scipy.optimize import linear_sum_assignment  # heavy, and few come here

    return np.asarray(linear_sum_assignment(similarity, maximize=True)[1])


def indices(place: Place, width: int) -> Order:
    """Returns where along a place's dimension each unit is, shape (K, r).

    Raises:
        ConfigError: units are there unequally often, so that none can take another's place.
    """
    times = np.bincount(place.unit[place.unit >= 0], minlength=width)
    if len(set(times.tolist())) != 1:
        raise ConfigError(
            f"units of {place.entry!r} have {sorted(set(times.tolist()))} numbers along dimension "
            f"{place.dim}, and those that are matched must have as many: declare the model's "
            "units, see docs/own_parts.md"
        )
    order = np.argsort(place.unit, kind="stable")[np.count_nonzero(place.unit < 0) :]
    return order.reshape(width, -1)


class Orders:
    """Brings models of one structure to other orders of their units.

    Args:
        layout: of the models.
        units: of the models, at least one layer.

    Raises:
        ConfigError: units of a layer cannot take each other's places.
    """

    def __init__(self, layout: Layout, units: Sequence[Units]) -> None:
        self.layout = layout
        self.units = {layer.name: layer for layer in units}
        self._entries = {entry.name: entry for entry in layout.floats}
        # Of each entry: (dimension, layer, where its units are).
        self._places: dict[str, list[tuple[int, str, Order]]] = {}
        for layer in units:
            for place in layer.places:
                where = indices(place, layer.width)
                self._places.setdefault(place.entry, []).append((place.dim, layer.name, where))
        still = {entry.name for entry in layout.statistics}
        self._weights = {name: at for name, at in self._places.items() if name not in still}

    def applied(self, w: Row, partners: Partners) -> Row:
        """Returns a model with its units in the order of their partners: it computes the same.

        Args:
            w: the model, shape (d,); not changed.
            partners: unit u of what is returned is unit pi[u] of w; layers left out stay.
        """
        row = w.copy()
        for name in self._places:
            entry = self._entries[name]
            numbers = row[entry.offset : entry.offset + entry.size].reshape(entry.shape)
            numbers[...] = self._permuted(name, numbers, partners)
        return row

    def by_weights(
        self, a: Row, b: Row, rng: np.random.Generator, start: Partners | None = None
    ) -> dict[str, Order]:
        """Returns partners of a's units among b's, such that the models' weights are close.

        One layer after the other, in an order drawn anew for each sweep, takes the pi that
        maximises the inner product of a with b in that order, given those of the others, until no
        layer's changes: Ainsworth, Hayase, Srinivasa, "Git Re-Basin", arXiv:2209.04836, Algorithm
        1. Statistics of normalisation layers do not count.

        Args:
            a: a model, shape (d,), finite.
            b: another.
            rng: of the orders.
            start: partners to begin with; None are those of the same number.
        """
        pi = {name: np.arange(layer.width) for name, layer in self.units.items()}
        pi.update(start or {})
        names = sorted(pi)
        for _ in range(_SWEEPS):
            changed = False
            for g in rng.permutation(len(names)).tolist():
                name = names[g]
                found = self._best(name, a, b, pi)
                changed |= bool((found != pi[name]).any())
                pi[name] = found
            if not changed:
                break
        return pi

    def _best(self, layer: str, a: Row, b: Row, pi: Partners) -> Order:
        K = self.units[layer].width
        R = np.zeros((K, K))
        for name, places in self._weights.items():
            entry = self._entries[name]
            part = slice(entry.offset, entry.offset + entry.size)
            for dim, of, where in places:
                if of != layer:
                    continue
                mine = a[part].reshape(entry.shape)
                other = self._permuted(name, b[part].reshape(entry.shape), pi, but=dim)
                R += _by_unit(mine, dim, where) @ _by_unit(other, dim, where).T
        now = pi[layer]
        best = assigned(R)
        each = np.arange(K)
        # Ties, and gains that are nothing but rounding, would go on for ever.
        gain = R[each, best].sum() - R[each, now].sum()
        return best if gain > 1e-9 * np.abs(R[each, now]).sum() + 1e-12 else now

    def _permuted(
        self, name: str, numbers: NDArray[np.float32], pi: Partners, but: int | None = None
    ) -> NDArray[np.float32]:
        for dim, layer, where in self._places[name]:
            if layer not in pi or dim == but:
                continue
            source = np.arange(numbers.shape[dim])
            source[where] = where[pi[layer]]
            numbers = numbers.take(source, axis=dim)
        return numbers


def _by_unit(numbers: NDArray[np.float32], dim: int, where: Order) -> NDArray[np.float64]:
    """Returns all numbers of each unit, shape (K, r times the rest), float64."""
    rows = np.moveaxis(numbers, dim, 0)[where].astype(np.float64)
    return rows.reshape(len(where), -1)
