"""A data set, and the same data set dealt to clients.

Arrays stay as small as their source has them (images uint8, characters uint8) and are shared, never
written: `FederatedData` travels to worker processes as NumPy arrays, and what a client trains on is
made from them on use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fl.data.drift import Drift
from fl.errors import ConfigError

Task: TypeAlias = Literal["classification", "multi-label", "regression", "next-token", "game"]
IntArray: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and targets, row by row.

    Attributes:
        x: inputs, shape (n, ...): uint8 images, float32 features, or integer tokens (n, T).
        y: targets, int64: classes, shape (n,), or the next token at each position, shape (n, T);
            zeros, shape (n,), for games, which have none. Of regression float32, shape (n,); of
            several labels float32, 0 or 1, shape (n, C).

    Raises:
        ConfigError: different numbers of rows, or targets of another type or rank.
    """

    x: NDArray[Any]
    y: NDArray[Any]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ConfigError(f"{len(self.x)} inputs but {len(self.y)} targets: need one each")
        whole = self.y.dtype == np.int64 and self.y.ndim in (1, 2)
        if not whole and not (self.y.dtype == np.float32 and self.y.ndim in (1, 2)):
            raise ConfigError(
                f"targets are {self.y.dtype} of shape {self.y.shape}: "
                "need int64 of shape (n,) or (n, T), or float32 of shape (n,) for regression and "
                "(n, C) for labels"
            )

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: IntArray | slice) -> Examples:
        """Returns the given rows as a new set of examples."""
        return Examples(self.x[rows], self.y[rows])


@dataclass(frozen=True, eq=False)
class Partitions:
    """Which rows belong to which partition, as compressed rows.

    Attributes:
        indices: row numbers, int64, all partitions concatenated.
        offsets: int64, shape (P + 1,); partition p is indices[offsets[p]:offsets[p + 1]].

    Raises:
        ConfigError: offsets that do not cut `indices` into consecutive pieces.
    """

    indices: IntArray
    offsets: IntArray

    def __post_init__(self) -> None:
        ends = self.offsets
        if (
            len(ends) < 1
            or ends[0] != 0
            or ends[-1] != len(self.indices)
            or (np.diff(ends) < 0).any()
        ):
            raise ConfigError(
                f"offsets {ends} do not cut {len(self.indices)} indices into pieces: "
                f"they must rise from 0 to {len(self.indices)}"
            )

    @classmethod
    def from_arrays(cls, rows: Iterable[ArrayLike]) -> Partitions:
        """Returns partitions with the given rows, one array per partition."""
        arrays = [np.asarray(r, dtype=np.int64) for r in rows]
        indices = np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)
        return cls(indices, _offsets(len(a) for a in arrays))

    @classmethod
    def contiguous(cls, sizes: Iterable[int]) -> Partitions:
        """Returns partitions that follow each other: the first sizes[0] rows, and so on."""
        offsets = _offsets(sizes)
        return cls(np.arange(offsets[-1], dtype=np.int64), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, p: int) -> IntArray:
        if not 0 <= p < len(self):
            raise IndexError(f"partition {p} of {len(self)}: valid are 0 to {len(self) - 1}")
        return self.indices[self.offsets[p] : self.offsets[p + 1]]

    @property
    def sizes(self) -> IntArray:
        """Rows in each partition, int64, shape (P,)."""
        return np.diff(self.offsets)

    def take(self, which: ArrayLike) -> Partitions:
        """Returns only the partitions `which`, in that order."""
        return Partitions.from_arrays(self[int(p)] for p in np.asarray(which))


