"""Which part of the model each client of a round is sent, and what the parts cover."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.flower.identity import client_of
from fl.randomness import generator
from fl.strategies.drivers.events.server import Server, Update
from fl.strategies.drivers.exchange import Exchange
from fl.strategies.sparse import Sparse
from fl.submodels import (
    MASK_NUMBER_KEY,
    OWN_CLASSES_KEY,
    Capacity,
    Fixed,
    Mask,
    SubModel,
    SubModels,
    Whole,
    part_of,
)
from fl.vectors.layout import Layout
from fl.vectors.rows import Row


class Division:
    """What of the model each client is sent: all of it.

    Attributes:
        divides: whether some are sent less.
    """

    divides: ClassVar[bool] = False

    def of(self, server: Server, node: int, place: int) -> SubModel | None:
        """Returns the part that a client is sent now; None is the whole model.

        Args:
            server: has the model.
            node: Flower id of the client.
            place: of the client among those that the round asks.
        """
        return None

    def level(self, server: Server, node: int, place: int) -> int:
        """Returns which of the levels that there are a client has now; arguments as of `of`."""
        return 0

    def is_known(self, node: int) -> bool:
        """Returns whether a client keeps which part it is from before."""
        return False

    def told(self) -> dict[str, int]:
        """Returns what all clients are told beside the part."""
        return {}

    def answered(self, update: Update) -> None:
        """Notes that a client has answered."""

    def failed(self, node: int) -> None:
        """Notes that a client has not answered: it may have lost what it kept."""

    def measured(
        self, w: Row, holds: NDArray[np.bool_], places: Sequence[slice]
    ) -> dict[str, float]:
        """Returns what is logged of a round's parts, over what clients train.

        Args:
            w: the model that was sent, shape (d,).
            holds: which numbers each client held, shape (n, d).
            places: of what clients train.
        """
        return {}


class Parts(Division):
    """Extracts the parts of a run's models.

    Args:
        sub_models: says how.
        exchange: knows the units of the model, and the levels of clients where devices decide.
        server: of the run.
        seed: of what is drawn.

    Raises:
        ConfigError: no layer has units that could be left out.
    """

    divides: ClassVar[bool] = True

    def __init__(
        self, sub_models: SubModels, exchange: Exchange, server: Server, seed: int
    ) -> None:
        self.extraction = sub_models.extraction
        self.capacity: Capacity = sub_models.capacity
        if exchange.levels:
            self.capacity = Fixed(exchange.levels)
        self.units = exchange.units
        if not self.units:
            raise ConfigError(
                "sub_models is set, and no units of the model are known: pass "
                "units=fl.submodels.units_of(model, ...) to fl.strategies.Exchange"
            )
        self._told: dict[str, int] = {}
        if sub_models.masked_loss:
            if exchange.classes is None:
                raise ConfigError(
                    "sub_models.masked_loss is true, and no classes of the model are known: pass "
                    "classes=fl.submodels.classes_of(model, ...) to fl.strategies.Exchange"
                )
            server.model.classes = exchange.classes
            self._told = {OWN_CLASSES_KEY: True}
        self.levels = list(dict.fromkeys(self.capacity.levels))
        self.seed = seed
        self.numbered = server.tasks.numbered
        self._clients: dict[int, int] = {}  # node of a grid that does not -> as they appear
        self._of_version = -1
        self._parts: dict[tuple[float, int], SubModel] = {}

    def of(self, server: Server, node: int, place: int) -> SubModel | None:
        """Returns the part that a client is sent now; see `Division.of`."""
        t = server.version
        if t != self._of_version:
            self._of_version = t
            if not (self.extraction.stays and not self.extraction.by_client):
                self._parts = {}
        client = self._client(node)
        level = self._level(t, client, place)
        of = client if self.extraction.by_client else -1
        if (level, of) not in self._parts:
            whole = Whole(server.model.layout, self.units, server.w)
            self._parts[level, of] = self._extracted(whole, level, t, of)
        part = self._parts[level, of]
        return part if len(part.positions) < server.model.layout.size else None

    def level(self, server: Server, node: int, place: int) -> int:
        """Returns the place of a client's level among all; see `Division.level`."""
        return self.levels.index(self._level(server.version, self._client(node), place))

    def told(self) -> dict[str, int]:
        """Returns that a client's loss is to be over its own classes, if it is."""
        return self._told

    def examples(self, whole: Whole) -> list[SubModel | None]:
        """Returns a part of each level; None is all of the model."""
        parts = [self._extracted(whole, level, 0, -1) for level in self.levels]
        return [part if len(part.positions) < whole.layout.size else None for part in parts]

    def _level(self, t: int, client: int, place: int) -> float:
        return self.capacity.level(client, place, self._rng("level", t, client))

    def _extracted(self, whole: Whole, level: float, t: int, of: int) -> SubModel:
        return self.extraction.extract(whole, level, t, partial(self._rng, "units", t, of))

    def measured(
        self, w: Row, holds: NDArray[np.bool_], places: Sequence[slice]
    ) -> dict[str, float]:
        """Returns coverage and noise; see `measured`."""
        return measured(w, holds, places)

    def _client(self, node: int) -> int:
        if self.numbered:
            return client_of(node)
        return self._clients.setdefault(node, len(self._clients))

    def _rng(self, *key: int | str) -> np.random.Generator:
        return generator(self.seed, "sub-models", *key)


