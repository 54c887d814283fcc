"""Client rules against `torch.optim` and against closed forms, on vectors and under `vmap`."""

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from many_cases import for_each
from torch import nn
from torch.func import grad, vmap

from fl.clients import (
    APFL,
    AdamW,
    AnchorSampling,
    CodedGradient,
    Conservative,
    ControlledMomentum,
    ControlVariates,
    Corrected,
    Correction,
    CosineDecay,
    Descent,
    Direction,
    Ditto,
    DynamicRegularization,
    ExponentialDecay,
    GlobalMomentum,
    Gradient,
    Hypergradient,
    LocalFirst,
    LocalOptimizer,
    MicroAdam,
    ModelContrast,
    Momentum,
    MoreauEnvelope,
    Muon,
    PerFedAvg,
    Proximal,
    ProximalOwn,
    ProxSkipShift,
    Received,
    Rule,
    Sam,
    Sgd,
    SharedScaling,
    StepDecay,
)
from fl.clients.masked import Masked
from fl.errors import ConfigError
from fl.vectors.layout import Layout

TIGHT = {"rtol": 1e-9, "atol": 1e-11}
STEPS = 6  # that tasks are said to have


def fitted(rule: Muon) -> Muon:
    """The rule for a model of 20 parameters, as those that rules are tried on here."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    return rule.for_model(model, Layout.of(model))


RULES = {
    "sgd": Sgd(0.1),
    "sgd momentum": Sgd(0.1, momentum=0.9),
    "sgd nesterov": Sgd(0.05, momentum=0.8, nesterov=True),
    "sgd decay": Sgd(0.1, weight_decay=0.1),
    "sgd clip": Sgd(0.1, clip_norm=0.5),
    "sgd everything": Sgd(0.1, 0.9, True, 0.05, 0.7, None, StepDecay(2, 0.5)),
    "adamw": AdamW(0.01),
    "conservative": Conservative(0.1),
    "adamw kept": AdamW(0.01, keep_moments=True, clip_norm=1.0),
    "gradient": Gradient(clip_norm=1.0),
    "microadam": MicroAdam(0.01, density=0.2, bucket=8, window=3),
    "microadam kept": MicroAdam(0.01, density=0.2, block=6, window=3, keep_state=True),
    "muon": fitted(Muon(0.01)),
    "muon kept": fitted(Muon(0.01, clip_norm=1.0, keep_moments=True, adamw_factor=0.5)),
    "momentum": Momentum(0.1, 0.8, 0.05, 0.7, None, StepDecay(2, 0.5)),
    "sam": Sam(0.1, rho=0.1),
    "sam everything": Sam(0.1, 0.9, True, 0.05, 0.7, None, StepDecay(2, 0.5), rho=0.3),
    "direction": Direction(Sgd(0.1, weight_decay=0.1, clip_norm=0.5)),
    "direction, sam": Direction(Sam(0.1, rho=0.1)),
    "direction, momentum": Direction(Momentum(0.1, 0.8, 0.05, 0.7)),
    "moreau envelope": MoreauEnvelope(0.01, 0.02, 5.0, 3),
    "per-fedavg": PerFedAvg(0.1, 0.05),
    "per-fedavg hf": PerFedAvg(0.1, 0.05, "HF"),
    "per-fedavg exact": PerFedAvg(0.1, 0.05, "exact"),
}
CORRECTIONS = {
    "proximal": Proximal(0.5),
    "proximal clip first": Proximal(0.5, clip_first=True),
    "proximal own": ProximalOwn(0.5),
    "control variates": ControlVariates(),
    "control variates option I": ControlVariates("I"),
    "control variates clip last": ControlVariates(clip_first=False),
    "dynamic regularization": DynamicRegularization(),
    "model contrast": ModelContrast(2.0),
    "proxskip shift": ProxSkipShift(),
    "proxskip reference": ProxSkipShift(variance_reduction=True),
    "shared scaling": SharedScaling(),
    "global momentum": GlobalMomentum(),
    "global momentum vr": GlobalMomentum(variance_reduction=True),
    "controlled momentum": ControlledMomentum(clip_first=True),
    "controlled momentum vr": ControlledMomentum(variance_reduction=True),
    "hypergradient": Hypergradient(),
    "anchor": AnchorSampling(),
    "ditto": Ditto(0.5),
    "apfl": APFL(0.4, alpha_lr=0.01),
}
OPTIMIZERS = {name: rule for name, rule in RULES.items() if isinstance(rule, LocalOptimizer)}
RULES |= {
    f"{correction}, {optimizer}": Corrected(OPTIMIZERS[optimizer], CORRECTIONS[correction])
    for optimizer in OPTIMIZERS
    for correction in CORRECTIONS
}
RULES["local first"] = LocalFirst(Momentum(0.1, 0.8), share=0.5)


def proximal(lr: float, momentum: float = 0.0, *, clip_norm=None, **term) -> Corrected:
    """SGD with a proximal term."""
    return Corrected(Sgd(lr, momentum, clip_norm=clip_norm), Proximal(**term))


class Quadratic:
    """f(w) = sum a (w - c)^2 / 2 as a batch."""

    examples = 1

    def __init__(self, a: torch.Tensor, c: torch.Tensor) -> None:
        self.a, self.c = a, c

    def loss(self, w):
        return (self.a * (w - self.c) ** 2).sum() / 2

    def losses(self, *points):
        return tuple(map(self.loss, points))

    def grad(self, w):
        return self.a * (w - self.c), self.loss(w)

    def hessian_product(self, w, v):
        return self.a * v

    @property
    def own(self):
        return self

    def features(self, w):
        return (self.a * w)[None]

    def features_grad(self, loss, w):
        return grad(lambda w: loss(self.features(w)).mean())(w)


class Linear:
    """f(w) = <g, w> as a batch."""

    examples = 1

    def __init__(self, g: torch.Tensor) -> None:
        self.g = g

    def grad(self, w):
        return self.g, self.g @ w


def told(rule: Rule):
    """A message's configuration that the rule does not refuse."""
    return {"server-round": 1, **dict.fromkeys(rule.requires, 0.3)}


