"""Which machine holds which stage of which pipeline, by the network cards between them (Holmes)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least, positive
from fl.errors import ConfigError

_MOST_CLUSTERS = 8  # whose orders along the pipeline are all looked at


@dataclass(frozen=True, eq=False)
class Machines:
    """Machines in clusters, with the network between them.

    Each holds one model slice at a time; tensor parallelism stays within a machine, whose own
    links are faster than any network.

    Attributes:
        cluster: of each, int, shape (n,).
        flops: effective FLOP/s of each, shape (n,).
        bps: bit/s between each two, shape (n, n); the diagonal is not read.

    Raises:
        ConfigError: shapes do not fit, or a number is not positive.
    """

    cluster: NDArray[np.int64]
    flops: NDArray[np.float64]
    bps: NDArray[np.float64]

    def __post_init__(self) -> None:
        n = len(self.cluster)
        if self.flops.shape != (n,) or self.bps.shape != (n, n):
            raise ConfigError(
                f"there are {n} machines, and flops has shape {self.flops.shape}, bps "
                f"{self.bps.shape}; they must be ({n},) and ({n}, {n})"
            )
        off = ~np.eye(n, dtype=bool)
        if not ((self.flops > 0).all() and (self.bps[off] > 0).all()):
            raise ConfigError("flops and bps must be positive for all machines")

    def __len__(self) -> int:
        """Returns n."""
        return len(self.cluster)

    @classmethod
    def of(
        cls,
        nics: Sequence[tuple[int, float, float]],
        *,
        between_bps: float,
    ) -> Machines:
        """Returns clusters of equal machines.

        Args:
            nics: of each cluster, the number of machines, bit/s between two of them, and FLOP/s of
                each.
            between_bps: between machines of different clusters, whose cards do not know each other.
        """
        cluster = np.repeat(np.arange(len(nics)), [n for n, _, _ in nics])
        inside = np.array([bps for _, bps, _ in nics], dtype=np.float64)
        flops = np.array([flops for _, _, flops in nics], dtype=np.float64)
        same = cluster[:, None] == cluster[None, :]
        bps = np.where(same, inside[cluster][:, None], min(between_bps, inside.min()))
        return cls(cluster, flops[cluster], bps)


class Placed(NamedTuple):
    """A placement.

    Attributes:
        machines: who holds stage s of pipeline r, int, shape (S, D).
        layers: of each stage, shape (S,).
        seconds: that a step takes.
    """

    machines: NDArray[np.int64]
    layers: NDArray[np.int64]
    seconds: float


@dataclass(frozen=True)
class NicAware:
    """Stages of D pipelines side by side on n = S D machines: who exchanges most is on fast links.

    A step of m micro-batches takes

        (m + S - 1) max_s (layers_s f / flops_s + 8 b / bps_s)
            + max_s 2 (D - 1) / D 8 g layers_s / bps'_s

    with f the FLOPs of a layer, forward and backward, b the bytes of a boundary both ways, g those
    of a layer's gradient; flops_s of the slowest machine of the stage, bps_s of its slowest link to
    the stage before, bps'_s of the slowest in the ring of its machines.

    Holmes puts the machines of a stage into one cluster, where their all-reduce has the cluster's
    own network, and lets only boundaries cross between clusters; each stage has layers in
    proportion to its machines' speed (self-adapting pipeline partition). Where boundaries outweigh
    gradients the contrary is better, whole pipelines in a cluster. Both are tried here, for every
    order of up to 8 clusters along the pipeline, and the best is taken.

    Source: Yang et al., "Holmes", arXiv:2312.03549, by its abstract and the options of its code;
    formulas are ours.

    Attributes:
        stages: S.
        pipelines: D.
        num_layers: of the model.
        micro_batches: m, of each pipeline in a step.
        layer_flops: f.
        boundary_bytes: b.
        gradient_bytes: g.
        even: the same number of layers in each stage, or one more, whatever its speed.

    Raises:
        ConfigError: a number is not positive, or there are fewer layers than stages.
    """

    stages: int
    pipelines: int
    num_layers: int
    micro_batches: int
    layer_flops: float
    boundary_bytes: float
    gradient_bytes: float
    even: bool = False

    def __post_init__(self) -> None:
        for name in ("stages", "pipelines", "num_layers", "micro_batches"):
            at_least(name, getattr(self, name), 1)
        for name in ("layer_flops", "boundary_bytes", "gradient_bytes"):
            positive(name, getattr(self, name))
        if self.num_layers < self.stages:
            raise ConfigError(
                f"num_layers is {self.num_layers}, and there are {self.stages} stages: each has a "
                "layer at least"
            )

    def place(self, machines: Machines) -> Placed:
        """Returns where everything goes.

        Raises:
            ConfigError: there are not S D machines, or more than 8 clusters.
        """
        n = self.stages * self.pipelines
        if len(machines) != n:
            raise ConfigError(
                f"there are {len(machines)} machines, but {self.stages} stages of "
                f"{self.pipelines} pipelines need {n}"
            )
        return min(
            (self.scored(machines, table) for table in self._candidates(machines)),
            key=lambda placed: placed.seconds,
        )

    def scored(self, machines: Machines, table: NDArray[np.int64]) -> Placed:
        """Returns a placement with its layers and its time.

        Args:
            machines: that there are.
            table: who holds stage s of pipeline r, shape (S, D).
        """
        flops = machines.flops[table].min(axis=1)
        layers = self._layers(flops)
        edges = np.zeros(self.stages)
        if self.stages > 1:
            bps = machines.bps[table[:-1], table[1:]].min(axis=1)
            edges[1:] = 8 * self.boundary_bytes / bps
        slots = self.micro_batches + self.stages - 1
        seconds = slots * float((layers * self.layer_flops / flops + edges).max())
        if self.pipelines > 1:
            ring = machines.bps[table, np.roll(table, -1, axis=1)].min(axis=1)
            share = 2 * (self.pipelines - 1) / self.pipelines
            seconds += float((share * 8 * self.gradient_bytes * layers / ring).max())
        return Placed(table, layers, seconds)

    def _layers(self, flops: NDArray[np.float64]) -> NDArray[np.int64]:
        """Returns layers in proportion to speed, one at least, by largest remainders."""
        shares = np.full(self.stages, 1 / self.stages) if self.even else flops / flops.sum()
        wanted = shares * self.num_layers
        layers: NDArray[np.int64] = np.maximum(1, np.floor(wanted).astype(np.int64))
        while layers.sum() < self.num_layers:
            layers[np.argmax(wanted - layers)] += 1
        while layers.sum() > self.num_layers:
            layers[np.argmax(np.where(layers > 1, layers - wanted, -np.inf))] -= 1
        return layers

    def _candidates(self, machines: Machines) -> Iterator[NDArray[np.int64]]:
        clusters = np.unique(machines.cluster)
        if len(clusters) > _MOST_CLUSTERS:
            raise ConfigError(
                f"there are {len(clusters)} clusters; at most {_MOST_CLUSTERS}, whose orders along "
                "the pipeline can be looked at"
            )
        for order in permutations(clusters.tolist()):
            row = np.concatenate([np.flatnonzero(machines.cluster == c) for c in order])
            yield row.reshape(self.stages, self.pipelines)
            yield row.reshape(self.pipelines, self.stages).T
