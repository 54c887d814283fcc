"""Gradients that are all-reduced bucket by bucket, while the backward pass goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fl.checks import positive, within_unit

_MIB = 2**20


class Bucket(NamedTuple):
    """Gradients that travel together.

    Attributes:
        share: of the vector's bytes, in (0, 1].
        left: share of the backward pass that is still to do when they are there.
    """

    share: float
    left: float


@dataclass(frozen=True)
class Buckets:
    """PyTorch's DistributedDataParallel: an all-reduce begins as soon as its gradients are there.

        f_k = max(r_k, f_{k-1}) + c_k

    with r_k when bucket k is ready at all workers, c_k the seconds of its all-reduce, and f_k its
    end: one after the other, in the order of the backward pass. Workers go on at the later of the
    end of the backward pass and the last f_k.

    Tensors are taken from the last to the first, as their gradients are made, and a bucket is
    closed when it has reached its size. Buckets are those after PyTorch's first iteration, which
    puts all in one. Every tensor's part of the backward pass is that of its numbers: so it is for
    linear layers; the early layers of convolutional networks take longer than that.
    Li et al., "PyTorch Distributed", VLDB 2020, arXiv:2006.15704; sizes as in PyTorch's reducer.

    Attributes:
        mib: size of a bucket, MiB; PyTorch's default is 25.
        first_mib: of the first one; PyTorch's is 1 where mib is left at its default. None is mib.
        backward: share of a step's seconds that the backward pass takes, in [0, 1].

    Raises:
        ConfigError: an argument is out of its range.
    """

    mib: float = 25.0
    first_mib: float | None = 1.0
    backward: float = 2 / 3

    def __post_init__(self) -> None:
        positive("mib", self.mib)
        if self.first_mib is not None:
            positive("first_mib", self.first_mib)
        within_unit("backward", self.backward)

    def of(self, sizes: Sequence[int]) -> list[Bucket]:
        """Returns the buckets of a vector, in the order in which they are ready.

        Args:
            sizes: entries of its tensors, float32, in the order of the model; their sum is above 0.
        """
        total, cap = sum(sizes), self.mib if self.first_mib is None else self.first_mib
        buckets, entries, left = [], 0, total
        for size in reversed(sizes):
            entries += size
            left -= size
            if entries and (4 * entries >= cap * _MIB or not left):
                buckets.append(Bucket(entries / total, left / total))
                entries, cap = 0, self.mib
        return buckets

    def ready_s(self, bucket: Bucket, ends: Sequence[tuple[float, float]]) -> float:
        """Returns when a bucket is ready at all workers, s.

        Args:
            bucket: the bucket.
            ends: of each worker, when its last step ends, and how long that takes, s.
        """
        return max(
            (end - bucket.left * self.backward * took for end, took in ends), default=-math.inf
        )