def received_by(rule: Rule, w, scalars=None, memory=None):
    """What a client begins with; vectors of the server are some small ones."""
    server = {name: 0.01 * torch.ones_like(w).cumsum(0) for name in rule.needs}
    scalars = rule.scalars(told(rule)) if scalars is None else scalars
    memory = rule.first_memory(w, scalars) if memory is None else memory
    return Received(w, server, memory, scalars, STEPS)


def run(rule: Rule, w, batch, steps: int, config=None, memory=None):
    received = received_by(rule, w, rule.scalars(config) if config else None, memory)
    state = rule.init(received)
    for t in range(steps):
        w, state, _ = rule.step(w, state, received, batch, t)
    return w, rule.finish(w, state, received, steps)


def optimise(make, w, batch, steps: int, clip_norm=None, scheduler=None):
    parameter = nn.Parameter(w.clone())
    optimizer = make([parameter])
    schedule = scheduler(optimizer) if scheduler else None
    for _ in range(steps):
        optimizer.zero_grad()
        batch.loss(parameter).backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([parameter], clip_norm)
        optimizer.step()
        if schedule:
            schedule.step()
    return parameter.detach()


@pytest.fixture
def quadratic():
    # float64: rules take any float type, and the comparison with torch can then be tight.
    torch.manual_seed(1)
    w, a, c = torch.randn(20), torch.rand(20) + 0.5, torch.randn(20)
    return w.double(), Quadratic(a.double(), c.double())


@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.9, False), (0.5, True), (0.9, True)]
)
@for_each("weight_decay", [0.0, 0.1])
@for_each("clip_norm", [None, 0.5, 100.0])
def test_sgd_is_torchs(quadratic, momentum, nesterov, weight_decay, clip_norm):
    w, batch = quadratic
    rule = Sgd(0.1, momentum, nesterov, weight_decay, clip_norm)
    expected = optimise(
        lambda p: torch.optim.SGD(
            p, 0.1, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        ),
        w,
        batch,
        15,
        clip_norm,
    )
    torch.testing.assert_close(run(rule, w, batch, 15)[0], expected, **TIGHT)


