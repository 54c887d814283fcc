"""Labelled examples that the server holds itself, and trains models on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fl.checks import at_least
from fl.data import FederatedData
from fl.errors import ConfigError
from fl.models import per_example_loss
from fl.randomness import generator, torch_seed
from fl.submodels import Size, SubModel, resized
from fl.vectors.layout import Layout
from fl.vectors.threads import limit_threads


class ServerExamples:
    """Public data: see `fl.strategies.public_data.PublicData`.

    What the server does with them takes no simulated time.

    Args:
        model: makes the model; only its structure is used. Its entries outside the row are those
            it is made with.
        data: the examples are drawn from its training examples, uniformly and without replacement;
            clients go on having them as well.
        examples: how many, at least 1.
        seed: of the draws.

    Attributes:
        examples: inputs and targets.

    Raises:
        ConfigError: there are fewer.
    """

    def __init__(
        self, model: Callable[[], nn.Module], data: FederatedData, *, examples: int, seed: int
    ) -> None:
        at_least("rule.public_examples", examples, 1)
        if examples > len(data.train):
            raise ConfigError(
                f"rule.public_examples is {examples}, of {len(data.train)} training examples: it "
                "must be at most so many"
            )
        rows = generator(seed, "public-examples").choice(len(data.train), examples, replace=False)
        self.examples = data.tensors(data.train, np.sort(rows))
        self._seed = seed
        self._structure = model()
        self._layout = Layout.of(self._structure, frozen=False)
        self._carried = self._layout.carried_of(dict(self._structure.named_buffers()))
        self._made: dict[Size, tuple[nn.Module, Layout]] = {}

    def draws(self, *key: int | str) -> np.random.Generator:
        """Returns a generator; see `PublicData.draws`."""
        return generator(self._seed, "public-data", *key)

    def fit(
        self,
        parameters: Sequence[Tensor],
        model: Callable[[], Tensor],
        part: SubModel | None,
        *,
        epochs: int,
        lr: float,
        batch_size: int,
        key: Sequence[int | str],
    ) -> None:
        """Minimises the mean loss by Adam; see `PublicData.fit`.

        Layers are in training mode, and what they note of the examples is forgotten.
        """
        module, layout = self._of(part)
        x, y = self.examples
        adam, rng = torch.optim.Adam(parameters, lr), self.draws("batches", *key)
        with limit_threads(1), torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(self._seed, "public-data", *key))
            for _ in range(epochs):
                order = torch.from_numpy(rng.permutation(len(y)))
                for batch in torch.split(order, batch_size):
                    row = model()
                    entries = {
                        **layout.fixed(row.detach(), self._copies()),
                        **layout.split(layout.select(row)),
                    }
                    logits = functional_call(module, entries, (x[batch],))
                    loss = per_example_loss(logits, y[batch]).mean()
                    adam.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    adam.step()

    def _of(self, part: SubModel | None) -> tuple[nn.Module, Layout]:
        """Returns what computes with the entries of a part, and their layout."""
        if part is None:
            return self._structure, self._layout
        if part.size not in self._made:
            shapes = {entry.name: entry.shape for entry in part.layout.entries}
            module = resized(self._structure, self._layout, part.size)
            self._made[part.size] = module, self._layout.resized(shapes)
        return self._made[part.size]

    def _copies(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._carried.items()}
