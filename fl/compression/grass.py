"""Grass: a few rows of every matrix, the same ones for all workers and for many steps.

Muhamed, Li, Woodruff, Diab, Smith, "Grass: Compute Efficient Low-Memory LLM Training with
Structured Sparse Gradients", arXiv:2406.17660. The authors' repository has no code; the projection
is as a public summary of the paper has it. This is its communication: the optimizer, which the
paper also keeps to these rows, is the strategy's own here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least
from fl.compression import indices
from fl.compression.compressed_mean import CompressedMean, CompressesMean
from fl.compression.compressor import Length, Shapes, State, Transform, Vector, checked, extent
from fl.compression.topk import read_support, support_length, write_support
from fl.compression.wire import Reader
from fl.errors import ConfigError
from fl.randomness import generator
from fl.vectors.rows import Row, mean

_SELECTIONS = ("top", "sampled")
_MOST = 1e17  # of an entry, so that sums of squares are finite


@dataclass(frozen=True)
class Grass(Transform, CompressesMean):
    """Sends r rows of each matrix M (n x m), and the other tensors as they are.

    P^T = rho B, B a choice of rows: P^T M is r x m, and M is decoded as P P^T M, in which the other
    rows are 0. Rows are chosen every K messages and stay for these:

    - "top": those with the largest norms, rho = 1. With K = 1 delta is the least r / n.
    - "sampled": r times, row j with probability q_j = |M_j|^2 / |M|^2, rho_jj = 1 / sqrt(r q_j).
      With K = 1 it is unbiased, and E |C(M) - M|^2 = (n_+ - 1) / r |M|^2, with n_+ rows that are
      not 0.

    Between the choices there is no constant: rows that have been 0 are not sent at all.

    Where workers meet in a ring (`compress_mean`), all take the same rows: by the sums of their
    rows' squared norms, which are all-reduced first when rows are chosen, and by draws of one
    generator. Then the rows of all are all-reduced, since P^T is linear. What the paper shares for
    the choice could not be read.

    A tensor is a matrix shape[0] x rest; vectors and matrices of r rows or fewer are sent as they
    are.

    State: `rows`, int64, places of the chosen rows among those of all such matrices; `weights`,
    float32, rho^2 of each, 0 for further draws of a row; `step`, int64, shape (1,).

    Wire: header, the rows as `write_support` has them, their entries times rho^2 as float32, then
    the other tensors.

    Attributes:
        rank: r, at least 1.
        every: K, at least 1.
        selection: "top" or "sampled".
        seed: of the shared draws.

    Raises:
        ConfigError: an argument is out of range.
    """

    FORMAT: ClassVar[int] = 29

    rank: int = 8
    every: int = 1
    selection: str = "top"
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("rank", self.rank, 1)
        at_least("every", self.every, 1)
        if self.selection not in _SELECTIONS:
            raise ConfigError(
                f"selection is {self.selection!r}; it must be one of {', '.join(_SELECTIONS)}"
            )

    # ---- as a compressor -------------------------------------------------------------------------

    @property
    def isometric(self) -> bool:
        """Whether the floats are entries of the vector."""
        return self.selection == "top"

    def init(self, shapes: Shapes) -> State:
        """Returns no rows, and step 0."""
        chosen = self.rank * len(self._matrices(shapes))
        return {
            "rows": np.zeros(chosen, np.int64),
            "weights": np.zeros(chosen, np.float32),
            "step": np.zeros(1, np.int64),
        }

    def forward(
        self, x: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, Vector, State]:
        """Returns the rows, their entries and the other tensors, and the rows that stay."""
        self._check(x, shapes)
        state = self._next(self.squares(x, shapes), shapes, state, rng)
        places, weights = _once(state)
        sent = np.concatenate([self._rows(x, shapes, places, weights), self._rest(x, shapes)])
        return write_support(places, self._count(shapes)), sent, state

    def read_side(self, reader: Reader, shapes: Shapes) -> tuple[Any, int]:
        """Reads the rows."""
        places, _ = read_support(reader, self._count(shapes), self._few(shapes))
        widths = self._widths(shapes)
        return places, int(widths[places].sum()) + shapes.size - int(widths.sum())

    def backward(self, side: Any, values: Vector, shapes: Shapes) -> Vector:
        """Returns the rows at their places, and the other tensors as they came."""
        return self._placed(side, values, shapes)

    def side_length(self, shapes: Shapes) -> Length:
        """Returns the bytes of the rows."""
        return support_length(self._count(shapes), self._few(shapes))

    def kept(self, shapes: Shapes) -> tuple[int, int]:
        """Returns the floats if every matrix has one row, or r; of "top" it has r."""
        rest = shapes.size - int(self._widths(shapes).sum())
        widths = [m for _, m, _ in self._matrices(shapes)]
        most = rest + self.rank * sum(widths)
        return (most if self.selection == "top" else rest), most

    def contraction(self, shapes: Shapes) -> float | None:
        """Returns the least r / n, if the rows of the largest norms are chosen every time."""
        if self.selection != "top" or self.every > 1:
            return None
        return min((self.rank / n for n, _, _ in self._matrices(shapes)), default=1.0)

    def variance(self, shapes: Shapes) -> float | None:
        """Returns the greatest (n - 1) / r, if rows are sampled every time."""
        if self.selection != "sampled" or self.every > 1:
            return None
        return max(((n - 1) / self.rank for n, _, _ in self._matrices(shapes)), default=0.0)

    # ---- of a mean -------------------------------------------------------------------------------

    def compress_mean(
        self, x: Row, shapes: Shapes, state: State, rngs: Sequence[np.random.Generator]
    ) -> CompressedMean:
        """Returns P P^T of the mean of vectors; see `CompressesMean.compress_mean`.

        When rows are chosen, an all-reduce of the squared norms of all rows comes first.
        """
        for x_i in x:
            self._check(x_i, shapes)
        sizes = []
        step = int(state["step"][0])
        squares = np.zeros(0)
        if step % self.every == 0:
            squares = np.sum([self.squares(x_i, shapes) for x_i in x], axis=0)
            sizes.append(4 * squares.size)
        shared = generator(self.seed, "grass", step)
        state = self._next(squares, shapes, state, shared)
        places, weights = _once(state)
        rows = mean(np.stack([self._rows(x_i, shapes, places, weights) for x_i in x]))
        rest = mean(np.stack([self._rest(x_i, shapes) for x_i in x]))
        sent = np.concatenate([rows, rest])
        sizes.append(4 * sent.size)
        return CompressedMean(self._placed(places, sent, shapes), tuple(filter(None, sizes)), state)

    def squares(self, x: Vector, shapes: Shapes) -> NDArray[np.float64]:
        """Returns the squared norm of every row of the matrices, one matrix after the other."""
        norms = [
            np.square(x[part].reshape(n, m), dtype=np.float64).sum(axis=1)
            for n, m, part in self._matrices(shapes)
        ]
        return np.concatenate(norms) if norms else np.zeros(0)

    # ---- rows ------------------------------------------------------------------------------------

    def _next(
        self,
        squares: NDArray[np.float64],
        shapes: Shapes,
        state: State,
        rng: np.random.Generator,
    ) -> State:
        """Returns the state with the rows of this step, chosen anew when it is their turn."""
        step = {"step": state["step"] + 1}
        if int(state["step"][0]) % self.every:
            return {**state, **step}
        rows, weights = [], []
        first = 0
        for n, _, _ in self._matrices(shapes):
            places, rho2 = self._chosen(squares[first : first + n], rng)
            rows.append(first + places)
            weights.append(rho2)
            first += n
        if rows:
            step["rows"] = np.concatenate(rows).astype(np.int64)
            step["weights"] = np.concatenate(weights).astype(np.float32)
        return {**state, **step}

    def _chosen(
        self, squares: NDArray[np.float64], rng: np.random.Generator
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Returns r rows of a matrix and rho^2 of each, 0 for what is drawn once more."""
        r, total = self.rank, squares.sum()
        if self.selection == "top" or total == 0:
            largest = np.argsort(-squares, kind="stable")[:r]
            return np.sort(largest), np.ones(r)
        q = squares / total
        drawn = np.bincount(rng.choice(len(q), size=r, p=q), minlength=len(q))
        places = np.flatnonzero(drawn)
        rho2 = drawn[places] / (r * q[places])
        more = r - len(places)
        return np.pad(places, (0, more), mode="edge"), np.pad(rho2, (0, more))

    def _matrices(self, shapes: Shapes) -> list[tuple[int, int, slice]]:
        """Returns rows, columns and place of every tensor of which rows are chosen."""
        return [
            (n, m, part)
            for (n, m), shape, part in zip(
                shapes.matrices, shapes.shapes, shapes.slices, strict=True
            )
            if len(shape) > 1 and n > self.rank and m
        ]

    def _widths(self, shapes: Shapes) -> NDArray[np.int64]:
        """Returns the entries of every row."""
        rows = [np.full(n, m, np.int64) for n, m, _ in self._matrices(shapes)]
        return np.concatenate(rows) if rows else np.zeros(0, np.int64)

    def _count(self, shapes: Shapes) -> int:
        return sum(n for n, _, _ in self._matrices(shapes))

    def _few(self, shapes: Shapes) -> tuple[int, int]:
        """Returns the fewest and the most rows that are sent."""
        matrices = len(self._matrices(shapes))
        most = self.rank * matrices
        return (most if self.selection == "top" else matrices), most

    def _rows(
        self, x: Vector, shapes: Shapes, places: indices.Positions, weights: Vector
    ) -> Vector:
        """Returns the entries of rows times their weights, flat."""
        parts, first = [], 0
        for n, m, part in self._matrices(shapes):
            here = (places >= first) & (places < first + n)
            rows = x[part].reshape(n, m)[places[here] - first]
            parts.append((rows * weights[here, None]).reshape(-1))
            first += n
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _rest(self, x: Vector, shapes: Shapes) -> Vector:
        """Returns the entries of the other tensors, flat."""
        return x[self._others(shapes)]

    def _others(self, shapes: Shapes) -> NDArray[np.bool_]:
        others = np.ones(shapes.size, bool)
        for _, _, part in self._matrices(shapes):
            others[part] = False
        return others

    def _placed(self, places: indices.Positions, values: Vector, shapes: Shapes) -> Vector:
        x = np.zeros(shapes.size, np.float32)
        at = first = 0
        for n, m, part in self._matrices(shapes):
            rows = places[(places >= first) & (places < first + n)] - first
            x[part].reshape(n, m)[rows] = values[at : at + rows.size * m].reshape(-1, m)
            at, first = at + rows.size * m, first + n
        x[self._others(shapes)] = values[at:]
        return x

    def _check(self, x: Vector, shapes: Shapes) -> None:
        largest = extent(checked(x, shapes))
        if largest > _MOST:
            raise ConfigError(f"an entry of magnitude {largest:.3g}; at most {_MOST:.0e}: clip")


def _once(state: State) -> tuple[NDArray[np.int64], Vector]:
    """Returns the rows of a state without those that were drawn once more, and their weights."""
    first = state["weights"] > 0
    return state["rows"][first], state["weights"][first]