@pytest.mark.parametrize(
    ("schedule", "scheduler"),
    [
        (StepDecay(4, 0.3), lambda o: torch.optim.lr_scheduler.StepLR(o, 4, 0.3)),
        (ExponentialDecay(0.9), lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)),
        (CosineDecay(20), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20)),
    ],
)
@for_each("kind", [Sgd, AdamW])
def test_a_schedule_over_local_steps_is_torchs(quadratic, schedule, scheduler, kind):
    w, batch = quadratic
    make = {
        Sgd: lambda p: torch.optim.SGD(p, 0.1),
        AdamW: lambda p: torch.optim.AdamW(p, 0.1),
    }[kind]
    expected = optimise(make, w, batch, 15, scheduler=scheduler)
    got = run(kind(lr=0.1, step_schedule=schedule), w, batch, 15)[0]
    torch.testing.assert_close(got, expected, **TIGHT)


@pytest.mark.parametrize("kind", [Sgd, AdamW, MicroAdam, Momentum, Sam])
def test_a_schedule_over_rounds_counts_from_the_first_round(kind):
    rule = kind(lr=0.1, round_schedule=StepDecay(2, 0.5))
    rates = [rule.scalars({"server-round": i})["lr"] for i in (1, 2, 3, 4, 5)]
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])
    assert rule.scalars({"server-round": 4, "lr": 0.7})["lr"] == 0.7
    with pytest.raises(ConfigError, match="round_schedule needs the message's 'server-round'"):
        rule.scalars({})


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.9), (0.5, 0.0)])
@for_each("weight_decay", [0.0, 0.1])
@for_each("eps", [1e-8, 1e-2])
@for_each("clip_norm", [None, 0.5])
def test_adamw_is_torchs(quadratic, betas, weight_decay, eps, clip_norm):
    w, batch = quadratic
    rule = AdamW(0.03, *betas, eps, weight_decay, clip_norm)
    expected = optimise(
        lambda p: torch.optim.AdamW(p, 0.03, betas, eps, weight_decay), w, batch, 25, clip_norm
    )
    torch.testing.assert_close(run(rule, w, batch, 25)[0], expected, **TIGHT)


def test_adamw_with_kept_moments_goes_on_where_it_stopped(quadratic):
    w, batch = quadratic
    rule = AdamW(0.03, keep_moments=True)
    half, finished = run(rule, w, batch, 10)
    whole = run(rule, half, batch, 15, memory=finished.memory)[0]
    expected = optimise(lambda p: torch.optim.AdamW(p, 0.03), w, batch, 25)
    torch.testing.assert_close(whole, expected, **TIGHT)
    forgetful = run(AdamW(0.03), half, batch, 15)[0]
    assert (forgetful - expected).abs().max() > 1e-3


# ---- FedProx -------------------------------------------------------------------------------------


def test_the_average_of_gradients_outlives_the_task_and_has_its_closed_form():
    # m_t = (1 - beta) sum_{s <= t} beta^(t - s) g_s, over tasks of one step each.
    beta, lr, rng = 0.7, 0.5, np.random.default_rng(5)
    gradients = rng.standard_normal((6, 3))
    memory = None
    for t in range(6):
        batch = Linear(torch.from_numpy(gradients[t]))
        w = torch.zeros(3, dtype=torch.float64)  # the server's model is of no account
        memory = memory or {"m": torch.zeros(3, dtype=torch.float64)}
        sent, finished = run(Momentum(lr, beta), w, batch, 1, memory=memory)
        memory = finished.memory
        powers = beta ** np.arange(t, -1, -1.0)
        m = (1 - beta) * powers @ gradients[: t + 1]
        np.testing.assert_allclose(memory["m"].numpy(), m, rtol=1e-12)
        np.testing.assert_allclose(sent.numpy(), -lr * m, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 7])
def test_momentum_with_beta_is_torchs_with_damping(quadratic, steps):
    w, batch = quadratic
    beta = 0.8
    got, finished = run(Momentum(0.1, beta, 0.05, 0.5), w, batch, steps)

    def make(parameters):
        # torch begins with the first gradient undamped; a zero buffer makes it damp that as well.
        optimizer = torch.optim.SGD(parameters, 0.1, beta, dampening=beta, weight_decay=0.05)
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer

    torch.testing.assert_close(got, optimise(make, w, batch, steps, clip_norm=0.5), **TIGHT)
    assert set(finished.memory) == {"m"}


