"""Games: their gradient is the operator, their solution is where it is 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, vmap

from fl.data import load_quadratic_game, load_robust_least_squares
from fl.errors import ConfigError
from fl.models import QuadraticGame, RobustLeastSquares, correct, flops_per_example, smallest_batch


def quadratic():
    source = load_quadratic_game(3, samples=4, dimension=3)
    return QuadraticGame(source.input_shape, 0), torch.from_numpy(source.train.x)


def robust():
    source = load_robust_least_squares(3, rows=4, dimension=2)
    return RobustLeastSquares(source.input_shape, 0, 2), torch.from_numpy(source.train.x)


every_game = pytest.mark.parametrize("make", [quadratic, robust])


def players(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def at(model, z):
    n = model.minimiser.numel()
    with torch.no_grad():
        model.minimiser.copy_(z[:n])
        model.maximiser.copy_(z[n:])
    return model


def operator(model, x):
    value = model(x).mean()
    return torch.cat(torch.autograd.grad(value, list(model.parameters())))


@every_game
def test_the_gradient_is_that_of_f_for_one_player_and_minus_that_for_the_other(make):
    model, x = make()
    n = model.minimiser.numel()
    z = torch.randn(n + model.maximiser.numel(), generator=torch.Generator().manual_seed(0))

    def f(z):
        return model.value(z[:n], z[n:], x).mean()

    slope = torch.autograd.functional.jacobian(f, z)
    expected = torch.cat([slope[:n], -slope[n:]])
    torch.testing.assert_close(operator(at(model, z), x), expected)


@every_game
def test_the_operator_is_zero_at_the_solution_alone(make):
    model, x = make()
    solution = model.solution(x)
    at(model, solution.float())
    torch.testing.assert_close(operator(model, x), torch.zeros(len(solution)), atol=2e-4, rtol=0)
    assert model.distance(solution) < 1e-12
    at(model, 3 * solution.float())
    assert model.distance(solution) == pytest.approx(4, rel=1e-5)


@every_game
def test_outputs_are_losses_under_vmap_as_well(make):
    model, x = make()
    w = {name: torch.randn(2, *v.shape) for name, v in players(model).items()}

    def loss(w, x):
        return functional_call(model, w, (x,)).mean()

    pairs = x[: 2 * (len(x) // 2)].reshape(2, -1, *x.shape[1:])
    together = vmap(grad(loss))(w, pairs)
    for i in range(2):
        alone = grad(loss)({name: v[i] for name, v in w.items()}, pairs[i])
        for name in w:
            torch.testing.assert_close(together[name][i], alone[name], rtol=1e-4, atol=1e-4)
    assert model(x).shape == (len(x),)
    assert not correct(model(x), torch.zeros(len(x))).any()


def test_a_quadratic_games_value_is_its_formula():
    model, x = quadratic()
    z = np.random.default_rng(0).standard_normal(6)
    x0 = x[0].double().numpy()
    expected = z @ x0[:-1] @ z / 2 + x0[-1] @ z
    value = at(model, torch.from_numpy(z))(x[:1])
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_robust_least_squares_is_the_whole_problems_mean_over_rows():
    model, x = robust()
    A, y0 = x[:, :2].numpy(), x[:, -1].numpy()
    rng = np.random.default_rng(0)
    w, y = rng.standard_normal(2), rng.standard_normal(12)
    expected = ((A @ w - y) ** 2).sum() - 50 * ((y - y0) ** 2).sum()
    value = at(model, torch.from_numpy(np.concatenate([w, y])))(x).sum()
    assert value.item() == pytest.approx(expected, rel=1e-4)


@every_game
def test_a_step_is_charged_for(make):
    model, x = make()
    flops = flops_per_example(model, tuple(x.shape[1:]))
    assert flops.forward >= 2 * (x[0].numel() - 1)
    assert flops.backward > 0


def test_a_model_without_losses_does_not_fit_a_game():
    with pytest.raises(ConfigError, match="one loss for each example"):
        smallest_batch(torch.nn.Linear(6, 1), (7, 6), 0, tokens=False)
    assert smallest_batch(quadratic()[0], (7, 6), 0, tokens=False) == 1


@pytest.mark.parametrize(("shape", "maximiser"), [((6, 6), 3), ((7, 6), 6), ((7, 6), -1), ((), 0)])
def test_a_shape_without_room_for_both_players_is_refused(shape, maximiser):
    with pytest.raises(ConfigError, match=f"maximiser is {maximiser}"):
        QuadraticGame(shape, 0, maximiser)


@pytest.mark.parametrize(
    ("more", "match"),
    [({"dimension": 15}, "dimension is 15"), ({"dimension": 2, "lam": 1.0}, "lam is")],
)
def test_robust_least_squares_refuses_what_has_no_solution(more, match):
    with pytest.raises(ConfigError, match=match):
        RobustLeastSquares((15,), 0, **more)


def test_another_dimension_than_the_datas_is_refused():
    _, x = robust()
    with pytest.raises(ConfigError, match="dimension is 3"):
        RobustLeastSquares((15,), 0, 3).solution(x)
