import numpy as np
import pytest
import torch
from torch import nn

from fl.errors import ConfigError
from fl.models import MLP, evaluate, global_objective

SIZES = (5, 12, 1, 7)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MLP((4,), 3, hidden=(6,))


@pytest.fixture
def clients():
    rng = torch.Generator().manual_seed(2)
    return [
        (torch.randn(n, 4, generator=rng), torch.randint(3, (n,), generator=rng)) for n in SIZES
    ]


def gradient(model, x, y):
    loss = nn.functional.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([g.flatten() for g in gradients]).double().numpy()


def test_loss_is_that_of_the_pooled_examples(model, clients):
    pooled = tuple(torch.cat(parts) for parts in zip(*clients, strict=True))
    assert global_objective(model, clients).loss == pytest.approx(evaluate(model, pooled).loss)


def test_dissimilarity_is_the_unweighted_variance_around_the_weighted_mean(model, clients):
    g = np.stack([gradient(model, x, y) for x, y in clients])
    mean = np.average(g, axis=0, weights=SIZES)
    expected = ((g - mean) ** 2).sum(axis=1).mean()
    assert global_objective(model, clients).dissimilarity == pytest.approx(expected, rel=1e-5)


def test_equal_clients_do_not_disagree(model, clients):
    same = global_objective(model, [clients[1]] * 3)
    scale = (gradient(model, *clients[1]) ** 2).sum()
    assert 0 <= same.dissimilarity < 1e-12 * scale


def test_batches_change_nothing_but_rounding(model, clients):
    whole, cut = global_objective(model, clients), global_objective(model, clients, batch_size=2)
    assert cut == pytest.approx(whole, rel=1e-5)


def test_a_client_without_examples_is_left_out(model, clients):
    nobody = (torch.empty(0, 4), torch.empty(0, dtype=torch.int64))
    assert global_objective(model, [*clients, nobody]) == global_objective(model, clients)


def test_the_model_is_left_as_it_was(model, clients):
    model.train()
    before = [p.clone() for p in model.parameters()]
    global_objective(model, clients)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_nothing_to_evaluate_is_refused(model):
    nobody = (torch.empty(0, 4), torch.empty(0, dtype=torch.int64))
    with pytest.raises(ConfigError, match="no client has training examples"):
        global_objective(model, [nobody])
    with pytest.raises(ConfigError, match="batch_size is 0"):
        global_objective(model, [], batch_size=0)