def test_momentum_without_memory_of_gradients_is_sgd(quadratic):
    w, batch = quadratic
    got = run(Momentum(0.1, 0.0, 0.05, 0.5), w, batch, 9)[0]
    torch.testing.assert_close(got, run(Sgd(0.1, 0.0, False, 0.05, 0.5), w, batch, 9)[0], **TIGHT)


def test_proximal_steps_follow_the_closed_form_on_a_quadratic():
    # methods reference 2.5: y_k - y* = (1 - eta (a + mu))^k (x - y*), y* = (a c + mu x) / (a + mu)
    a, c, x, mu, eta, k = 1.7, 0.4, -2.0, 0.6, 0.05, 13
    fixed = (a * c + mu * x) / (a + mu)
    expected = fixed + (1 - eta * (a + mu)) ** k * (x - fixed)
    batch = Quadratic(torch.tensor([a]), torch.tensor([c]))
    got, _ = run(proximal(eta, mu=mu), torch.tensor([x]), batch, k)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_proximal_is_sgd_with_weight_decay_and_a_linear_term(quadratic):
    w, batch = quadratic
    mu = 0.8

    class Shifted(Quadratic):
        def loss(self, v):
            return super().loss(v) - mu * (w * v).sum()

    shifted = Shifted(batch.a, batch.c)
    expected = optimise(
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=mu), w, shifted, 12
    )
    got, _ = run(proximal(0.1, 0.9, mu=mu), w, batch, 12)
    torch.testing.assert_close(got, expected, **TIGHT)


def test_a_large_mu_keeps_the_model_within_the_gradient_over_mu():
    batch = Quadratic(torch.ones(3), torch.full((3,), 10.0))
    got, _ = run(proximal(1e-4, mu=1000.0), torch.zeros(3), batch, 200)
    assert (got.norm() <= math.sqrt(300) / 1000.0).item()


def penalised(batch, w, mu):
    """The batch with mu/2 |v - w|^2 in its loss."""
    return Quadratic(batch.a + mu, (batch.a * batch.c + mu * w) / (batch.a + mu))


@pytest.mark.parametrize("optimizer", ["sgd everything", "adamw kept", "momentum", "microadam"])
@for_each("clip_first", [False, True])
def test_an_optimizer_with_the_proximal_term_is_the_optimizer_on_the_penalised_loss(
    quadratic, optimizer, clip_first
):
    w, batch = quadratic
    rule = replace(OPTIMIZERS[optimizer], clip_norm=None if clip_first else 0.7)
    got, _ = run(Corrected(rule, Proximal(0.6, clip_first)), w, batch, 12)
    expected, _ = run(rule, w, penalised(batch, w, 0.6), 12)
    torch.testing.assert_close(got, expected, **TIGHT)


def test_adamw_with_the_proximal_term_is_torchs_on_the_penalised_loss(quadratic):
    w, batch = quadratic
    got, _ = run(Corrected(AdamW(0.03), Proximal(0.6)), w, batch, 25)
    make = lambda p: torch.optim.AdamW(p, 0.03)  # noqa: E731
    torch.testing.assert_close(got, optimise(make, w, penalised(batch, w, 0.6), 25), **TIGHT)


def test_sam_climbs_the_loss_alone_and_is_corrected_where_the_model_is():
    # f = a x^2 / 2: w <- w - lr (a (w + rho) + mu (w - w_t)), for w > 0.
    batch = Quadratic(torch.tensor([2.0]).double(), torch.zeros(1).double())
    w, a, lr, rho, mu = 1.0, 2.0, 0.01, 0.2, 3.0
    for _ in range(8):
        w -= lr * (a * (w + rho) + mu * (w - 1.0))
    got, _ = run(Corrected(Sam(lr, rho=rho), Proximal(mu)), torch.ones(1).double(), batch, 8)
    assert got.item() == pytest.approx(w, rel=1e-12)


