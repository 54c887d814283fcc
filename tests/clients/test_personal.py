"""Clients that predict with a model of their own, on f(v) = a (v - c)^2 / 2 and closed forms."""

import numpy as np
import pytest
import torch
from torch import nn

from fl.clients import (
    APFL,
    Corrected,
    Ditto,
    MoreauEnvelope,
    PerFedAvg,
    Proximal,
    Received,
    Sgd,
    TrainingApp,
)
from fl.clients.app.inbox import MEMORY_KEY
from fl.data import Examples, FederatedData, Partitions
from fl.errors import ConfigError
from fl.execution.contract import Payload
from fl.flower.records import from_record
from fl.models import flops_per_example

A, C, W, LR = 1.7, 0.4, -2.0, 0.05


class Scalar:
    """f(v) = a (v - c)^2 / 2 as a batch."""

    examples = 1

    def __init__(self, a=A, c=C):
        self.a, self.c = a, c

    def grad(self, w):
        return self.a * (w - self.c), (self.a * (w - self.c) ** 2).sum() / 2

    def loss(self, w):
        return self.grad(w)[1]

    def hessian_product(self, w, v):
        return self.a * v

    @property
    def own(self):
        return self


def tensor(x):
    return torch.tensor([x], dtype=torch.float64)


def task(rule, w, batches, memory=None):
    """Returns what came of a task, and what the client then predicts with, given its model back."""
    w = tensor(w)
    scalars = rule.scalars({"server-round": 1})
    memory = rule.first_memory(w, scalars) if memory is None else memory
    received = Received(w, {}, memory, scalars, len(batches))
    state, y = rule.init(received), w
    for t, batch in enumerate(batches):
        y, state, _ = rule.step(y, state, received, batch, t)
    finished = rule.finish(y, state, received, len(batches))
    return finished, rule.personal(Received(w, {}, finished.memory, {})).item()


def with_sgd(correction, **sgd):
    return Corrected(Sgd(LR, **sgd), correction)


# ---- Ditto (methods reference 1.1) ---------------------------------------------------------------


@pytest.mark.parametrize("lam", [0.0, 0.3, 4.0])
def test_dittos_own_model_contracts_to_the_minimum_of_its_penalised_loss(lam):
    steps = 13
    fixed = (A * C + lam * W) / (A + lam)
    expected = fixed + (1 - LR * (A + lam)) ** steps * (W - fixed)
    _, v = task(with_sgd(Ditto(lam)), W, [Scalar()] * steps)
    assert v == pytest.approx(expected, rel=1e-12)


def test_dittos_own_model_diverges_if_and_only_if_the_step_is_too_long():
    for lr, diverges in ((1.99 / (A + 3.0), False), (2.01 / (A + 3.0), True)):
        _, v = task(with_sgd(Ditto(3.0, lr=lr)), W, [Scalar()] * 2000)
        assert (abs(v) > 1e3) == diverges


@pytest.mark.parametrize("correction", [Ditto(0.7), APFL(0.3, alpha_lr=0.1)])
def test_what_is_sent_is_what_it_is_without_an_own_model(correction):
    momentum = {"momentum": 0.9, "clip_norm": 0.5}
    finished, _ = task(with_sgd(correction, **momentum), W, [Scalar(), Scalar(2.0, -1.0)] * 4)
    plain, _ = task(Sgd(LR, **momentum), W, [Scalar(), Scalar(2.0, -1.0)] * 4)
    assert torch.equal(finished.w, plain.w)


def test_own_models_without_a_tie_to_the_servers_are_local_training():
    # Two tasks of one client, between which the server's model is moved by others.
    batches = [Scalar(), Scalar(0.9, 3.0)]
    expected, _ = task(Sgd(LR), W, batches * 2)
    for correction in (Ditto(0.0), APFL(1.0)):
        first, _ = task(with_sgd(correction), W, batches)
        _, v = task(with_sgd(correction), 17.0, batches, first.memory)
        assert v == expected.w.item()


# ---- APFL (1.2) ----------------------------------------------------------------------------------


def test_apfl_without_a_share_of_its_own_predicts_with_the_received_model():
    finished, predicted = task(with_sgd(APFL(0.0)), W, [Scalar()] * 5)
    assert finished.memory["own"].item() == predicted == W


