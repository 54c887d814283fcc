"""Games of two players: what one minimises, the other maximises, by the same gradients.

A client that follows the gradient of such a model does local gradient descent-ascent: the gradient
of the maximising player's numbers has the other sign, so it is the operator F = (grad_1 f, -grad_2
f) whose zero is sought. With that, every client rule and every server rule is one for games.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from fl.errors import ConfigError


def reversed_gradient(y: Tensor) -> Tensor:
    """Returns `y`, whose gradient has the other sign; works under vmap and grad."""
    return 2 * y.detach() - y


class Game(nn.Module):
    """Two players' numbers; the outputs are values of f, one for each example.

    Both players begin at 0. Clients and server treat what is returned as the loss.

    Args:
        minimiser: numbers of the player that minimises, n.
        maximiser: numbers of the player that maximises, m; 0 for none.
    """

    def __init__(self, minimiser: int, maximiser: int) -> None:
        super().__init__()
        self.minimiser = nn.Parameter(torch.zeros(minimiser))
        self.maximiser = nn.Parameter(torch.zeros(maximiser))

    def forward(self, x: Tensor) -> Tensor:
        """Returns f of each example, shape (B,), with the gradient of the operator."""
        f: Tensor = self.value(self.minimiser, reversed_gradient(self.maximiser), x)
        return f

    @abstractmethod
    def value(self, minimiser: Tensor, maximiser: Tensor, x: Tensor) -> Tensor:
        """Returns f of each example, shape (B,).

        Args:
            minimiser: shape (n,).
            maximiser: shape (m,).
            x: examples, shape (B, ...).
        """

    @abstractmethod
    def hessian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns H and e of the examples' mean f(z) = z'Hz / 2 + e'z + constant.

        Args:
            x: examples, shape (B, ...), float64.

        Returns:
            Shapes (n + m, n + m) and (n + m,), z being both players' numbers.
        """

    def solution(self, x: Tensor) -> Tensor:
        """Returns z at which the operator of the examples' mean is 0, shape (n + m,), float64."""
        H, e = self.hessian(x.double())
        z: Tensor = torch.linalg.lstsq(H, -e[:, None]).solution[:, 0]
        return z

    def distance(self, solution: Tensor) -> float:
        """Returns |z - z*|^2 / |z*|^2 of the players' numbers, in float64."""
        z = torch.cat([self.minimiser.detach(), self.maximiser.detach()]).double()
        return float((z - solution).square().sum() / solution.square().sum())


class QuadraticGame(Game):
    """f(z) = z'Hz / 2 + e'z, z = (z_1, z_2); an example has H and, as its last row, e.

    Args:
        input_shape: (n + m + 1, n + m).
        num_classes: 0, as there are none.
        maximiser: m; the others are the minimiser's. None is half of all.

    Raises:
        ConfigError: the shape is another, or has no room for both.
    """

    def __init__(
        self, input_shape: tuple[int, ...], num_classes: int, maximiser: int | None = None
    ) -> None:
        size = _last(input_shape)
        maximiser = size // 2 if maximiser is None else maximiser
        if tuple(input_shape) != (size + 1, size) or not 0 <= maximiser < size:
            raise ConfigError(
                f"maximiser is {maximiser}, and inputs have shape {tuple(input_shape)}: they must "
                "be (n + m + 1, n + m), as data=quadratic_game has them, and m at least 0"
            )
        super().__init__(size - maximiser, maximiser)

    def value(self, minimiser: Tensor, maximiser: Tensor, x: Tensor) -> Tensor:
        """Returns f of each example."""
        z = torch.cat([minimiser, maximiser])[:, None]  # products of matrices count as FLOPs
        quadratic = (x[..., :-1, :] @ z * z).sum(-2) / 2
        value: Tensor = quadratic + x[..., -1, :] @ z
        return value[..., 0]

    def hessian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean of H and of e."""
        mean = x.mean(dim=0)
        return mean[:-1], mean[-1]


class RobustLeastSquares(Game):
    """f(w, y) = |A w - y|^2 - lam |y - y_0|^2: least squares whose targets an opponent moves.

    An example is a row r: A_r, shape (n,), the r-th unit vector, shape (m,), and (y_0)_r. It has
    (A_r w - y_r)^2 - lam (y_r - (y_0)_r)^2.

    Args:
        input_shape: (n + m + 1,).
        num_classes: 0, as there are none.
        dimension: n; the other numbers are the m targets.
        lam: lambda, what the opponent pays for moving a target; above 1.

    Raises:
        ConfigError: the shape is another, or an argument out of its range.
    """

    def __init__(
        self, input_shape: tuple[int, ...], num_classes: int, dimension: int, lam: float = 50.0
    ) -> None:
        if len(input_shape) != 1 or not 1 <= dimension < _last(input_shape) - 1:
            raise ConfigError(
                f"dimension is {dimension}, and inputs have shape {tuple(input_shape)}: they must "
                "be (n + m + 1,), as data=robust_least_squares has them, with dimension=n"
            )
        if not 1 < lam < float("inf"):
            raise ConfigError(f"lam is {lam}; it must be above 1, or the opponent has no optimum")
        super().__init__(dimension, _last(input_shape) - dimension - 1)
        self.lam = lam

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = self.minimiser.numel()
        return x[..., :n], x[..., n:-1], x[..., -1]

    def value(self, minimiser: Tensor, maximiser: Tensor, x: Tensor) -> Tensor:
        """Returns f of each row."""
        A, unit, y0 = self._parts(x)
        y = (unit @ maximiser[:, None])[..., 0]
        value: Tensor = ((A @ minimiser[:, None])[..., 0] - y) ** 2 - self.lam * (y - y0) ** 2
        return value

    def hessian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns H and e of the rows' mean."""
        A, unit, y0 = self._parts(x)
        if not ((unit == 0) | (unit == 1)).all() or not (unit.sum(dim=1) == 1).all():
            raise ConfigError(
                f"dimension is {A.shape[1]}, and what follows so many numbers is no unit vector in "
                "every example: set it to data.dimension"
            )
        residual = torch.cat([A, -unit], dim=1)
        moved = torch.cat([torch.zeros_like(A), unit], dim=1)
        H = 2 * (residual.T @ residual - self.lam * moved.T @ moved) / len(x)
        return H, 2 * self.lam * (y0[:, None] * moved).mean(dim=0)


def _last(shape: tuple[int, ...]) -> int:
    return shape[-1] if shape else 0