@pytest.mark.parametrize("clip_norm", [None, 0.3])
@for_each("clip_first", [False, True])
@for_each("momentum", [0.0, 0.9])
def test_proximal_without_mu_is_sgd_bit_for_bit(quadratic, clip_norm, clip_first, momentum):
    w, batch = quadratic

    class Dead(Quadratic):
        def grad(self, v):
            g, loss = super().grad(v)
            return torch.where(torch.arange(20) == 0, -0.0, g), loss  # as a dead unit gives

    w[0], batch = -0.0, Dead(batch.a, batch.c)  # here adding 0 would change the sign of a zero
    sgd, _ = run(Sgd(0.1, momentum, clip_norm=clip_norm), w, batch, 9)
    got, _ = run(proximal(0.1, momentum, clip_norm=clip_norm, clip_first=clip_first), w, batch, 9)
    assert got.numpy().tobytes() == sgd.numpy().tobytes()


def test_the_message_sets_mu_and_the_learning_rate(quadratic):
    w, batch = quadratic
    config = {"server-round": 1, "lr": 0.02, "proximal-mu": 0.7, "unknown": "x"}
    got, _ = run(proximal(0.1, mu=0.1), w, batch, 5, config)
    expected, _ = run(proximal(0.02, mu=0.7), w, batch, 5)
    assert torch.equal(got, expected)