def test_apfls_mixture_comes_to_the_minimum_beside_a_model_that_stays():
    alpha, memory = 0.5, None
    for _ in range(1500):
        finished, predicted = task(with_sgd(APFL(alpha)), W, [Scalar()], memory)
        memory = finished.memory
    assert predicted == pytest.approx(C, rel=1e-9)
    assert memory["own"].item() == pytest.approx((C - (1 - alpha) * W) / alpha, rel=1e-9)


def test_apfls_share_steps_by_its_derivative():
    alpha, v, eta = 0.3, 1.1, 0.01
    memory = {"own": tensor(v), "alpha": torch.tensor(alpha, dtype=torch.float64)}
    finished, _ = task(with_sgd(APFL(0.9, alpha_lr=eta)), W, [Scalar()], memory)

    def loss(share):
        return Scalar().loss(tensor(share * v + (1 - share) * W)).item()

    h = 1e-6
    derivative = (loss(alpha + h) - loss(alpha - h)) / (2 * h)
    assert finished.memory["alpha"].item() == pytest.approx(alpha - eta * derivative, rel=1e-7)
    same, _ = task(with_sgd(APFL(0.3, alpha_lr=eta)), W, [Scalar()])  # v = w: of no account
    assert same.memory["alpha"].item() == pytest.approx(0.3)
    far, _ = task(with_sgd(APFL(0.3, alpha_lr=1e6)), W, [Scalar()], memory)
    assert far.memory["alpha"].item() in (0.0, 1.0)


# ---- pFedMe (synchronous reference 9.1) ----------------------------------------------------------


def test_pfedmes_step_is_one_down_the_moreau_envelope_if_theta_is_its_minimum():
    lam, eta = 15.0, 0.01
    theta = (lam * W + A * C) / (lam + A)
    rule = MoreauEnvelope(eta, 1 / (lam + A), lam, inner_steps=1)  # Newton's step: exact
    finished, predicted = task(rule, W, [Scalar()])
    assert predicted == pytest.approx(theta, rel=1e-12)
    gradient = lam * A / (lam + A) * (W - C)
    assert gradient == pytest.approx(lam * (W - theta))
    assert finished.w.item() == pytest.approx(W - eta * gradient, rel=1e-12)


def test_a_large_lambda_keeps_theta_within_the_gradient_over_lambda():
    lam = 1e4
    rule = MoreauEnvelope(0.5 / lam, 0.5 / lam, lam, inner_steps=200)
    finished, predicted = task(rule, W, [Scalar()])
    assert abs(predicted - W) <= abs(A * (W - C)) / lam
    assert finished.w.item() == pytest.approx(W + 0.5 * (predicted - W), rel=1e-12)


def test_pfedmes_theta_goes_on_over_batches_and_pulls_to_the_moved_model():
    lam, eta, eta_p = 2.0, 0.1, 0.03
    batches = [Scalar(), Scalar(0.9, 3.0)]
    w = theta = W
    for batch in batches:
        for _ in range(3):
            theta -= eta_p * (batch.a * (theta - batch.c) + lam * (theta - w))
        w -= eta * lam * (w - theta)
    finished, predicted = task(MoreauEnvelope(eta, eta_p, lam, 3), W, batches)
    assert (finished.w.item(), predicted) == pytest.approx((w, theta), rel=1e-12)


# ---- Per-FedAvg (9.3) ----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "count"), [("FO", 2), ("HF", 3), ("exact", 3)])
def test_per_fedavg_steps_by_the_gradient_after_a_step(kind, count):
    alpha, beta = 0.2, 0.1
    first, second, third = Scalar(), Scalar(0.9, 3.0), Scalar(2.2, -1.0)
    theta = W - alpha * first.a * (W - first.c)
    d = second.a * (theta - second.c)
    expected = W - beta * (d if kind == "FO" else d - alpha * third.a * d)
    batches = [first, second, third][:count]
    finished, _ = task(PerFedAvg(beta, alpha, kind), W, batches)
    assert finished.w.item() == pytest.approx(expected, rel=1e-9)
    cut, _ = task(PerFedAvg(beta, alpha, kind), W, batches + batches[: count - 1])
    assert cut.w.item() == finished.w.item()  # half a step is none


def test_per_fedavg_with_all_data_stays_at_the_minimum():
    for kind in ("FO", "HF", "exact"):
        finished, _ = task(PerFedAvg(0.1, 0.2, kind), C, [Scalar()] * 6)
        assert finished.w.item() == pytest.approx(C, rel=1e-12)


