"""Images that lie with channels last: the same training, and where it is not possible."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from many_cases import for_each
from torch import nn

from fl.clients import Sgd, TrainingApp
from fl.clients.app.memory_format import takes_channels_last
from fl.data import Examples, FederatedData
from fl.data.federated import Partitions
from fl.flower.records import from_record
from fl.models import MLP, LeafCNN, ResNet8, evaluate
from fl.models.channels_last import with_channels_last
from fl.vectors.layout import Layout

HOST = torch.device("cpu")
SIZES = (12, 7)


def images(channels: int) -> FederatedData:
    rng, shape = np.random.default_rng(0), (channels, 8, 8)
    n = sum(SIZES)
    examples = Examples(rng.standard_normal((n, *shape), dtype=np.float32), rng.integers(0, 4, n))
    return FederatedData(
        name="noise",
        train=examples,
        test=examples,
        partitions=Partitions.contiguous(SIZES),
        num_classes=4,
        input_shape=shape,
    )


class Viewing(nn.Module):
    """As many a tutorial has it: `view` of what a convolution returns."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, 5, 3)
        self.last = nn.Linear(180, 4)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return self.last(self.convolution(x).relu().view(len(x), -1))


class Reshaping(Viewing):
    """The same, with `flatten`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return self.last(self.convolution(x).relu().flatten(1))


def takes(model: nn.Module, shape: tuple[int, ...], device: torch.device = HOST) -> bool:
    return takes_channels_last(model.train(), Layout.of(model), shape, device)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_have_their_channels_side_by_side(channels: int) -> None:
    x = torch.randn(4, channels, 8, 6)
    turned = with_channels_last(x)
    assert torch.equal(turned, x)
    assert turned.stride() == (48 * channels, 1, 6 * channels, channels)


@pytest.mark.parametrize("channels", [1, 3])
@for_each("make", [LeafCNN, ResNet8, Viewing, Reshaping])
def test_training_is_that_of_a_plain_torch_loop(
    make, channels, content_of, message_to, context_of, torch_loop
) -> None:
    data = images(channels)
    torch.manual_seed(1)
    model = make(channels) if issubclass(make, Viewing) else make(data.input_shape, 4)
    app = TrainingApp(model, data, Sgd(0.05), batch_size=5, local_epochs=2)
    reply = app(message_to(content_of(model), 1), context_of(1))
    expected = torch_loop(
        model, data, lambda p: torch.optim.SGD(p, 0.05), 1, batch_size=5, epochs=2
    )
    row = from_record(app.layout, reply.content["arrays"])
    np.testing.assert_allclose(row, expected, rtol=2e-3, atol=2e-5)


def seen_by(kind: type[Viewing], content_of, message_to, context_of) -> list[torch.Tensor]:
    model = kind(3)
    app = TrainingApp(model, images(3), Sgd(0.05), batch_size=5)
    app._model.seen.clear()
    app(message_to(content_of(model)), context_of())
    return app._model.seen


def test_a_model_is_given_what_it_can_take(content_of, message_to, context_of) -> None:
    for kind, expected in ((Reshaping, True), (Viewing, False)):
        seen = seen_by(kind, content_of, message_to, context_of)
        assert len(seen) == 3
        turned = [x.is_contiguous(memory_format=torch.channels_last) for x in seen]
        assert turned == [expected] * 3


@pytest.mark.parametrize(("make", "turned"), [(Reshaping, True), (Viewing, False)])
def test_evaluation_turns_images_where_the_model_takes_them_and_finds_the_same(
    make, turned
) -> None:
    torch.manual_seed(0)
    model, x, y = make(3), torch.randn(19, 3, 8, 8), torch.arange(19) % 4
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(x), y).item()
    model.seen.clear()
    found = evaluate(model, (x, y), batch_size=7)
    assert found.loss == pytest.approx(expected, rel=1e-5)
    batches = [seen for seen in model.seen if len(seen) > 1]
    assert [len(seen) for seen in batches] == [7, 7, 5]
    last = [seen.is_contiguous(memory_format=torch.channels_last) for seen in batches]
    assert last == [turned] * 3


def test_it_is_for_convolutions_of_images_on_a_cpu() -> None:
    assert takes(LeafCNN((1, 8, 8), 4), (1, 8, 8))
    assert takes(ResNet8((3, 8, 8), 4), (3, 8, 8))
    assert not takes(MLP((3, 8, 8), 4), (3, 8, 8))
    assert not takes(LeafCNN((1, 8, 8), 4), (1, 8, 8), torch.device("meta"))
    assert not takes(Viewing(3), (3, 8, 8))


def test_the_trial_leaves_no_trace() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(72, 4)
    )
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert takes(model, (1, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
