"""The gradient noise scale: how large a batch is worth its examples, seen in what clients return.

McCandlish, Kaplan, Amodei, OpenAI Dota Team, "An Empirical Model of Large-Batch Training",
arXiv:1812.06162, section 2.2 and appendix A.1: two batch sizes give unbiased estimates of both
parts, and each part is averaged by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.checks import share
from fl.vectors.rows import Row

_BLOCK = 2**18  # numbers that are squared at a time
_APART = 1e-3  # least relative difference between the two equations


class Noise(NamedTuple):
    """Decaying sums over rounds.

    Attributes:
        square: of estimates of |G|^2.
        trace: of estimates of tr(Sigma).
        weight: of 1.
        several: whether any client has done more than a step in a round.
        along: of estimates of the variance of one example's gradient along the mean one; 0 where
            nobody asks for it.
    """

    square: float = 0.0
    trace: float = 0.0
    weight: float = 0.0
    several: bool = False
    along: float = 0.0


@dataclass(frozen=True)
class NoiseScale:
    """B_simple = tr(Sigma) / |G|^2, Sigma the covariance of one example's gradient, G its mean.

    Client i does K_i steps of the rate lr on n_i examples in all, so that its change is

        Delta_i = -lr K_i (G + e_i),    E|e_i|^2 = tr(Sigma) / n_i,

    and with the clients' shares w_i, which sum to 1,

        sum_i w_i E|Delta_i|^2 / lr^2 = |G|^2 sum_i w_i K_i^2   + tr(Sigma) sum_i w_i K_i^2 / n_i
        E|sum_i w_i Delta_i|^2 / lr^2 = |G|^2 (sum_i w_i K_i)^2 + tr(Sigma) sum_i w_i^2 K_i^2 / n_i.

    These are two linear equations for |G|^2 and tr(Sigma), lr^2 times each. For n clients with
    equal shares and one step of b examples they are the paper's, with its pair of batches b and
    n b. They take n + 1 squared norms, of what clients train. Single estimates may be negative and
    are not clipped; their ratio is biased, so each has an exponential moving average over rounds,
    and the ratio is of these.

    With one step it is the noise scale of the gradient; with several, whose gradients are taken at
    different points, that of the pseudo-gradient -Delta_i / (lr K_i), and is called so. The unit is
    an example either way. A rate that is the same for all clients cancels; so does not what differs
    between clients: with data of different distributions tr(Sigma) holds n_i times the variance
    between clients as well. Compression, forging and an optimizer's own noise count as noise.

    A round of one client, or of such unequal steps that the equations hardly differ, says nothing.

    Attributes:
        decay: of the averages, in [0, 1).

    Raises:
        ConfigError: it is out of its range.
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        share("noise_scale", self.decay)

    def observe(
        self,
        noise: Noise,
        shares: NDArray[np.float64],
        steps: Sequence[int],
        examples: Sequence[int],
        squares: NDArray[np.float64],
        square: float,
        inner: NDArray[np.float64] | None = None,
    ) -> Noise:
        """Returns the averages with one more round.

        Args:
            noise: before it.
            shares: what the clients weigh, shape (n,), with a positive sum.
            steps: K_i of each.
            examples: n_i of each, with repeats.
            squares: |Delta_i|^2, shape (n,).
            square: |sum_i w_i Delta_i|^2.
            inner: <Delta_i, sum_j w_j Delta_j>, shape (n,), for the variance along the mean; None
                does not estimate it.
        """
        w = shares / shares.sum()
        k, n = np.asarray(steps, np.float64), np.asarray(examples, np.float64)
        of_noise = np.divide(k * k, n, out=np.zeros_like(k), where=n > 0)  # K_i^2 / n_i
        a = np.array([[w @ (k * k), w @ of_noise], [(w @ k) ** 2, (w * w) @ of_noise]])
        determinant = a[1, 0] * a[0, 1] - a[0, 0] * a[1, 1]
        if not determinant > _APART * a[1, 0] * a[0, 1]:
            return noise
        of_each = float(w @ squares)
        estimate = (a[0, 1] * square - a[1, 1] * of_each) / determinant
        trace = (a[1, 0] * of_each - a[0, 0] * square) / determinant
        return Noise(
            self.decay * noise.square + (1 - self.decay) * float(estimate),
            self.decay * noise.trace + (1 - self.decay) * float(trace),
            self.decay * noise.weight + (1 - self.decay),
            noise.several or bool((k > 1).any()),
            self.decay * noise.along + (1 - self.decay) * _variance_along(w, k, n, square, inner),
        )

    def report(self, noise: Noise) -> dict[str, float]:
        """Returns metrics of the averages, by name.

        "noise_scale" is B_simple, in examples, where |G|^2 is positive; "noise_scale_g2" and
        "noise_scale_s" are |G|^2 and tr(Sigma), lr^2 times each. With several local steps the names
        begin with "pseudo_".
        """
        if not noise.weight:
            return {}
        start = "pseudo_noise_scale" if noise.several else "noise_scale"
        found = {
            f"{start}_g2": noise.square / noise.weight,
            f"{start}_s": noise.trace / noise.weight,
        }
        if noise.square > 0:
            found[start] = noise.trace / noise.square
        return found


def _variance_along(
    w: NDArray[np.float64],
    k: NDArray[np.float64],
    n: NDArray[np.float64],
    square: float,
    inner: NDArray[np.float64] | None,
) -> float:
    """Returns the variance of one example's gradient along the mean, times lr^2.

    Client i's gradient, over its n_i examples, has a component of p_i = <Delta_i, mean> / (K_i
    |mean|) along it, and sum_i w_i E(p_i - p)^2 is the variance times sum_i w_i (1 - w_i) / n_i.
    """
    works = k > 0
    if inner is None or not square > 0 or works.sum() < 2:
        return 0.0
    w = w[works] / w[works].sum()
    p = inner[works] / (k[works] * np.sqrt(square))
    return float(w @ (p - w @ p) ** 2 / (w @ ((1 - w) / n[works])))


def squared_norm(x: Row, places: Sequence[slice], less: Row | None = None) -> float:
    """Returns |x - less|^2 over some places, summed in float64 without a second vector.

    Args:
        x: shape (d,).
        places: slices of x.
        less: shape (d,); None is 0.
    """
    total = 0.0
    for block in _blocks(places):
        part = x[block] if less is None else x[block] - less[block]
        total += float(np.einsum("d,d->", part, part, dtype=np.float64))
    return total


def _blocks(places: Sequence[slice]) -> Iterator[slice]:
    for place in places:
        for start in range(place.start, place.stop, _BLOCK):
            yield slice(start, min(start + _BLOCK, place.stop))


def whole(value: Any) -> int | None:
    """Returns a number that a client reports as a whole one; None if it is none of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 2**53:
        return None
    return int(value) if value == int(value) else None