def test_per_fedavg_without_a_first_step_is_fedavg_on_the_second_batches():
    batches = [Scalar(), Scalar(0.9, 3.0), Scalar(2.2, -1.0), Scalar(1.2, 0.5)]
    finished, _ = task(PerFedAvg(LR, 1e-300), W, batches)
    plain, _ = task(Sgd(LR), W, batches[1::2])
    assert finished.w.item() == pytest.approx(plain.w.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Ditto(-1.0), "lam is -1"),
        (lambda: Ditto(lr=0.0), "lr is 0"),
        (lambda: APFL(1.5), "alpha is 1.5"),
        (lambda: APFL(alpha_lr=-1), "alpha_lr is -1"),
        (lambda: MoreauEnvelope(lam=0), "lam is 0"),
        (lambda: MoreauEnvelope(inner_steps=0), "inner_steps is 0"),
        (lambda: PerFedAvg(alpha=0), "alpha is 0"),
        (lambda: PerFedAvg(gradient="SO"), "gradient is 'SO'"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(make, key):
    with pytest.raises(ConfigError, match=key):
        make()


# ---- the ClientApp -------------------------------------------------------------------------------


class Net(nn.Module):
    """Everything that a second model could disturb: running statistics and dropout."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4)
        )

    def forward(self, x):
        return self.layers(x)


@pytest.fixture
def data(federated):
    return federated((24, 16), test_sizes=(9, 7))


def asked(app, content_of, message_to, context, arrays, **config):
    content = content_of(arrays, **config)
    return dict(app(message_to(content, kind="evaluate"), context).content["metrics"].items())


@pytest.mark.parametrize("correction", [Ditto(0.5), APFL(0.5, alpha_lr=0.01)])
def test_a_second_model_changes_neither_statistics_nor_draws_of_the_first(
    data, content_of, message_to, context_of, correction
):
    torch.manual_seed(0)
    net = Net()
    replies = []
    for own in (None, correction):
        app = TrainingApp(net, data, Sgd(0.1), correction=own, batch_size=8, local_epochs=2)
        context = context_of()
        reply = app(message_to(content_of(net)), context)
        replies.append(from_record(app.layout, reply.content["arrays"]))
        assert (MEMORY_KEY in context.state) == (own is not None)
    assert np.array_equal(*replies)
    memory = context.state[MEMORY_KEY]
    mean = memory["statistics/layers.1.running_mean"].numpy()
    assert memory["statistics/layers.1.num_batches_tracked"].numpy() >= 6
    place = next(e for e in app.layout.entries if e.name == "layers.1.running_mean")
    sent = replies[1][place.offset : place.offset + place.size]
    assert np.abs(mean - sent).max() > 1e-5  # they are v's, not the model's that was sent


def test_the_personal_model_is_evaluated_with_its_own_statistics(
    data, content_of, message_to, context_of
):
    torch.manual_seed(0)
    net, context = Net(), context_of()
    app = TrainingApp(net, data, Sgd(0.1), correction=Ditto(0.1), batch_size=8, local_epochs=30)
    app(message_to(content_of(net)), context)
    before = {key: value for key, value in context.state.items()}
    found = asked(app, content_of, message_to, context, net, evaluate_model="personal")
    v = {name: array.numpy() for name, array in context.state[MEMORY_KEY].items()}
    own = Net()
    state, place = {}, 0
    for entry in app.layout.entries:
        if entry.kind == "trainable":
            state[entry.name] = v["own"][place : place + entry.size].reshape(entry.shape)
            place += entry.size
        else:
            state[entry.name] = v[f"statistics/{entry.name}"]
    own.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in state.items()})
    x, y = data.client_test(0)
    loss = nn.functional.cross_entropy(own.eval()(x), y).item()
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["num-examples"] == 9
    assert all(context.state[key] is value for key, value in before.items())  # nothing is kept


def test_local_is_what_training_would_send_and_global_what_came(
    data, mlp, content_of, message_to, context_of
):
    app = TrainingApp(mlp, data, Sgd(0.3), batch_size=8)
    sent = app(message_to(content_of(mlp)), context_of()).content["arrays"]
    local = asked(app, content_of, message_to, context_of(), mlp, evaluate_model="local")
    assert local == asked(app, content_of, message_to, context_of(), sent)
    received = asked(app, content_of, message_to, context_of(), mlp)
    assert received == asked(
        app, content_of, message_to, context_of(), mlp, evaluate_model="global"
    )
    assert received["loss"] != local["loss"]
    with pytest.raises(ConfigError, match="evaluate-model"):
        asked(app, content_of, message_to, context_of(), mlp, evaluate_model="own")


def test_fine_tuning_without_steps_leaves_the_model_and_with_a_pull_keeps_it_near(
    data, mlp, content_of, message_to, context_of
):
    app = TrainingApp(mlp, data, Sgd(0.3), batch_size=8)

    def personal(**config):
        told = {"evaluate_model": "personal", **config}
        return asked(app, content_of, message_to, context_of(), mlp, **told)["loss"]

    received = personal()
    lr = {"fine_tune_lr": 0.01}
    assert personal(fine_tune_steps=0, **lr) == received
    free = personal(fine_tune_steps=50, **lr)
    pulled = personal(fine_tune_steps=50, fine_tune_lambda=90.0, **lr)
    assert abs(pulled - received) < abs(free - received) / 2
    assert personal(fine_tune_epochs=2, **lr) == personal(fine_tune_steps=6, **lr) != received
    for config, key in (
        ({"fine_tune_steps": 1}, "fine-tune-lr"),
        ({"fine_tune_steps": 1, "fine_tune_epochs": 1}, "fine-tune-epochs 1"),
        ({"fine_tune_steps": -1}, "fine-tune-steps"),
    ):
        with pytest.raises(ConfigError, match=key):
            personal(**config)


def test_fine_tuning_comes_to_the_minimum_of_the_penalised_loss():
    # reference 1.0: v = (a c + lambda x) / (a + lambda)
    lam = 0.8
    got, _ = task(Corrected(Sgd(LR), Proximal(lam)), W, [Scalar()] * 3000)
    assert got.w.item() == pytest.approx((A * C + lam * W) / (A + lam), rel=1e-12)


@pytest.mark.parametrize(("kind", "least"), [("FO", 2), ("HF", 3), ("exact", 3)])
def test_fewer_steps_than_a_meta_step_has_batches_are_refused(data, mlp, kind, least):
    def app(**amount):
        return TrainingApp(mlp, data, PerFedAvg(gradient=kind), batch_size=None, **amount)

    enough, few = (app(local_epochs=None, local_steps=n) for n in (least, least - 1))
    enough.check_steps({})
    with pytest.raises(ConfigError, match=f"^local_steps is {least - 1}"):
        few.check_steps({})
    few.check_steps({"local-steps": least})
    with pytest.raises(ConfigError, match=r"^local-epochs is 1"):
        enough.check_steps({"local-epochs": 1})


def test_per_fedavg_adapts_by_one_step_before_it_predicts(content_of, message_to, context_of):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 6)).astype(np.float32)
    data = FederatedData(
        "toy",
        Examples(x, np.zeros(12, np.int64)),  # the only label that training shows
        Examples(x, np.zeros(12, np.int64)),
        Partitions.contiguous([12]),
        num_classes=2,
        input_shape=(6,),
        test_partitions=Partitions.contiguous([12]),
    )
    net = nn.Linear(6, 2)
    steps = {"local_epochs": None, "local_steps": 2, "batch_size": None}
    app = TrainingApp(net, data, PerFedAvg(0.1, alpha=1.0), **steps)
    found = asked(app, content_of, message_to, context_of(), net, evaluate_model="personal")
    x, y = data.client(0)
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    expected = nn.functional.cross_entropy(net(x), y).item()
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_what_makes_a_model_is_charged_before_it_is_evaluated(data, mlp, content_of):
    app = TrainingApp(mlp, data, Sgd(0.3), batch_size=8)
    flops = flops_per_example(mlp, data.input_shape)

    def charged(**config):
        return app.plan(Payload(content_of(mlp, **config)), "evaluate", 0, 1e-9).flops

    plain = 9 * flops.forward
    assert charged() == charged(evaluate_model="personal") == plain
    assert charged(evaluate_model="local") == plain + 24 * flops.training
    tuned = charged(evaluate_model="personal", fine_tune_steps=2, fine_tune_lr=0.1)
    assert tuned == plain + 16 * flops.training


@pytest.mark.parametrize(
    "rule",
    [Corrected(Sgd(0.1), Ditto()), Corrected(Sgd(0.1), APFL(0.5, 0.1)), MoreauEnvelope()],
)
def test_a_client_that_was_never_asked_predicts_with_the_received_model(rule):
    w = torch.tensor([1.0, -3.0])
    memory = rule.first_memory(w, {})
    torch.testing.assert_close(rule.personal(Received(w, {}, memory, {})), w)
    assert rule.personalises
    assert not Sgd(0.1).personalises
