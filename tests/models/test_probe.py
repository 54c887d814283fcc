"""What a model cannot be trained on is found out with two examples and with one."""

import pytest
import torch
from torch import nn

from fl.errors import ConfigError
from fl.models import MLP, CharGPT, CharLSTM, LeafCNN, LogisticRegression, ResNet8, smallest_batch


@pytest.mark.parametrize(
    ("model", "shape", "tokens"),
    [
        (LogisticRegression, (1, 8, 8), False),
        (MLP, (1, 8, 8), False),
        (LeafCNN, (1, 28, 28), False),
        (ResNet8, (3, 32, 32), False),
        (CharLSTM, (20,), True),
        (CharGPT, (20,), True),
    ],
)
def test_our_models_fit_the_data_that_they_are_made_for_one_example_at_a_time(model, shape, tokens):
    assert smallest_batch(model(shape, 10), shape, 10, tokens=tokens) == 1


def test_batch_normalisation_of_vectors_wants_two_examples_and_of_images_one():
    vectors = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Linear(5, 10))
    images = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 10))
    assert smallest_batch(vectors, (1, 8, 8), 10, tokens=False) == 2
    assert smallest_batch(images, (1, 8, 8), 10, tokens=False) == 1


def test_more_logits_than_classes_are_no_mistake_and_fewer_are():
    assert smallest_batch(nn.Linear(4, 12), (4,), 10, tokens=False) == 1
    with pytest.raises(
        ConfigError, match=r"logits of shape \(2, 5\); they must have shape \(2, 10"
    ):
        smallest_batch(nn.Linear(4, 5), (4,), 10, tokens=False)
    with pytest.raises(ConfigError, match=r"logits of shape \(2, 3, 10\)"):
        smallest_batch(nn.Linear(4, 10), (3, 4), 10, tokens=False)


def test_forward_that_raises_is_told_with_the_inputs_that_it_was_given():
    with pytest.raises(ConfigError, match=r"with 2 inputs of shape \(3,\) its forward raises Runt"):
        smallest_batch(nn.Linear(4, 10), (3,), 10, tokens=False)


def test_probing_draws_no_numbers_of_anybody():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 10))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    smallest_batch(model, (4,), 10, tokens=False)
    assert torch.equal(torch.rand(3), expected)


def test_a_model_that_takes_no_tokens_is_refused_with_those_that_do():
    with pytest.raises(ConfigError, match=r"Inputs are tokens: use .* char_lstm or char_gpt"):
        smallest_batch(MLP((80,), 10), (80,), 90, tokens=True)
