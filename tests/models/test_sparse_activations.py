"""Models that keep the largest activations for the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from fl.models import MLP, LeafCNN
from fl.models.flops import flops_per_example, memory_bytes
from fl.models.sparse_activations import with_sparse_activations

SHAPE = (1, 8, 8)
MODELS = {"mlp": MLP(SHAPE, 10, hidden=[16]), "cnn": LeafCNN(SHAPE, 10, width=16)}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def gradients(model, x, y, *, of_x=False):
    x = x.clone().requires_grad_(of_x)
    loss = nn.functional.cross_entropy(model(x), y)
    return torch.autograd.grad(loss, [x] if of_x else list(model.parameters()))


def examples(n=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, *SHAPE, generator=rng), torch.arange(n)


@every_model
def test_what_a_model_computes_and_gradients_of_what_it_takes_are_exact_whatever_is_kept(model):
    x, y = examples()
    sparse = with_sparse_activations(model, 0.75)
    torch.testing.assert_close(sparse(x), model(x), rtol=0, atol=0)
    for ours, theirs in zip(
        gradients(sparse, x, y, of_x=True), gradients(model, x, y, of_x=True), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert sparse.state_dict().keys() == model.state_dict().keys()


@every_model
def test_who_keeps_all_has_the_gradients_of_the_model(model):
    x, y = examples()
    for ours, theirs in zip(
        gradients(with_sparse_activations(model, 0.0), x, y), gradients(model, x, y), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_layer_s_gradient_is_that_of_the_largest_numbers_of_each_example():
    """sum over examples of g (largest of x)^T, with n - floor(gamma n) numbers kept."""
    layer = nn.Linear(5, 2)
    x = torch.tensor([[1.0, -4, 2, 0.5, 3], [-9, 1, 1.5, 8, 7]])
    kept = torch.tensor([[0.0, -4, 0, 0, 3], [-9, 0, 0, 8, 0]])  # 5 - floor(0.6 * 5) = 2
    g = torch.tensor([[1.0, 2], [3, -1]])
    sparse = with_sparse_activations(layer, 0.6)
    (of_weight, of_bias) = torch.autograd.grad((sparse(x) * g).sum(), list(sparse.parameters()))
    torch.testing.assert_close(of_weight, g.T @ kept)
    torch.testing.assert_close(of_bias, g.sum(dim=0))


@every_model
def test_it_takes_less_memory_the_less_it_keeps_and_as_many_operations(model):
    models = [with_sparse_activations(model, gamma) for gamma in (0.5, 0.9)]
    memory = [memory_bytes(one, SHAPE, 32) for one in models]
    assert memory[1] < memory[0] < memory_bytes(model, SHAPE, 32)
    assert flops_per_example(models[0], SHAPE) == flops_per_example(model, SHAPE)


def test_a_linear_layer_keeps_four_bytes_for_each_kept_number_and_a_bit_for_each():
    """Of 64 inputs without a gradient of their own: x is all that the layer keeps."""
    layer = nn.Linear(64, 2, bias=False)
    sparse = with_sparse_activations(layer, 0.75)
    batches = [memory_bytes(sparse, (64,), n) - memory_bytes(layer, (64,), n) for n in (10, 20)]
    assert batches[1] - batches[0] == 10 * (4 * 16 + 8 - 4 * 64)


@every_model
def test_many_clients_at_once_have_the_gradients_of_each(model):
    sparse = with_sparse_activations(model, 0.5)
    rows = {k: torch.stack([p.detach(), 2 * p.detach()]) for k, p in sparse.named_parameters()}
    x, y = torch.stack([examples(seed=s)[0] for s in (0, 1)]), torch.arange(3).expand(2, 3)

    def loss(parameters, x, y):
        return nn.functional.cross_entropy(functional_call(sparse, parameters, (x,)), y)

    together = vmap(grad(loss))(rows, x, y)
    for i in range(2):
        alone = grad(loss)({k: v[i] for k, v in rows.items()}, x[i], y[i])
        for name, g in alone.items():
            torch.testing.assert_close(together[name][i], g, rtol=1e-4, atol=1e-5)