class OnePart(Division):
    """The part of the model that the mask of a sparse model has, the same for all clients.

    Args:
        layout: of the model.
        state: returns what there is of the model now.

    Attributes:
        number: of the mask that was last sent, from 1.
    """

    divides: ClassVar[bool] = True

    def __init__(self, layout: Layout, state: Callable[[], Sparse]) -> None:
        self.number = 0
        self._layout = layout
        self._state = state
        self._last: tuple[Mask, SubModel] | None = None
        self._known: dict[int, int] = {}  # node -> number of the mask that it has answered to

    def of(self, server: Server, node: int, place: int) -> SubModel:
        """Returns the part that a client is sent now; see `Division.of`."""
        state = self._state()
        if self._last is None or self._last[0] is not state.mask:
            self._last = (state.mask, part_of(self._layout, state.layers, state.mask))
            self.number += 1
        return self._last[1]

    def is_known(self, node: int) -> bool:
        """Returns whether a client keeps the mask that was last sent."""
        return self._known.get(node) == self.number

    def told(self) -> dict[str, int]:
        """Returns the number of the mask."""
        return {MASK_NUMBER_KEY: self.number}

    def answered(self, update: Update) -> None:
        """Notes which mask a client has answered to."""
        self._known[update.node] = update.config[MASK_NUMBER_KEY]

    def failed(self, node: int) -> None:
        """Forgets what a client kept."""
        self._known.pop(node, None)

    def measured(
        self, w: Row, holds: NDArray[np.bool_], places: Sequence[slice]
    ) -> dict[str, float]:
        """Returns the density of what was sent, over what clients train."""
        mask = self._state().mask
        held = sum(int(mask[place].sum()) for place in places)
        return {"density": held / sum(place.stop - place.start for place in places)}


def held(updates: Sequence[Update], d: int) -> NDArray[np.bool_]:
    """Returns which numbers of the model each client held, shape (n, d)."""
    parts = [update.part for update in updates]
    holds = np.ones((len(parts), d), dtype=bool)
    for row, part in zip(holds, parts, strict=True):
        if part is not None:
            row[:] = False
            row[part.positions] = True
    return holds


def measured(w: Row, holds: NDArray[np.bool_], places: Sequence[slice]) -> dict[str, float]:
    """Returns what is logged of a round's parts, over what clients train.

        coverage_min    Gamma_min, the fewest clients that hold a number
        uncovered       share of the numbers that nobody holds
        mask_noise      mean over clients of |x - x * m_i|^2 / |x|^2

    Args:
        w: the model that was sent, shape (d,).
        holds: shape (n, d).
        places: of what clients train.
    """
    trained = np.concatenate([np.arange(p.start, p.stop) for p in places])
    holds = holds[:, trained]
    covered = holds.sum(axis=0)
    squares = np.square(w[trained], dtype=np.float64)
    total = squares.sum()
    noise = float((~holds @ squares).mean() / total) if total else 0.0
    return {
        "coverage_min": float(covered.min()),
        "uncovered": float((covered == 0).mean()),
        "mask_noise": noise,
    }
