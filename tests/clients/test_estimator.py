"""Estimates of gradients against closed forms, forward-mode differentiation, and what they cost."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ArrayRecord
from torch import nn
from torch.func import functional_call, jvp, vmap

import fl
from fl.clients import (
    BlockWise,
    Conservative,
    Corrected,
    EstimatedBatch,
    ForwardGradient,
    ModelContrast,
    PerFedAvg,
    Projected,
    Received,
    Sgd,
    TrainingApp,
    TwoPoint,
)
from fl.clients.app.alone import AutogradBatch
from fl.errors import ConfigError
from fl.execution.contract import Payload
from fl.flower.records import from_record
from fl.models import MLP, CharGPT, flops_per_example, memory_bytes
from fl.models.objective import per_example_loss
from fl.vectors.layout import Layout

P = 6
A, C = torch.linspace(1.0, 2.0, P).double(), torch.linspace(-1.0, 1.0, P).double()
W = torch.ones(P).double()
G = A * (W - C)


class Quadratic:
    """f(w) = sum a (w - c)^2 / 2, of which difference quotients are exact at any length."""

    examples = 1

    def loss(self, w):
        return (A * (w - C) ** 2).sum() / 2

    def losses(self, *points):
        return tuple(map(self.loss, points))

    def grad(self, w):
        return A * (w - C), self.loss(w)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def blocks(*sizes):
    made = BlockWise(eps=0.5)
    object.__setattr__(made, "sizes", sizes)
    return made


@pytest.mark.parametrize("estimator", [TwoPoint(eps=0.5), ForwardGradient()])
def test_one_direction_of_a_quadratic_is_its_derivative_along_it(estimator):
    z = normal(1, P)
    g, loss = estimator.grad(Quadratic(), W, z)
    torch.testing.assert_close(g, (G @ z[0]) * z[0])
    curvature = (A * z[0] ** 2).sum() * 0.5**2 / 2 if isinstance(estimator, TwoPoint) else 0.0
    torch.testing.assert_close(loss, Quadratic().loss(W) + curvature)


def test_several_directions_are_averaged():
    z = normal(3, P)
    each = [TwoPoint(eps=0.5).grad(Quadratic(), W, z[i : i + 1])[0] for i in range(3)]
    together = TwoPoint(3, eps=0.5).grad(Quadratic(), W, z)[0]
    torch.testing.assert_close(together, sum(each) / 3)


def test_blocks_have_quotients_of_their_own():
    z = normal(1, P)
    g, _ = blocks(2, 4).grad(Quadratic(), W, z)
    of_first, of_second = G[:2] @ z[0, :2], G[2:] @ z[0, 2:]
    torch.testing.assert_close(g, torch.cat([of_first * z[0, :2], of_second * z[0, 2:]]))


def test_the_sign_is_that_of_the_quotient_alone():
    z = normal(1, P)
    g, _ = TwoPoint(sign=True).grad(Quadratic(), W, z)
    torch.testing.assert_close(g, torch.sign(G @ z[0]) * z[0])


@pytest.mark.parametrize(
    ("estimator", "mean", "square"),
    [
        # E |rho z|^2 = (p + 2) |g|^2; of blocks, each with its own p; with a share s of the
        # numbers, E (rho m z)_i^2 = s (3 g_i^2 + s (|g|^2 - g_i^2)).
        (TwoPoint(eps=0.5), 1.0, (P + 2) * G @ G),
        (blocks(2, 4), 1.0, 4 * G[:2] @ G[:2] + 6 * G[2:] @ G[2:]),
        (TwoPoint(eps=0.5, density=0.5), 0.5, (1.5 + 0.25 * (P - 1)) * G @ G),
        (ForwardGradient(density=0.5), 0.5, (1.5 + 0.25 * (P - 1)) * G @ G),
    ],
    ids=["two points", "blocks", "half of the numbers", "half, forward"],
)
def test_mean_and_second_moment_are_those_of_gaussian_directions(estimator, mean, square):
    n = 40_000
    z = normal(n, estimator.draws, P)
    found = vmap(lambda z: estimator.grad(Quadratic(), W, z)[0])(z)
    error = found.std(0) / n**0.5
    assert ((found.mean(0) - mean * G).abs() <= 5 * error).all()
    squares = (found**2).sum(1)
    assert abs(squares.mean() - square) <= 5 * squares.std() / n**0.5


def test_a_share_of_the_numbers_is_not_zero():
    z = normal(2, 20_000)
    (direction,) = TwoPoint(density=0.1).directions(z)
    assert abs((direction != 0).double().mean() - 0.1) < 0.01
    assert torch.equal(direction[direction != 0], z[0][direction != 0])


def tokens_of(model):
    layout = Layout.of(model)
    x = torch.arange(24).view(3, 8) % 11
    return AutogradBatch(model, layout, {}, x, (x + 1) % 11), layout, x


@pytest.mark.slow  # loading forward mode takes seconds
def test_a_forward_gradient_is_that_of_forward_mode_differentiation():
    torch.manual_seed(0)
    model = CharGPT((8,), 11, width=4, layers=1, heads=2)
    batch, layout, x = tokens_of(model)
    w = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    z = normal(1, len(w)).float()

    def loss(w):
        return per_example_loss(functional_call(model, layout.split(w), (x,)), (x + 1) % 11).mean()

    value, derivative = jvp(loss, (w,), (z[0],))
    g, found = ForwardGradient().grad(batch, w, z)
    torch.testing.assert_close(g, derivative * z[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found, value)
    near, _ = TwoPoint(eps=1e-3).grad(batch, w, z)
    torch.testing.assert_close(near, g, rtol=5e-2, atol=1e-3)


def test_blocks_are_the_modules_of_a_model():
    model = CharGPT((8,), 11, width=4, layers=2, heads=2)
    sizes = BlockWise().for_model(model, Layout.of(model)).sizes
    block = 12 * 4**2 + 2 * 4
    assert sizes == (11 * 4, 8 * 4, block, block, 4)
    whole = BlockWise(depth=1).for_model(model, Layout.of(model)).sizes
    assert whole == (11 * 4, 8 * 4, 2 * block, 4)


def test_all_passes_of_an_estimate_drop_out_the_same_units():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    x, y = torch.randn(5, 6), torch.arange(5) % 4
    batch = AutogradBatch(model.train(), Layout.of(model), {}, x, y)
    w = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    assert batch.loss(w) != batch.loss(w)
    one, other = batch.losses(w, w)
    assert one == other
    assert batch.losses(w, w)[0] != one


def stepped(w, lr, batch):
    received = Received(w, {}, {}, {"lr": lr}, 1)
    return Conservative(lr).step(w, (), received, batch, 0)


@pytest.mark.parametrize(
    ("lr", "factor"),
    [(0.1, 1.0), (10.0, 0.0)],
    ids=["forth", "stays"],
)
def test_a_conservative_step_is_the_best_of_three(lr, factor):
    w, _, loss = stepped(W, lr, Quadratic())
    torch.testing.assert_close(w, W - factor * lr * G)
    assert loss == Quadratic().loss(W)


def test_a_conservative_step_goes_back_where_the_estimate_points_the_wrong_way():
    class Wrong(Quadratic):
        def grad(self, w):
            return -super().grad(w)[0], self.loss(w)

    torch.testing.assert_close(stepped(W, 0.1, Wrong())[0], W - 0.1 * G)


def test_a_conservative_step_does_not_go_where_the_loss_is_no_number():
    class Edge(Quadratic):
        def loss(self, w):
            return torch.where((w == W).all(), super().loss(w), torch.nan)

    assert torch.equal(stepped(W, 0.1, Edge())[0], W)


def test_no_loss_of_a_batch_rises_by_a_conservative_step_along_an_estimate():
    w, estimator = W, TwoPoint(eps=0.5)
    for seed in range(50):
        batch = EstimatedBatch(Quadratic(), estimator, normal(1, P, seed=seed))
        after, _, loss = stepped(w, 0.3, batch)
        assert batch.loss(after) <= loss
        w = after
    assert Quadratic().loss(w) < 0.1 * Quadratic().loss(W)


# ---- what it costs ------------------------------------------------------------------------------

FORWARD = 2 * (6 * 5 + 5 * 4)  # of the MLP that `mlp` is, for one example


@pytest.mark.parametrize(
    ("rule", "estimator", "flops"),
    [
        (Sgd(0.1), TwoPoint(), 2 * FORWARD),
        (Sgd(0.1), TwoPoint(3, density=0.5), 6 * FORWARD),
        (Sgd(0.1), BlockWise(), 2 * 2 * FORWARD),
        (Sgd(0.1), ForwardGradient(2), 5 * FORWARD),
        (Sgd(0.1), Projected(8), 16 * FORWARD),
        (Conservative(0.1), TwoPoint(), 5 * FORWARD),
    ],
    ids=["two points", "three", "blocks", "forward", "projected", "conservative"],
)
def test_what_a_step_is_charged(federated, mlp, content_of, rule, estimator, flops):
    app = TrainingApp(mlp, federated((5,)), rule, estimator=estimator, batch_size=5)
    work = app.plan(Payload(content_of(mlp)), "train", 0, 1e-9)
    assert flops_per_example(mlp, (6,)).forward == FORWARD
    assert work.flops == 5 * flops


def test_a_conservative_step_of_gradients_is_charged_three_passes_more(federated, mlp, content_of):
    app = TrainingApp(mlp, federated((5,)), Conservative(0.1), batch_size=5)
    flops = flops_per_example(mlp, (6,))
    work = app.plan(Payload(content_of(mlp)), "train", 0, 1e-9)
    assert work.flops == 5 * (flops.training + 3 * flops.forward)


def test_memory_is_weights_and_one_operation_of_the_forward_pass():
    model = MLP((784,), 10, hidden=[64])
    d = 785 * 64 + 65 * 10
    for batch_size, slots in ((2, 0), (32, 0), (32, 2)):
        # The first layer's inputs and outputs; its weights are counted once.
        expected = 4 * (d * (1 + slots) + batch_size * (784 + 64))
        assert memory_bytes(model, (784,), batch_size, slots, forwards=1) == expected
    twice = memory_bytes(model, (784,), 32, forwards=2)
    assert twice == 4 * (d + 2 * 32 * (784 + 64))


def test_an_estimate_takes_less_memory_than_a_gradient(federated):
    data, deep = federated((32,)), MLP((6,), 4, hidden=(8, 8, 8))
    gradient, estimate, tangents = (
        TrainingApp(deep, data, Sgd(0.1), estimator=e).memory_bytes()
        for e in (None, TwoPoint(), ForwardGradient())
    )
    assert estimate < tangents < gradient


# ---- within an app ------------------------------------------------------------------------------


def test_directions_are_those_of_the_task(federated, mlp, content_of, message_to, context_of):
    app = TrainingApp(mlp, federated((5, 5)), Sgd(0.1), estimator=TwoPoint(), batch_size=None)
    content = content_of(mlp)

    def change(client, dispatch):
        reply = app(message_to(content, client, dispatch), context_of(client))
        x = from_record(app.layout, reply.content["arrays"])
        return x - from_record(app.layout, ArrayRecord(mlp.state_dict()))

    def cosine(a, b):
        return abs(a @ b) / (a @ a * (b @ b)) ** 0.5

    assert (change(0, 0) == change(0, 0)).all()
    assert cosine(change(0, 0), change(0, 1)) < 0.9  # a step is along one direction
    assert cosine(change(0, 0), change(1, 0)) < 0.9


@pytest.mark.parametrize(
    ("rule", "correction", "named"),
    [
        (Sgd(0.1), ModelContrast(), "ModelContrast"),
        (PerFedAvg(gradient="exact"), None, "PerFedAvg"),
    ],
)
def test_derivatives_that_are_not_estimated_are_refused(federated, mlp, rule, correction, named):
    assert Corrected(Sgd(0.1), ModelContrast()).differentiates
    with pytest.raises(ConfigError, match=f"{named} takes derivatives.*leave client/estimator out"):
        TrainingApp(
            mlp, federated((5,)), rule, correction=correction, estimator=TwoPoint(), batch_size=5
        )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TwoPoint(0), "samples is 0"),
        (lambda: TwoPoint(eps=0.0), "eps is 0.0"),
        (lambda: TwoPoint(density=1.5), "density is 1.5"),
        (lambda: TwoPoint(sign=1), "sign is 1"),
        (lambda: BlockWise(depth=0), "depth is 0"),
        (lambda: ForwardGradient(True), "samples is True"),
        (lambda: Projected(0), "samples is 0"),
        (lambda: Conservative(0.0), "lr is 0.0"),
    ],
)
def test_arguments_out_of_range_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["two_point", "block_wise", "forward_gradient"])
def test_clients_learn_by_estimates(estimator):
    run = fl.run(
        *("model=logistic", "executor=serial", "progress=false", "views=false", "num_clients=4"),
        *(f"client/estimator={estimator}", "num_rounds=10", "strategy.fraction_train=1"),
        *("client.rule.lr=0.01", "client.local_epochs=null", "client.local_steps=20"),
    )
    first, *_, last = run.history
    assert last["loss"] < 0.95 * first["loss"]