def test_the_order_of_clipping_and_the_proximal_term_is_a_choice():
    # one step from w != w_t: g = (3, 4) has norm 5, mu (w - w_t) = (0, 10)
    w, anchor = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0])
    batch = Quadratic(torch.ones(2), torch.tensor([-3.0, -3.0]))
    for clip_first, expected in (
        (True, np.array([0.6, 10.8])),
        (False, np.array([3.0, 14.0]) / np.hypot(3, 14)),
    ):
        rule = proximal(1.0, mu=10.0, clip_norm=1.0, clip_first=clip_first)
        received = Received(anchor, {}, {}, rule.scalars({}))
        got, _, _ = rule.step(w, rule.init(received), received, batch, 0)
        np.testing.assert_allclose((w - got).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_gradient_is_that_of_all_examples_at_the_received_model(clip_norm):
    w = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    few, many = Quadratic(torch.ones(3), torch.zeros(3)), Quadratic(torch.ones(3), torch.ones(3))
    few.examples, many.examples = 1, 3
    rule = Gradient(clip_norm=clip_norm)
    received = Received(w, {}, {}, {})
    state, v = rule.init(received), w
    for t, batch in enumerate((few, many)):
        v, state, _ = rule.step(v, state, received, batch, t)
    finished = rule.finish(v, state, received, 2)
    g = (1 * w + 3 * (w - 1)) / 4
    if clip_norm is not None:
        g = g * clip_norm / g.norm()
    torch.testing.assert_close(finished.extras["gradient"], g)
    torch.testing.assert_close(finished.w, w)


DESCENTS = {name: rule for name, rule in RULES.items() if isinstance(rule, Descent)}


@pytest.mark.parametrize("optimizer", DESCENTS.values(), ids=DESCENTS)
def test_a_server_that_steps_along_a_direction_does_what_the_optimizer_would(quadratic, optimizer):
    """Over three tasks of a step, with what the client keeps between them."""
    w, batch = quadratic
    ours, theirs, kept, memory = w, w, None, None
    for t in range(1, 4):
        config = {"server-round": t}
        theirs, finished = run(optimizer, theirs, batch, 1, config, memory)
        memory = finished.memory
        same, sent = run(Direction(optimizer), ours, batch, 1, config, kept)
        torch.testing.assert_close(same, ours)
        kept = sent.memory
        lr = optimizer.step_lr(received_by(optimizer, w, optimizer.scalars(config)), 0)
        ours = ours - lr * sent.extras["gradient"]
    torch.testing.assert_close(ours, theirs, **TIGHT)


def test_a_direction_is_of_the_mean_over_a_tasks_batches_all_at_the_received_model():
    # One dimension, f = a w^2 / 2 with a of 1 and 3, in batches of 1 and 2 examples, at w = 2.
    w, rho, beta = torch.tensor([2.0]).double(), 0.5, 0.75
    batches = [Quadratic(torch.tensor([a]).double(), torch.zeros(1).double()) for a in (1.0, 3.0)]
    batches[1].examples = 2
    for optimizer, expected in (
        (Sam(0.1, rho=rho), (1 * (2 + rho) + 2 * 3 * (2 + rho)) / 3),
        (Momentum(0.1, beta), (1 - beta) * (1 * 2 + 2 * 3 * 2) / 3),
        (Sgd(0.1, weight_decay=0.1), (1 * 2 + 2 * 3 * 2) / 3 + 0.1 * 2),
    ):
        rule = Direction(optimizer)
        received = received_by(rule, w)
        state, x = rule.init(received), w
        for t, batch in enumerate(batches):
            x, state, _ = rule.step(x, state, received, batch, t)
        sent = rule.finish(x, state, received, 2)
        assert sent.extras["gradient"].item() == pytest.approx(expected, rel=1e-12)
        assert rule.gradients_per_step == optimizer.gradients_per_step


def test_sam_steps_are_those_of_the_worked_example():
    # f = (x^2 + 4 y^2) / 2 at (1, 1): g = (1, 4), of norm sqrt(17).
    batch = Quadratic(torch.tensor([1.0, 4.0]).double(), torch.zeros(2).double())
    w, e = torch.ones(2).double(), 0.1 / math.sqrt(17)
    stepped, _ = run(Sam(0.1, rho=0.1), w, batch, 1)
    expected = [1 - 0.1 * (1 + e), 1 - 0.1 * 4 * (1 + 4 * e)]
    assert stepped.tolist() == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx([0.897575, 0.561194], abs=1e-6)


def test_sam_takes_the_gradient_a_radius_farther_out():
    # In one dimension the gradient is taken rho farther out: w <- w - lr a (w + rho sign(w)).
    batch = Quadratic(torch.tensor([2.0]).double(), torch.zeros(1).double())
    w, a, lr, rho = 1.0, 2.0, 0.01, 0.2
    for _ in range(8):
        w -= lr * a * (w + rho)
    stepped, _ = run(Sam(lr, rho=rho), torch.ones(1).double(), batch, 8)
    assert stepped.item() == pytest.approx(w, rel=1e-12)


def test_sam_stays_where_the_gradient_is_zero():
    batch = Quadratic(torch.ones(3), torch.tensor([1.0, -2.0, 0.5]))
    stepped, _ = run(Sam(0.1, rho=0.5), batch.c.clone(), batch, 4)
    assert torch.equal(stepped, batch.c)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@for_each("clip_norm", [None, 0.3])
def test_sam_without_a_radius_is_sgd_bit_for_bit(quadratic, momentum, clip_norm):
    w, batch = quadratic
    common = {"momentum": momentum, "weight_decay": 0.1, "clip_norm": clip_norm}
    ours, _ = run(Sam(0.1, rho=0.0, **common), w, batch, 9)
    assert torch.equal(ours, run(Sgd(0.1, **common), w, batch, 9)[0])


@pytest.mark.parametrize("nesterov", [False, True])
@for_each("clip_norm", [None, 0.5])
def test_sam_is_a_torch_loop_that_climbs_before_it_steps(quadratic, nesterov, clip_norm):
    w, batch = quadratic
    rule = Sam(0.1, 0.8, nesterov, 0.1, clip_norm, rho=0.2)
    # The same parameters in two tensors, as a model has: the norm is of both together.
    parts = [torch.nn.Parameter(part) for part in w.clone().split([6, 14])]
    optimizer = torch.optim.SGD(parts, 0.1, momentum=0.8, nesterov=nesterov, weight_decay=0.1)
    for _ in range(12):
        batch.loss(torch.cat(parts)).backward()
        norm = math.sqrt(sum((part.grad**2).sum().item() for part in parts))
        climbs = [0.2 * part.grad / norm for part in parts]
        with torch.no_grad():
            for part, climb in zip(parts, climbs, strict=True):
                part += climb
        optimizer.zero_grad()
        batch.loss(torch.cat(parts)).backward()
        with torch.no_grad():
            for part, climb in zip(parts, climbs, strict=True):
                part -= climb
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parts, clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(
        run(rule, w, batch, 12)[0], torch.cat(parts).detach(), rtol=1e-9, atol=1e-9
    )


# ---- moments from task to task -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "choice"),
    [(AdamW(0.03), "keep_moments"), (MicroAdam(0.03, density=0.5), "keep_state")],
    ids=["adamw", "microadam"],
)
def test_moments_are_kept_where_clients_go_on_from_where_they_were(quadratic, kept, choice):
    w, batch = quadratic
    always, never = replace(kept, **{choice: True}), replace(kept, **{choice: False})
    outer, rounds = {"first-step": 6}, {"server-round": 2}
    for config, same, other in ((outer, always, never), (rounds, never, always)):
        first, finished = run(kept, w, batch, 6, config)
        memory = finished.memory or None  # as of a client that kept nothing
        got, _ = run(kept, first, batch, 6, config, memory)
        for rule, equal in ((same, True), (other, False)):
            half, before = run(rule, w, batch, 6, config)
            whole, _ = run(rule, half, batch, 6, config, before.memory or None)
            assert torch.equal(got, whole) == equal


