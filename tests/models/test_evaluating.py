import torch
from torch import nn

from fl.models import evaluate, losses_of
from fl.models.evaluation import predictions
from fl.vectors.threads import limit_threads


class Remembers(nn.Module):
    """Keeps what its first layer makes until its second one asks, as some models do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Linear(4 * 26 * 26, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = self.first(x).relu()
        return self.second(self.read().flatten(1))

    def read(self) -> torch.Tensor:
        return self.kept


class Draws(Remembers):
    """Predicts with noise, also in evaluation mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.randn(len(x), 5)


def measured(model: nn.Module, threads: int) -> tuple[object, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(130, 1, 28, 28, generator=generator)
    y = torch.randint(5, (130,), generator=generator)
    with limit_threads(threads):
        torch.manual_seed(1)
        found = evaluate(model, (x, y), batch_size=20)
        logits = predictions(model, (x, y), batch_size=20)
        losses = losses_of(model, (x, y), batch_size=20)
        assert torch.get_num_threads() == threads
    return found, logits.numpy().tobytes(), losses.tobytes()


def test_what_is_measured_does_not_depend_on_the_number_of_threads():
    torch.manual_seed(0)
    for model in (Remembers(), Draws()):
        alone = measured(model, 1)
        assert all(measured(model, threads) == alone for threads in (2, 5, 16))
        assert model.training
        assert all(p.requires_grad for p in model.parameters())
