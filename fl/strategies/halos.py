"""HALoS: servers of regions step by workers near them, a global server by the regions.

Kim et al., "HALoS: Hierarchical Asynchronous Local SGD over Slow Networks for Geo-Distributed Large
Language Model Training", ICML 2025, arXiv:2506.04531; rules as in the authors' simulator,
github.com/utnslab/halos.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from fl.aggregation import check_result
from fl.checks import at_least, fraction
from fl.strategies.async_diloco import (
    DelayedMomentum,
    DelayedNesterov,
    DynamicLocalUpdates,
    WorkerSpeeds,
)
from fl.strategies.event_rule import Arrivals
from fl.strategies.regional_rule import RegionalRule
from fl.vectors.rows import Row


class Region(NamedTuple):
    """What the server of a region knows.

    Attributes:
        x: its model, shape (d,), float32.
        outer: its momentum.
        merged: x as it was after the last merge with the global model, shape (d,).
        applied: outer gradients since then.
    """

    x: Row
    outer: DelayedMomentum
    merged: Row
    applied: int = 0


class HALoSState(NamedTuple):
    """What all servers know.

    Attributes:
        w: the global model, shape (d,), float32.
        outer: its momentum.
        initial: w before the first step, with which regions begin.
        regions: their servers' states.
        region_of: the workers' regions, by Flower id.
        workers: their speeds.
    """

    w: Row
    outer: DelayedMomentum
    initial: Row
    regions: Mapping[int, Region] = {}
    region_of: Mapping[int, int] = {}
    workers: WorkerSpeeds = WorkerSpeeds()


@dataclass(frozen=True)
class HALoS(DynamicLocalUpdates, RegionalRule):
    """Workers exchange with the server of their region, at once; regions with a global server.

    Region r has x_r, which `regional` steps by the outer gradient of every worker that answers; the
    worker goes on from x_r. With the K-th since the last merge, it sends

        g_r = z_r - x_r

    to the global server, z_r being x_r after that merge, and goes on meanwhile. The global server
    steps its model w by `above` and g_r, and sends w back. When it is there,

        x_r <- (1 - a) x_r + a w;    z_r <- x_r

    so that of what the region has learnt since it sent g_r, 1 - a stays with it, and the others do
    not hear of it. While an exchange lasts for longer than K outer gradients, there is no second.

    Workers do their steps by `DynamicLocalUpdates`, relative to the fastest of all regions.

    Attributes:
        regional: of x_r, by the outer gradients of workers. The lr of 0.2 that the authors give is
            that of one outer gradient, and theirs is N times that, as here.
        above: of w, by those of regions; likewise.
        local_updates: K.
        merge_weight: a, of the global model, in (0, 1]. (The help text of the authors' code gives
            it to the region's; their code does this.)

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    inner_steps: int = 8
    regional: DelayedNesterov = field(default_factory=lambda: DelayedNesterov(3.2, 0.9, 16))
    above: DelayedNesterov = field(default_factory=lambda: DelayedNesterov(0.3, 0.5, 2))
    local_updates: int = 32
    merge_weight: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("local_updates", self.local_updates, 1)
        fraction("merge_weight", self.merge_weight)

    def init(self, w: Row, p: int) -> HALoSState:
        """Returns the state without regions."""
        return HALoSState(w, self.above.init(len(w)), w)

    def joined(self, state: HALoSState, node: int, region: int) -> HALoSState:
        """Returns the state with a worker; the first of a region brings the initial model there."""
        regions = state.regions
        if region not in regions:
            x = state.initial
            regions = {**regions, region: Region(x, self.regional.init(len(x)), x)}
        region_of = {**state.region_of, node: region}
        return state._replace(regions=regions, region_of=region_of)

    def model_for(self, state: HALoSState, node: int) -> Row:
        """Returns x_r, shape (d,)."""
        return state.regions[state.region_of[node]].x

    def met(self, state: HALoSState, updates: Arrivals) -> tuple[HALoSState, bool]:
        """Steps x_r by a worker's outer gradient; the K-th makes the region send its own."""
        r = state.region_of[updates.only.node]
        x, outer, merged, applied = state.regions[r]
        x, outer = self.regional.step(x, outer, updates)
        check_result(f"the server of region {r}", x)
        state = self.noted(state, updates.only)
        applied += 1
        state = self._with(state, r, Region(x, outer, merged, applied))
        return state, applied == self.local_updates

    def sent(self, state: HALoSState, region: int) -> tuple[Row, Row]:
        """Returns z_r and x_r, shape (d,) each."""
        of = state.regions[region]
        return of.merged, of.x

    def step(self, state: HALoSState, updates: Arrivals) -> HALoSState:
        """Returns the state with the next w, by g_r."""
        w, outer = self.above.step(state.w, state.outer, updates)
        return state._replace(w=w, outer=outer)

    def merged(self, state: HALoSState, region: int, w: Row) -> HALoSState:
        """Merges the global model, as it was sent back, with x_r."""
        a, of = self.merge_weight, state.regions[region]
        x = ((1 - a) * of.x + a * w).astype(of.x.dtype)
        return self._with(state, region, Region(x, of.outer, x))

    @staticmethod
    def _with(state: HALoSState, r: int, region: Region) -> HALoSState:
        return state._replace(regions={**state.regions, r: region})