# ---- contract of all rules -----------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_under_vmap_every_client_gets_what_it_gets_alone(rule):
    torch.manual_seed(2)
    n, p, steps = 4, 20, 6
    w, a, c = torch.randn(n, p), torch.rand(n, p) + 0.5, torch.randn(n, p)
    scalars = rule.scalars(told(rule))

    def train(w, a, c):
        received = received_by(rule, w, scalars)
        state = rule.init(received)
        for t in range(steps):
            w, state, _ = rule.step(w, state, received, Quadratic(a, c), t)
        return rule.finish(w, state, received, steps)

    together = vmap(train)(w, a, c)
    for i in range(n):
        alone = train(w[i], a[i], c[i])
        torch.testing.assert_close(together.w[i], alone.w, rtol=1e-5, atol=1e-6)
        for name, tensor in alone.memory.items():
            torch.testing.assert_close(together.memory[name][i], tensor, rtol=1e-5, atol=1e-6)
        assert set(alone.extras) == set(rule.uploads)
        for name, tensor in alone.extras.items():
            torch.testing.assert_close(together.extras[name][i], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_scalars_may_be_tensors(rule, quadratic):
    w, batch = quadratic
    scalars = rule.scalars(told(rule))

    def train(scalars):
        received = received_by(rule, w, scalars)
        state, v = rule.init(received), w
        for t in range(5):
            v, state, _ = rule.step(v, state, received, batch, t)
        return v

    as_tensors = {name: torch.tensor(value, dtype=w.dtype) for name, value in scalars.items()}
    torch.testing.assert_close(train(as_tensors), train(scalars), **TIGHT)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_does_not_change_what_it_is_given(rule, quadratic):
    w, batch = quadratic
    before = w.clone()
    memory = rule.first_memory(w, rule.scalars(told(rule)))
    kept = {name: tensor.clone() for name, tensor in memory.items()}
    run(rule, w, batch, 3, memory=memory)
    assert torch.equal(w, before)
    assert all(torch.equal(memory[name], tensor) for name, tensor in kept.items())


@pytest.mark.parametrize("kind", [Sgd, AdamW, MicroAdam, Momentum, Sam])
@for_each(
    "config, message",
    [
        ({"lr": 0.0}, "'lr' is 0.0; it must be finite and above 0"),
        ({"lr": -1}, "'lr' is -1"),
        ({"lr": float("nan")}, "'lr' is nan"),
        ({"lr": "fast"}, "'lr' is 'fast'; it must be a number"),
        ({"lr": True}, "'lr' is True"),
        ({"lr": [0.1]}, r"'lr' is \[0.1\]"),
    ],
)
def test_a_message_with_a_bad_learning_rate_is_refused(kind, config, message):
    with pytest.raises(ConfigError, match=message):
        kind(lr=0.1).scalars({"server-round": 1, **config})


@pytest.mark.parametrize("mu", [-0.1, float("inf"), "much"])
def test_a_message_with_a_bad_mu_is_refused(mu):
    with pytest.raises(ConfigError, match="proximal-mu"):
        Proximal().scalars({"proximal-mu": mu})


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Sgd, {"lr": 0}, "lr is 0; it must be finite and above 0"),
        (Sgd, {"lr": float("inf")}, "lr is inf"),
        (Sgd, {"lr": 1, "momentum": 1.0}, r"momentum is 1.0"),
        (Sgd, {"lr": 1, "nesterov": True}, "nesterov needs momentum"),
        (Sgd, {"lr": 1, "weight_decay": -1}, "weight_decay is -1"),
        (Sgd, {"lr": 1, "clip_norm": 0.0}, "clip_norm is 0.0"),
        (Proximal, {"mu": -1}, "mu is -1; it must be finite and at least 0"),
        (Proximal, {"mu": math.nan}, "mu is nan"),
        (Sam, {"lr": 1, "rho": -0.1}, "rho is -0.1; it must be finite and at least 0"),
        (Sam, {"lr": 1, "rho": float("inf")}, "rho is inf"),
        (ModelContrast, {"mu": -1}, "mu is -1"),
        (ModelContrast, {"temperature": 0}, "temperature is 0"),
        (ControlVariates, {"option": "III"}, "option is 'III'; it must be 'I' or 'II'"),
        (Momentum, {"lr": 0}, "lr is 0; it must be finite and above 0"),
        (Momentum, {"lr": 1, "beta": 1.0}, r"beta is 1.0"),
        (Momentum, {"lr": 1, "weight_decay": -1}, "weight_decay is -1"),
        (Momentum, {"lr": 1, "clip_norm": 0.0}, "clip_norm is 0.0"),
        (AdamW, {"beta1": 1.0}, r"beta1 is 1.0; it must be in \[0, 1\)"),
        (AdamW, {"beta2": -0.1}, "beta2 is -0.1"),
        (AdamW, {"eps": -1}, "eps is -1"),
        (AdamW, {"clip_norm": -1}, "clip_norm is -1"),
    ],
)
def test_a_hyperparameter_out_of_range_is_refused(kind, arguments, message):
    with pytest.raises(ConfigError, match=message):
        kind(**arguments)


