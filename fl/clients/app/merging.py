"""Models that a client brings to one order of their units, by its own examples, and averages.

A message may carry the client's own model in the record "arrays" and others in "arrays.1",
"arrays.2" and so on, with "merge-shares", the weight of each, and "merge-by", how a unit's partner
is found:

- "activations": the unit that is active when this one is, as inputs of the layers that read them
  correlate over the client's training examples;
- "weights": by Git Re-Basin, see `fl.submodels.Orders.by_weights`;
- "order": the unit of the same number, which is the plain average.

The client trains from what it has merged. Where the model has batch normalisation that keeps
statistics, those of every model are taken anew on the client's examples before activations are, and
those of the merged one after.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl.clients.app.choosing import Received
from fl.clients.app.training import moved
from fl.data import FederatedData
from fl.data.federated import IntArray
from fl.errors import ConfigError
from fl.flower.carried import carried_tensors
from fl.models import drop_weights
from fl.models.batch_statistics import keeps_statistics, take_statistics
from fl.randomness import generator, global_generators
from fl.submodels import Orders, Units, assigned, indices, units_of
from fl.vectors.layout import Layout
from fl.vectors.rows import Row, as_row, as_tensor, weighted_sum

By = Literal["activations", "weights", "order"]

BY_KEY = "merge-by"
SHARES_KEY = "merge-shares"

_BATCH = 256  # examples of a forward pass
_READERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Merging(NamedTuple):
    """How a message's models become one.

    Attributes:
        by: how partners are found.
        shares: the weight of each model, shape (k,), of sum 1.
    """

    by: By
    shares: NDArray[np.float64]

    def passes(self, *, statistics: bool) -> int:
        """Returns how many forward passes over the client's examples that takes.

        Args:
            statistics: whether the model's normalisation keeps some.
        """
        own = (1 + statistics) * len(self.shares) if self.by == "activations" else 0
        return own + statistics


def read_merging(config: Mapping[str, Any], k: int) -> Merging | None:
    """Returns how k models are merged; None if there is one, or they are not to be merged.

    Raises:
        ConfigError: the configuration has no such weights, or no such way.
    """
    by = config.get(BY_KEY)
    if by is None or k == 1:
        return None
    if by not in get_args(By):
        raise ConfigError(
            f"the message's {BY_KEY!r} is {by!r:.80}; it must be one of {', '.join(get_args(By))}"
        )
    said = config.get(SHARES_KEY)
    numbers = said if isinstance(said, list) and len(said) == k else [math.nan] * k
    shares = np.array([x if isinstance(x, float) else math.nan for x in numbers])
    if not abs(shares.sum() - 1) < 1e-6:
        raise ConfigError(
            f"the message's {SHARES_KEY!r} is {said!r:.80}; it must be {k} numbers whose sum is 1, "
            "the weights of the models in it"
        )
    return Merging(by, shares)


class Merger:
    """Merges received models on a client's training examples.

    Args:
        model: only its structure is used.
        layout: of the model.
        data: the clients' examples.
        device: where the models run.
    """

    def __init__(
        self, model: nn.Module, layout: Layout, data: FederatedData, device: torch.device
    ) -> None:
        self._structure = model
        self._layout = layout
        self._data = data
        self._device = device

    @cached_property
    def keeps_statistics(self) -> bool:
        """Whether the model's normalisation keeps statistics of batches."""
        return keeps_statistics(self._structure)

    @cached_property
    def units(self) -> tuple[Units, ...]:
        """What is matched.

        Raises:
            ConfigError: the model has none that are found, or some that cannot be matched.
        """
        tokens = self._data.task == "next-token"
        units = units_of(self._structure, self._layout, self._data.input_shape, tokens=tokens)
        if not units:
            raise ConfigError(
                f"{type(self._structure).__name__} has no hidden units that are found, so that "
                "there is nothing to match: use strategy.rule.by=order or strategy=dfedavg, or "
                "another model, such as mlp, leaf_cnn, resnet8 or char_gpt, or declare the model's "
                "units (docs/own_parts.md)"
            )
        return units

    @cached_property
    def orders(self) -> Orders:
        """Brings models to each other's order."""
        return Orders(self._layout, self.units)

    def check(self, by: By) -> None:
        """Raises ConfigError if models of this structure cannot be matched so."""
        if by != "order":
            self.orders  # noqa: B018 (found and kept)
        if by == "activations":
            self._readers  # noqa: B018

    def merged(
        self, models: Sequence[Received], merging: Merging, rows: IntArray, seed: int, key: str
    ) -> Row:
        """Returns sum_k pi_k of model k in the first one's order, shape (d,), read-only.

        A client without examples has no activations, and matches by weights.

        Args:
            models: as they came, the client's own first.
            merging: how.
            rows: the client's examples, as rows of the training examples.
            seed: of the run.
            key: names the task, for what is drawn.
        """
        own, *others = [row for row, _ in models]
        if merging.by == "activations" and len(rows):
            found = self._by_activations(models, rows, seed, key)
            others = [self.orders.applied(x, pi) for x, pi in zip(others, found, strict=True)]
        elif merging.by != "order":
            rng = generator(seed, "matching", key)
            others = [self.orders.applied(x, self.orders.by_weights(own, x, rng)) for x in others]
        row = self._layout.rounded(weighted_sum(merging.shares, np.stack([own, *others])))
        if self.keeps_statistics and len(rows) > 1:
            with self._loaded([(row, models[0][1])]) as (model,):
                self._take_statistics(model, rows, seed, key)
                state = model.state_dict()
                names = [entry.name for entry in self._layout.entries]
                row = as_row(self._layout.flatten({name: state[name] for name in names}))
        row.flags.writeable = False
        return row

    @cached_property
    def _readers(self) -> dict[str, list[tuple[str, int, NDArray[np.int64]]]]:
        """The layers that read each layer's units: name, axis of inputs, units' places in it.

        Raises:
            ConfigError: nothing that is known reads some.
        """
        modules = dict(self._structure.named_modules())
        found: dict[str, list[tuple[str, int, NDArray[np.int64]]]] = {}
        for layer in self.units:
            found[layer.name] = []
            for place in layer.places:
                name, _, tensor = place.entry.rpartition(".")
                reader = modules.get(name)
                if tensor == "weight" and place.dim == 1 and isinstance(reader, _READERS):
                    axis = -1 if isinstance(reader, nn.Linear) else 1
                    found[layer.name].append((name, axis, indices(place, layer.width)))
            if not found[layer.name]:
                raise ConfigError(
                    f"no linear layer or convolution of {type(self._structure).__name__} reads the "
                    f"units {layer.name!r}, by whose inputs they would be matched: use "
                    "strategy.rule.by=weights"
                )
        return found

    def _by_activations(
        self, models: Sequence[Received], rows: IntArray, seed: int, key: str
    ) -> list[dict[str, NDArray[np.int64]]]:
        """Returns the partners of the first model's units in each of the others.

        Where several layers read the same units, as in a residual stream, their correlations add
        up. A unit that is never active, or always the same, correlates with none.
        """
        sums = [
            {name: [_Moments() for _ in at] for name, at in self._readers.items()}
            for _ in models[1:]
        ]
        with self._loaded(models) as copies, torch.no_grad():
            if self.keeps_statistics and len(rows) > 1:
                for model in copies:
                    self._take_statistics(model, rows, seed, key)
            for x in self._batches(rows):
                own, *others = [self._activations(model.eval(), x) for model in copies]
                for moments, other in zip(sums, others, strict=True):
                    for name, of in moments.items():
                        for one, a, b in zip(of, own[name], other[name], strict=True):
                            one.add(a, b)
        return [
            {
                name: assigned(np.sum([one.correlation() for one in of], axis=0))
                for name, of in moments.items()
            }
            for moments in sums
        ]

    def _activations(self, model: nn.Module, x: Tensor) -> dict[str, list[NDArray[np.float64]]]:
        """Returns what the layers that read units are given: (observations, K) each."""
        inputs: dict[str, Tensor] = {}

        def noting(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
                inputs[name] = given[0].detach()

            return note

        modules = dict(model.named_modules())
        names = {name for at in self._readers.values() for name, _, _ in at}
        handles = [modules[n].register_forward_pre_hook(noting(n)) for n in sorted(names)]
        model(x)
        for handle in handles:
            handle.remove()
        return {
            layer: [_observed(inputs[name], axis, where) for name, axis, where in at]
            for layer, at in self._readers.items()
        }

    def _take_statistics(self, model: nn.Module, rows: IntArray, seed: int, key: str) -> None:
        with global_generators(seed, "statistics", key):  # dropout draws
            take_statistics(model.train(), self._batches(rows))

    def _batches(self, rows: IntArray) -> Iterator[Tensor]:
        """Yields the client's inputs in batches of about the same size."""
        for part in np.array_split(rows, math.ceil(len(rows) / _BATCH)):
            yield self._data.tensors(self._data.train, part)[0].to(self._device)

    @contextmanager
    def _loaded(self, models: Sequence[Received]) -> Iterator[list[nn.Module]]:
        """Gives models of their own to the block, which may change their statistics."""
        while len(self._copies) < len(models):
            self._copies.append(copy.deepcopy(self._structure))
        loaded = self._copies[: len(models)]
        for model, (row, carried) in zip(loaded, models, strict=True):
            entries = {name: t.clone() for name, t in carried_tensors(carried).items()}
            own = as_tensor(row).to(self._device, copy=True)
            self._layout.load(model, own, moved(entries, self._device))
        yield loaded
        for model in loaded:
            drop_weights(model)

    @cached_property
    def _copies(self) -> list[nn.Module]:
        return []


class _Moments:
    """Sums over observations of the units of two models, in float64."""

    def __init__(self) -> None:
        self.n = 0
        self.products: Any = 0.0
        self.sums: tuple[Any, Any] = (0.0, 0.0)
        self.squares: tuple[Any, Any] = (0.0, 0.0)

    def add(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
        """Adds observations, shape (n, K) each."""
        self.n += len(a)
        self.products = self.products + a.T @ b
        self.sums = self.sums[0] + a.sum(axis=0), self.sums[1] + b.sum(axis=0)
        self.squares = self.squares[0] + (a * a).sum(axis=0), self.squares[1] + (b * b).sum(axis=0)

    def correlation(self) -> NDArray[np.float64]:
        """Returns R, shape (K, K); 0 where a unit does not vary, or is not finite."""
        mean = [s / self.n for s in self.sums]
        square = [q / self.n for q in self.squares]
        variance = [q - m * m for q, m in zip(square, mean, strict=True)]
        varies = [v > 1e-10 * q for v, q in zip(variance, square, strict=True)]
        scale = [np.where(w, v, np.inf) ** -0.5 for w, v in zip(varies, variance, strict=True)]
        C = self.products / self.n - np.outer(*mean)
        R = C * np.outer(*scale)
        return np.where(np.isfinite(R), R, 0.0)


def _observed(given: Tensor, axis: int, where: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns a layer's inputs by unit, shape (observations, K)."""
    last = given.movedim(axis, -1).reshape(-1, given.shape[axis]).cpu().numpy()
    by_unit = last[:, where]  # (n, K, r)
    return np.asarray(np.moveaxis(by_unit, 1, 2).reshape(-1, len(where)), np.float64)
