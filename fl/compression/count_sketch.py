"""Count sketch, and the server of FetchSGD.

Rothchild, Panda, Ullah, Ivkin, Stoica, Braverman, Gonzalez, Arora, FetchSGD:
Communication-Efficient Federated Learning with Sketching, ICML 2020, arXiv:2007.07682;
github.com/kiddyboots216/CommEfficient. The sketch: Charikar, Chen, Farach-Colton, Finding Frequent
Items in Data Streams, 2002.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.checks import share
from fl.compression.budget import Budget
from fl.compression.compressor import Length, Shapes, State, Transform, Vector, checked, extent
from fl.compression.largest import largest
from fl.compression.topk import scattered
from fl.compression.wire import Reader
from fl.errors import ConfigError
from fl.randomness import generator

_PRIME = np.uint64((1 << 31) - 1)
_BLOCK = 1 << 15


@dataclass(frozen=True)
class CountSketch(Budget, Transform):
    """Sends the table S[j, h_j(i)] += s_j(i) x_i; decodes the k largest estimates.

    The estimate of an entry is median_j s_j(i) S[j, h_j(i)], with error O(|tail|_2 / sqrt(columns))
    but for a probability that falls exponentially in the number of rows. Column and sign of an
    entry in a row come from a cubic polynomial over the field of 2^31 - 1, which is 4-wise
    independent: the sign from the lowest bit of its value, the column from the other 30 bits, v
    columns / 2^30.

    Encoding is linear: tables of one configuration can be added (`decode_table` of their mean), in
    a ring, or under secure aggregation after conversion to integers.

    Biased by the selection, without a constant. Error feedback belongs on the server, see
    `FetchSgd`.

    Wire: header, the table as float32, row after row. Length: `6 + 4 rows columns`.

    Attributes:
        rows: R, at least 1; odd, so that the median is an entry of the table.
        columns: 1 to 2^30.
        seed: of the hashes; the same for all.

    Raises:
        ConfigError: a parameter is out of range.
    """

    FORMAT: ClassVar[int] = 16

    rows: int = 5
    columns: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows < 1 or self.rows % 2 == 0:
            raise ConfigError(f"rows is {self.rows}; it must be odd and at least 1")
        if not 1 <= self.columns <= 1 << 30:
            raise ConfigError(f"columns is {self.columns}; it must be 1 to 2^30")

    def forward(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, Vector, State]:
        """Returns no side information, and the table."""
        extent(checked(x, shapes))
        return b"", self.table(x).reshape(-1), state

    def read_side(self, reader: Reader, shapes: Shapes) -> tuple[Any, int]:
        """Reads nothing."""
        return None, self.rows * self.columns

    def backward(self, side: Any, values: Vector, shapes: Shapes) -> Vector:
        """Returns the k largest estimates, zero elsewhere."""
        return self.decode_table(values.reshape(self.rows, self.columns), shapes.size)

    def side_length(self, shapes: Shapes) -> Length:
        """Returns 0."""
        return Length(0, 0)

    def kept(self, shapes: Shapes) -> tuple[int, int]:
        """Returns rows times columns, twice."""
        cells = self.rows * self.columns
        return cells, cells

    def table(self, x: Vector) -> Vector:
        """Returns the sketch of a vector, shape (rows, columns), float32."""
        table = np.zeros((self.rows, self.columns))
        for start in range(0, x.size, _BLOCK):
            block = x[start : start + _BLOCK]
            columns, signs = self.hashes(np.arange(start, start + block.size))
            for row in range(self.rows):
                table[row] += np.bincount(
                    columns[row], weights=block * signs[row], minlength=self.columns
                )
        if not np.isfinite(table).all() or np.abs(table).max() > np.finfo(np.float32).max:
            raise ConfigError("a cell of the sketch exceeds float32; clip the update")
        return table.astype(np.float32)

    def estimates(self, table: Vector, size: int) -> Vector:
        """Returns the estimate of every entry, shape (size,), float32."""
        out = np.empty(size, dtype=np.float32)
        rows = np.arange(self.rows)[:, None]
        for start in range(0, size, _BLOCK):
            stop = min(start + _BLOCK, size)
            columns, signs = self.hashes(np.arange(start, stop))
            votes = table[rows, columns] * signs
            # The middle of an odd number of votes; nothing here has to average.
            votes.partition(self.rows // 2, axis=0)
            out[start:stop] = votes[self.rows // 2]
        return out

    def decode_table(self, table: Vector, size: int) -> Vector:
        """Returns the k largest estimates of a sketch, zero elsewhere, shape (size,)."""
        estimates = self.estimates(table, size)
        positions = largest(estimates, self.count(size))
        return scattered(positions, estimates[positions], size)

    def hashes(self, entries: NDArray[np.int64]) -> tuple[NDArray[np.int64], Vector]:
        """Returns column and sign of each entry in each row, shapes (rows, len(entries)).

        A contract of the wire: integer arithmetic on raw generator words only.
        """
        # Coefficients below 2^31 - 1, a cubic polynomial a row.
        raw = generator(self.seed, "count-sketch").bit_generator.random_raw(4 * self.rows)
        a = (raw % _PRIME).reshape(self.rows, 4, 1)
        i = entries.astype(np.uint64)
        value = np.repeat(a[:, 0], entries.size, axis=1)
        for degree in range(1, 4):
            value *= i
            value += a[:, degree]
            # 2^31 = 1 in this field: adding the upper part to the lower twice leaves 2^31 + 1 at
            # most, small enough to go on with.
            for _ in range(2):
                upper = value >> np.uint64(31)
                value &= _PRIME
                value += upper
        value -= np.where(value >= _PRIME, _PRIME, np.uint64(0))
        columns = ((value >> np.uint64(1)) * np.uint64(self.columns) >> np.uint64(30)).astype(
            np.int64
        )
        signs = (value & np.uint64(1)).astype(np.float32) * np.float32(2) - np.float32(1)
        return columns, signs


@dataclass(frozen=True)
class FetchSgd:
    """The server rule of FetchSGD: momentum and error feedback inside the sketch.

        S_m <- rho S_m + mean_i S(g_i);   S_e <- S_e + lr S_m
        Delta = top-k of the estimates of S_e;   remove Delta from S_e;   x <- x - Delta

    "subtract" removes S(Delta), as in the paper. "zero" sets every cell that S(Delta) touches to 0,
    in S_e and S_m, as the authors' code does, where subtraction diverged; their code also applies
    lr to Delta instead of the sketch, which is the same while lr is constant.

    State: `momentum` and `error`, float32, shape (rows, columns). Clients keep nothing, so any
    client may take part in any round. Delta is broadcast, sparse: encode it with `TopK(k=...)`.

    Attributes:
        sketch: the clients' compressor; its k is that of Delta.
        lr: above 0.
        momentum: rho in [0, 1).
        removal: "subtract" or "zero".

    Raises:
        ConfigError: a parameter is out of range.
    """

    sketch: CountSketch
    lr: float
    momentum: float = 0.9
    removal: str = "zero"

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"lr is {self.lr}; it must be above 0")
        share("momentum", self.momentum)
        if self.removal not in ("subtract", "zero"):
            raise ConfigError(f"removal is {self.removal!r}; it must be 'subtract' or 'zero'")

    def init(self) -> State:
        """Returns two empty sketches."""
        shape = (self.sketch.rows, self.sketch.columns)
        return {
            "momentum": np.zeros(shape, dtype=np.float32),
            "error": np.zeros(shape, dtype=np.float32),
        }

    def step(self, tables: Sequence[Vector], size: int, state: State) -> tuple[Vector, State]:
        """Returns Delta, shape (size,), to be subtracted from the model, and the next state.

        Args:
            tables: sketches of the clients' gradients, shape (rows, columns) each.
            size: d.
            state: not changed.

        Raises:
            ConfigError: there are no tables.
        """
        if not len(tables):
            raise ConfigError("no sketches to combine")
        mean = np.mean(tables, axis=0, dtype=np.float64).astype(np.float32)
        momentum = np.float32(self.momentum) * state["momentum"] + mean
        error = state["error"] + np.float32(self.lr) * momentum
        delta = self.sketch.decode_table(error, size)
        if self.removal == "subtract":
            error = error - self.sketch.table(delta)
        else:
            columns, _ = self.sketch.hashes(np.flatnonzero(delta))
            rows = np.arange(self.sketch.rows)[:, None]
            error[rows, columns] = 0
            momentum[rows, columns] = 0
        return delta, {"momentum": momentum, "error": error}