def _offsets(sizes: Iterable[int]) -> IntArray:
    return np.concatenate([[0], np.cumsum(np.fromiter(sizes, dtype=np.int64))]).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Scaling:
    """Turns stored inputs into float32: (x / scale - mean) / std.

    Attributes:
        scale: full range of a stored value (255 for images).
        mean: subtracted after division, float32, any shape that broadcasts to one example.
        std: divides last, float32, positive, any shape that broadcasts to one example.
    """

    scale: float
    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    def __call__(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Returns the scaled copy of `x`, shape (n, ...)."""
        out = x.astype(np.float32)
        out /= np.float32(self.scale)
        out -= self.mean
        out /= self.std
        return out


def per_channel(scale: float, mean: ArrayLike, std: ArrayLike) -> Scaling:
    """Returns the scaling of (C, H, W) images by one mean and one deviation per channel.

    Args:
        scale: full range of a stored value.
        mean: of the scaled values, shape (C,).
        std: of the scaled values, shape (C,).
    """
    columns = [np.asarray(v, dtype=np.float32).reshape(-1, 1, 1) for v in (mean, std)]
    return Scaling(scale, *columns)


@dataclass(frozen=True, eq=False)
class Source:
    """A data set before it is dealt to clients.

    Attributes:
        name: name of the data set, as on the command line.
        train: examples that are dealt to clients.
        test: held-out examples, never dealt; the same for every seed of a run.
        num_classes: classes or labels, or size of the vocabulary; 1 for regression, 0 for games. It
            is how many numbers a model returns for an example, or for a position.
        input_shape: shape of one input.
        task: one class per example, any number of labels, a number per example, the next token at
            each position, or a game, whose model returns the loss of each example itself
            (`fl.models.Game`).
        scaling: how stored inputs become float32; None if they are used as they are.
        unit: of regression, by how much what is predicted differs where targets differ by 1: their
            standard deviation before they were standardised. Errors are reported in it.
        natural: the clients that the source itself has, rows of `train`; None if it has none.
        natural_test: rows of `test` of each natural client; None if not known.
        clusters: to which of K distributions each row of `train` belongs, int64; None if there is
            one, or it is not known. Nobody learns from it: it says who resembles whom.
        test_clusters: likewise of `test`.
    """

    name: str
    train: Examples
    test: Examples
    num_classes: int
    input_shape: tuple[int, ...]
    task: Task = "classification"
    scaling: Scaling | None = None
    unit: float = 1.0
    natural: Partitions | None = None
    natural_test: Partitions | None = None
    clusters: IntArray | None = None
    test_clusters: IntArray | None = None


class Split(NamedTuple):
    """What a partition rule returns.

    Attributes:
        train: rows of `train`, for each client to train on.
        test: held-out rows of each client, of `test`; None if they have none.
        test_in_train: whether those are rows of `train`, kept from training.
        drift: what becomes of both in time; None if they stay.
    """

    train: Partitions
    test: Partitions | None = None
    test_in_train: bool = False
    drift: Drift | None = None


@dataclass(frozen=True, eq=False)
class FederatedData:
    """A data set dealt to clients.

    A population larger than the number of partitions shares them: the caller lets client i use
    partition i mod P. Results of `client` and `client_test` are not kept here.

    Attributes:
        name: name of the data set.
        train: all training examples.
        test: pooled held-out examples.
        partitions: rows of `train`, one partition per client.
        num_classes: as of `Source`.
        input_shape: shape of one input, for example (1, 28, 28), or (T,) for text.
        task: as of `Source`.
        scaling: how stored inputs become float32; None if they are used as they are.
        unit: as of `Source`.
        test_partitions: held-out rows of each partition, of `test`; None if there are none.
        test_in_train: whether those are rows of `train`, in nobody's partition.
        clusters: of each row of `train`, as of `Source`.
        test_clusters: of each row of `test`.
        drift: what becomes of the partitions in time; None if they stay as they are.
    """

    name: str
    train: Examples
    test: Examples
    partitions: Partitions
    num_classes: int
    input_shape: tuple[int, ...]
    task: Task = "classification"
    scaling: Scaling | None = None
    unit: float = 1.0
    test_partitions: Partitions | None = None
    test_in_train: bool = False
    clusters: IntArray | None = None
    test_clusters: IntArray | None = None
    drift: Drift | None = None

    @property
    def num_partitions(self) -> int:
        """Number of partitions P."""
        return len(self.partitions)

    def size(self, p: int) -> int:
        """Returns the number of training examples of partition `p`."""
        return len(self.partitions[p])

    def rows(self, p: int, t: float) -> IntArray:
        """Returns the rows of `train` that partition `p` has at a time, in s."""
        rows = self.partitions[p]
        return rows if self.drift is None else self.drift.rows(p, rows, len(self.train), t)

    def test_rows(self, p: int, t: float) -> IntArray | None:
        """Returns the rows of `test` that partition `p` has at a time; None if it has no own."""
        if self.test_partitions is None or self.drift is None:
            return None if self.test_partitions is None else self.test_partitions[p]
        return self.drift.rows(p, self.test_partitions[p], len(self.test), t)

    def examples_of(self, p: int, t: float, *, held_out: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what partition `p` has at a time, in s, in the form of `client`.

        Args:
            p: the partition.
            t: s.
            held_out: what it does not train on, if it has such examples of its own.
        """
        rows = self.test_rows(p, t) if held_out else None
        if rows is None:
            return self.tensors(self.train, self.rows(p, t))
        return self.tensors(self.train if self.test_in_train else self.test, rows)

    def mixture(self, p: int, t: float) -> NDArray[np.float64] | None:
        """Returns the shares of the clusters in partition `p` at a time, shape (K,).

        None if clusters are not known, or the partition is empty.
        """
        if self.clusters is None or not self.size(p):
            return None
        counts = np.bincount(self.clusters[self.rows(p, t)], minlength=self.num_clusters)
        return np.asarray(counts / counts.sum())

    @property
    def num_clusters(self) -> int:
        """Number of clusters K; 0 if they are not known."""
        return 0 if self.clusters is None else int(self.clusters.max()) + 1

    def client(self, p: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the training examples of partition `p`, ready for a model.

        Returns:
            Inputs, float32 (n, *input_shape), or int64 (n, T) for text; targets, int64 (n,) or
            (n, T), or float32 (n,) for regression and (n, C) for labels. Both are fresh copies.
        """
        return self.tensors(self.train, self.partitions[p])

    def client_test(self, p: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the held-out examples of partition `p`, in the form of `client`.

        Raises:
            ConfigError: the partitions have no held-out examples of their own.
        """
        if self.test_partitions is None:
            raise ConfigError(
                f"data {self.name!r} has no held-out examples per client with this partition: "
                "evaluate on test_set(), set partition.held_out, or use a source with natural "
                "clients and partition=natural"
            )
        rows = self.test_partitions[p]
        return self.tensors(self.train if self.test_in_train else self.test, rows)

    def test_set(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the pooled held-out examples, in the form of `client`."""
        return self.tensors(self.test, slice(None))

    def fingerprint(self) -> str:
        """Returns the SHA-256 of everything a run is trained and tested on, as 64 hex digits."""
        arrays: list[NDArray[Any]] = [self.train.x, self.train.y, self.test.x, self.test.y]
        for partitions in (self.partitions, self.test_partitions):
            if partitions is not None:
                arrays += [partitions.indices, partitions.offsets]
        if self.clusters is not None and self.test_clusters is not None:
            arrays += [self.clusters, self.test_clusters]
        if self.drift is not None:
            arrays.append(np.frombuffer(repr(self.drift).encode(), np.uint8))
        if self.scaling is not None:
            arrays += [np.array(self.scaling.scale), self.scaling.mean, self.scaling.std]
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def tensors(
        self, examples: Examples, rows: IntArray | slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns rows of a set of examples as fresh tensors, scaled, in the form of `client`."""
        # Each branch copies, so torch never sees (nor writes) the shared read-only arrays.
        x = examples.x[rows]
        if self.task == "next-token":
            x = x.astype(np.int64)
        else:
            x = x.astype(np.float32) if self.scaling is None else self.scaling(x)
        y = examples.y[rows]
        return torch.from_numpy(x), torch.from_numpy(y.astype(y.dtype))


def federate(source: Callable[[], Source], partition: Callable[[Source], Split]) -> FederatedData:
    """Loads a data set and deals it to clients.

    Both arguments are what the `data` and `partition` groups of the configuration instantiate to:
    functions of this package with every other argument bound (`_partial_: true`). They are called
    here, so that their errors reach the user as they are raised.

    Args:
        source: loads the data set, for example `partial(load_synthetic, alpha=1.0, beta=1.0)`.
        partition: deals it, for example `partial(partition.iid, num_partitions=10, seed=0)`.

    Raises:
        ConfigError: the source cannot be loaded, or cannot be dealt in this way.
    """
    loaded = source()
    split = partition(loaded)
    return FederatedData(
        name=loaded.name,
        train=loaded.train,
        test=loaded.test,
        partitions=split.train,
        num_classes=loaded.num_classes,
        input_shape=loaded.input_shape,
        task=loaded.task,
        scaling=loaded.scaling,
        unit=loaded.unit,
        test_partitions=split.test,
        test_in_train=split.test_in_train,
        clusters=loaded.clusters,
        test_clusters=loaded.test_clusters,
        drift=split.drift,
    )
