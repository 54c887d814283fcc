"""Counted operations and bytes against formulas; a multiplication and an addition are two FLOPs."""

import pytest
import torch
from torch import nn

from fl.models import (
    MLP,
    CharLSTM,
    LeafCNN,
    LogisticRegression,
    ResNet8,
    flops_per_example,
    memory_bytes,
)


def linear(inputs: int, outputs: int) -> int:
    return 2 * inputs * outputs


def conv(inputs: int, outputs: int, kernel: int, pixels: int) -> int:
    return 2 * inputs * outputs * kernel**2 * pixels


# A layer's backward pass costs as much as its forward pass for the gradient of the weights, and
# again for that of its input, which the first layer does not need.


def test_logistic_regression():
    flops = flops_per_example(LogisticRegression((60,), 10), (60,))
    assert flops == (linear(60, 10), linear(60, 10))
    assert flops.training == 2400


def test_mlp():
    model = MLP((1, 28, 28), 10, hidden=[64, 32])
    forward = linear(784, 64) + linear(64, 32) + linear(32, 10)
    assert flops_per_example(model, (1, 28, 28)) == (forward, 2 * forward - linear(784, 64))


def test_leaf_cnn():
    first = conv(1, 32, 5, 28 * 28)
    forward = first + conv(32, 64, 5, 14 * 14) + linear(64 * 7 * 7, 512) + linear(512, 10)
    model = LeafCNN((1, 28, 28), 10, width=512)
    assert flops_per_example(model, (1, 28, 28)) == (forward, 2 * forward - first)


def test_resnet8():
    stem = conv(3, 16, 3, 32 * 32)
    forward = stem + 2 * conv(16, 16, 3, 32 * 32)
    for a, b, side in ((16, 32, 16), (32, 64, 8)):
        forward += conv(a, b, 3, side**2) + conv(b, b, 3, side**2) + conv(a, b, 1, side**2)
    forward += linear(64, 10)
    assert flops_per_example(ResNet8((3, 32, 32), 10), (3, 32, 32)) == (forward, 2 * forward - stem)


@pytest.mark.parametrize("layers", [1, 2])
def test_char_lstm_counts_the_recurrence(layers):
    T, V, E, H = 6, 11, 3, 16
    # Four gates from input and state at each position; looking up an embedding costs nothing.
    gates = linear(E + H, 4 * H) + (layers - 1) * linear(H + H, 4 * H)
    forward = T * (gates + linear(H, V))
    # The initial state of each layer is a constant and needs no gradient. Embeddings do need one.
    backward = 2 * forward - layers * linear(H, 4 * H)
    model = CharLSTM((T,), V, embedding=E, hidden=H, layers=layers)
    assert flops_per_example(model, (T,), torch.int64) == (forward, backward)


@pytest.mark.filterwarnings("error")
def test_counting_changes_nothing():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    enabled = torch.backends.mkldnn.enabled
    flops_per_example(model, (4,))
    memory_bytes(model, (4,), batch_size=8)
    assert torch.backends.mkldnn.enabled == enabled
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_parameters_that_are_not_trained_need_no_gradient():
    model = MLP((8,), 2, hidden=[4])
    for p in model.layers[0].parameters():
        p.requires_grad_(False)
    flops = flops_per_example(model, (8,))
    assert flops.forward == linear(8, 4) + linear(4, 2)
    assert flops.backward == linear(4, 2)


F32, I64 = 4, 8


def test_memory_of_an_mlp_is_parameters_gradients_slots_and_activations():
    model = MLP((784,), 10, hidden=[64])
    d = 785 * 64 + 65 * 10
    # Kept for the backward pass: the inputs, the hidden values after ReLU, the log-probabilities,
    # and the targets.
    example = F32 * (784 + 64 + 10) + I64
    for batch_size, slots in ((1, 0), (32, 0), (32, 2)):
        expected = F32 * d * (2 + slots) + batch_size * example
        found = memory_bytes(model, (784,), batch_size, slots)
        assert expected <= found <= expected + 16  # a few scalars of the loss


def test_memory_grows_with_the_batch_by_the_activations_of_an_example():
    model = LeafCNN((1, 28, 28), 10, width=512)
    # Input; each convolution's output once (ReLU keeps its result, which pooling reads too); the
    # pooled values with the pooling's int64 indices; the hidden layer; log-probabilities; target.
    pooled = 32 * 14 * 14 + 64 * 7 * 7
    expected = F32 * (784 + 32 * 28 * 28 + 64 * 14 * 14 + pooled + 512 + 10) + I64 * (pooled + 1)
    sizes = [memory_bytes(model, (1, 28, 28), b) for b in (10, 11, 21)]
    assert sizes[1] - sizes[0] == expected
    assert sizes[2] - sizes[0] == 11 * expected


def test_memory_counts_what_is_trained_and_what_is_only_held():
    model = MLP((8,), 2, hidden=[4])
    all_trained = memory_bytes(model, (8,), 1, optimizer_slots=1)
    for p in model.layers[0].parameters():
        p.requires_grad_(False)
    frozen = memory_bytes(model, (8,), 1, optimizer_slots=1)
    # Without gradient and slot of the first layer, and without keeping the inputs and the sign of
    # the hidden values for it. These are still inputs of the second.
    assert all_trained - frozen == F32 * (2 * 9 * 4 + 8)