@pytest.mark.parametrize(
    ("rule", "vectors"),
    [
        (Sgd(1), 0),
        (Sgd(1, 0.9), 1),
        (proximal(1), 1),
        (proximal(1, 0.9), 2),
        (AdamW(), 2),
        (Sam(1), 1),
        (Sam(1, 0.9), 2),
        (Momentum(1), 1),
        (Corrected(Sgd(1), ControlVariates()), 2),
        (Corrected(Sgd(1), ControlVariates("I")), 3),
        (Corrected(Sgd(1, 0.9), ControlVariates()), 1 + 3),
        (Corrected(AdamW(), ControlVariates()), 2 + 3),
    ],
)
def test_memory_counts_the_vectors_a_step_keeps(rule, vectors):
    assert rule.vectors == vectors


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@for_each("correction", CORRECTIONS.values())
def test_an_optimizer_and_its_correction_do_not_share_what_they_keep(optimizer, correction):
    w = torch.zeros(7)
    scalars = {**optimizer.scalars({"server-round": 1}), "first-step": 0}
    of_correction = correction.scalars(told(correction))
    both = Corrected(optimizer, correction).first_memory(w, scalars)
    apart = (optimizer.first_memory(w, scalars), correction.first_memory(w))
    assert len(both) == sum(map(len, apart))
    assert not scalars.keys() & of_correction.keys()


def test_every_rule_is_tested_here():
    import fl.clients

    members = [getattr(fl.clients, name) for name in fl.clients.__all__]
    kinds = {m for m in members if inspect.isclass(m)}
    masked = {m for m in kinds if issubclass(m, Masked)}  # see test_masked and test_sparse
    rules = {m for m in kinds if issubclass(m, Rule)} - {Rule, LocalOptimizer, Descent, *masked}
    rules -= {CodedGradient}  # whose batches are told what they count; see test_coded_rounds
    assert rules == {type(rule) for rule in RULES.values()}
    corrections = {m for m in kinds if issubclass(m, Correction)} - {Correction}
    assert corrections == {type(correction) for correction in CORRECTIONS.values()}
