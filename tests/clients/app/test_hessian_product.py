"""Hessians times vectors: of one client, of many, and what a task is charged for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from together import batch_key, train_many
from torch.func import functional_call, vmap

from fl.clients import Corrected, Sgd, SharedScaling, TrainingApp
from fl.clients.app.alone import AutogradBatch
from fl.clients.app.batched import VmapBatch
from fl.execution.contract import Payload
from fl.flower.records import vector_record
from fl.models import MLP, ResNet8, flops_per_example, per_example_loss
from fl.vectors.layout import Layout


def examples(n, shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, *shape, generator=generator), torch.arange(n) % 3


def test_it_is_the_hessian_times_the_vector():
    model, (x, y) = MLP((4,), 3, hidden=[5]), examples(6, (4,))
    layout = Layout.of(model)
    w, v = torch.randn(2, layout.size, generator=torch.Generator().manual_seed(1))

    def loss(w):
        return per_example_loss(functional_call(model, layout.split(w), (x,)), y).mean()

    expected = torch.autograd.functional.hessian(loss, w) @ v
    alone = AutogradBatch(model, layout, {}, x, y).hessian_product(w, v)
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-6)
    assert not alone.requires_grad

    def product(w, v, x, y):
        return VmapBatch(model, layout, x, y, None, 6).hessian_product(w, v)

    together = vmap(product)(*(torch.stack([a, a]) for a in (w, v, x, y)))
    torch.testing.assert_close(together, torch.stack([expected] * 2), rtol=1e-4, atol=1e-6)


def test_running_statistics_are_those_of_the_gradients_pass():
    model, (x, y) = ResNet8((3, 8, 8), 3, channels=[4, 4, 4]), examples(4, (3, 8, 8))
    layout = Layout.of(model.train())
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    batch = AutogradBatch(model, layout, buffers, x, y)
    w = torch.cat([p.detach().flatten() for p in model.parameters()])
    before = {name: b.clone() for name, b in buffers.items()}
    assert batch.hessian_product(w, torch.ones_like(w)).abs().sum() > 0
    for name, b in batch._buffers.items():
        assert torch.equal(b, before[name]), name


@pytest.fixture
def app(federated, mlp):
    rule = Corrected(Sgd(0.01), SharedScaling())
    return TrainingApp(mlp, federated((12, 7, 5)), rule, batch_size=4, local_epochs=2)


def told(app, mlp, content_of, **config):
    content = content_of(mlp, **config)
    content["scaling"] = vector_record(torch.full((app.layout.size,), 2.0))
    return content


def test_clients_with_one_probe_train_together_as_alone(
    app, mlp, content_of, message_to, context_of
):
    content = told(app, mlp, content_of, **{"savic-probe": 5})
    messages = [message_to(content, i) for i in range(3)]
    singles = [app(message, context_of(i)) for i, message in enumerate(messages)]
    many = train_many(app, messages, [context_of(i) for i in range(3)])
    for one, other in zip(singles, many, strict=True):
        expected, got = (r.content["statistic"]["vector"].numpy() for r in (one, other))
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


def test_clients_with_different_probes_do_not_train_together(
    app, mlp, content_of, message_to, context_of
):
    keys = {
        batch_key(
            app, message_to(told(app, mlp, content_of, **{"savic-probe": probe})), context_of()
        )
        for probe in (1, 1, 2)
    }
    assert len(keys) == 2
    assert None not in keys


def test_the_product_is_charged_as_two_gradients_of_the_first_batch(app, mlp, content_of):
    def flops(**config):
        content = told(app, mlp, content_of, **{"local-steps": 3, **config})
        return app.plan(Payload(content), "train", 0, 1e-9).flops

    step = 4 * flops_per_example(mlp, app.data.input_shape).training
    assert flops() == 3 * step
    assert flops(**{"savic-probe": 5}) == 5 * step
    fitting = flops(**{"savic-probe": 5, "deadline-s": 4.5 * step * 1e-9})
    assert fitting == 4 * step  # two steps fit beside the product
