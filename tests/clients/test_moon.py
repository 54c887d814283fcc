"""The client of MOON (arXiv:2103.16257) against a loop of torch with the paper's loss."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fl.clients import Corrected, ModelContrast, Received, Sgd, TrainingApp
from fl.clients.app.alone import AutogradBatch
from fl.errors import ConfigError
from fl.models import MLP, LogisticRegression
from fl.vectors.layout import Layout

LR, MU, T = 0.2, 3.0, 0.5


def model(seed=0):
    torch.manual_seed(seed)
    return MLP((6,), 4, hidden=(5,)).double()


def batches(steps=7, size=9):
    torch.manual_seed(4)
    return [(torch.randn(size, 6).double(), torch.randint(4, (size,))) for _ in range(steps)]


def encoded(net, x):
    return net.layers[:-1](x)


def contrast(z, z_x, z_v):
    """Equation 3, from dot products and norms."""
    near, far = (
        (z * other).sum(1) / (z.norm(dim=1) * other.norm(dim=1)).clamp(min=1e-12) / T
        for other in (z_x, z_v)
    )
    return -torch.log(near.exp() / (near.exp() + far.exp())).mean()


def flat(net):
    return torch.cat([parameter.detach().reshape(-1) for parameter in net.parameters()])


def trained(correction, start, previous, given):
    layout, rule = Layout.of(model().float()), Corrected(Sgd(LR, 0.5), correction)
    w = start
    received = Received(w, {}, {"last": previous}, rule.scalars({}))
    state = rule.init(received)
    for t, (x, y) in enumerate(given):
        batch = AutogradBatch(model(), layout, {}, x, y)
        w, state, _ = rule.step(w, state, received, batch, t)
    return rule.finish(w, state, received, len(given))


def by_the_paper(server, previous, given, mu):
    """A torch loop of the paper's loss; returns the client's model."""
    net = copy.deepcopy(server)
    optimizer = torch.optim.SGD(net.parameters(), LR, momentum=0.5)
    for x, y in given:
        optimizer.zero_grad()
        with torch.no_grad():
            z_x, z_v = encoded(server, x), encoded(previous, x)
        loss = cross_entropy(net(x), y) + mu * contrast(encoded(net, x), z_x, z_v)
        loss.backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("mu", [0.3, MU])
def test_it_is_a_torch_loop_of_the_papers_loss(mu):
    server, previous = model(1), model(2)
    net = by_the_paper(server, previous, batches(), mu)
    done = trained(ModelContrast(mu, T), flat(server), flat(previous), batches())
    torch.testing.assert_close(done.w, flat(net), rtol=1e-8, atol=1e-9)
    assert torch.equal(done.memory["last"], done.w)
    assert not done.extras


def test_two_clients_follow_the_papers_rounds_for_50_of_them():
    of_client, correction = [batches(4)[:2], batches(4)[2:]], ModelContrast(0.3, T)
    server = model(1)
    x = flat(server)
    nets, kept = [copy.deepcopy(server)] * 2, [correction.first_memory(x)["last"]] * 2
    for _ in range(50):
        nets = [by_the_paper(server, nets[i], of_client[i], 0.3) for i in (0, 1)]
        done = [trained(correction, x, kept[i], of_client[i]) for i in (0, 1)]
        kept, x = [each.memory["last"] for each in done], (done[0].w + done[1].w) / 2
        mean = sum(map(flat, nets)) / 2
        nn.utils.vector_to_parameters(mean, server.parameters())
    torch.testing.assert_close(x, mean, rtol=1e-6, atol=1e-7)


def test_without_weight_it_is_its_optimizer_bit_for_bit():
    start, previous = flat(model(1)), flat(model(2))
    got = trained(ModelContrast(0.0), start, previous, batches()).w
    rule, w = Sgd(LR, 0.5), start
    received = Received(w, {}, {}, rule.scalars({}))
    state = rule.init(received)
    for t, (x, y) in enumerate(batches()):
        batch = AutogradBatch(model(), Layout.of(model().float()), {}, x, y)
        w, state, _ = rule.step(w, state, received, batch, t)
    assert torch.equal(got, w)


def test_in_a_clients_first_task_the_contrast_is_log_2_and_moves_nothing():
    rule, start = ModelContrast(MU), flat(model(1))
    first = rule.first_memory(start)
    assert torch.equal(first["last"], start)
    x, y = batches(1)[0]
    batch = AutogradBatch(model(), Layout.of(model().float()), {}, x, y)
    z = batch.features(flat(model(3)))
    assert contrast(z, *[batch.features(start)] * 2).item() == pytest.approx(math.log(2))
    got = trained(rule, start, start, batches()).w
    plain = trained(ModelContrast(0.0), start, start, batches()).w
    torch.testing.assert_close(got, plain, rtol=1e-12, atol=1e-12)


def test_it_draws_features_towards_the_servers_and_away_from_the_clients_last():
    start, previous, (x, y) = flat(model(1)), flat(model(2)), batches(1)[0]
    batch = AutogradBatch(model(), Layout.of(model().float()), {}, x, y)

    def of(w):
        z = [batch.features(v) for v in (w, start, previous)]
        return contrast(*z).item()

    strong, weak = (
        trained(ModelContrast(mu), start, previous, [(x, y)] * 30).w for mu in (5.0, 0.0)
    )
    assert of(strong) < of(weak) - 0.01


def test_features_leave_the_models_statistics_alone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))
    layout, (x, y) = Layout.of(net), batches(1)[0]
    x = x.float()
    row = layout.flatten(net.state_dict())
    found = []
    for correction in (ModelContrast(0.0), ModelContrast(MU)):
        buffers = {"1.running_mean": torch.zeros(5), "1.running_var": torch.ones(5)}
        buffers["1.num_batches_tracked"] = torch.tensor(0)
        batch = AutogradBatch(net, layout, buffers, x, y)
        w = layout.select(row)
        rule = Corrected(Sgd(LR), correction)
        received = Received(w, {}, {"last": w * 1.1}, {"lr": LR})
        rule.step(w, rule.init(received), received, batch, 0)
        found.append(buffers)
    assert found[0]["1.num_batches_tracked"] == 1
    for name, value in found[0].items():
        assert torch.equal(found[1][name], value)


def test_a_model_without_a_hidden_layer_is_refused(federated):
    with pytest.raises(ConfigError) as caught:
        TrainingApp(
            LogisticRegression((6,), 4), federated((4, 5)), Sgd(0.1), correction=ModelContrast()
        )
    assert "LogisticRegression" in str(caught.value)


def test_a_client_goes_on_from_the_model_it_sent(
    federated, mlp, content_of, message_to, context_of
):
    app = TrainingApp(mlp, federated((12, 7)), Sgd(0.3), correction=ModelContrast(), batch_size=4)
    context = context_of(0)
    sent = app(message_to(content_of(mlp)), context).content["arrays"]
    kept = context.state["fl.memory"]["last"].numpy()
    np.testing.assert_array_equal(
        kept, np.concatenate([array.numpy().ravel() for array in sent.values()])
    )
