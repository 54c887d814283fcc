"""Layers that stay with the client: no message has them, and the server does not know them.

The last ones: Arivazhagan, Aggarwal, Singh, Choudhary: Federated Learning with Personalization
Layers (FedPer), arXiv:1912.00818; Collins, Hassani, Mokhtari, Shakkottai: FedRep, ICML 2021,
arXiv:2102.07078. The first ones: Liang, Liu, Ziyin, Salakhutdinov, Morency: Think Locally, Act
Globally (LG-FedAvg), arXiv:2001.01523. Those that normalise: Li, Jiang, Zhang, Kamp, Dou: FedBN,
ICLR 2021, arXiv:2102.07623.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from fl.checks import at_least, share
from fl.errors import ConfigError
from fl.models.adapters import fitting

_BATCH = nn.modules.batchnorm._BatchNorm
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True, kw_only=True)
class LocalLayers(ABC):
    """Which layers of a model stay with the client.

    Attributes:
        first: None trains all layers at once. A number in [0, 1) is the share of a task's steps in
            which only these train; in the rest of them they stand still, and the others train.

    Raises:
        ConfigError: `first` is out of range.
    """

    first: float | None = None

    def __post_init__(self) -> None:
        if self.first is not None:
            share("first", self.first)

    @abstractmethod
    def names(self, model: nn.Module) -> Collection[str]:
        """Returns the names of their entries in the model's state dict.

        Args:
            model: any module; of a tensor under two names, one is enough.

        Raises:
            ConfigError: the model has no such layers.
        """


@dataclass(frozen=True, kw_only=True)
class NamedLayers(LocalLayers):
    """Entries by their names.

    Attributes:
        patterns: of entries of the state dict, in which * stands for any text.

    Raises:
        ConfigError: `patterns` is no list of texts, or has none.
    """

    patterns: Sequence[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        texts = self.patterns
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"patterns is {texts!r}; it must be a list such as ['head.*']")
        if not texts:
            raise ConfigError(
                "patterns is [], so that nothing would stay with the client: name entries, as in "
                "['head.*'], or leave local_layers out"
            )

    def names(self, model: nn.Module) -> Collection[str]:
        """Returns the names that a pattern fits."""
        return fitting("patterns", self.patterns, list(model.state_dict()))


@dataclass(frozen=True, kw_only=True)
class LastLayers(LocalLayers):
    """The last layers, in the order in which the model's modules have registered them.

    A layer is a module with parameters of its own. One that normalises belongs to the layer before,
    and so do buffers beside no parameters.

    Attributes:
        count: how many, at least 1.

    Raises:
        ConfigError: `count` is out of range.
    """

    count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("count", self.count, 1)

    def names(self, model: nn.Module) -> Collection[str]:
        """Returns those of the last `count` layers."""
        layers = layers_of(model)
        _check("count", self.count, layers, model)
        return [name for layer in layers[-self.count :] for name in layer]


@dataclass(frozen=True, kw_only=True)
class LowerLayers(LocalLayers):
    """All layers but the last, as `LastLayers` has them.

    Attributes:
        shared: how many last ones are not among them, at least 1.

    Raises:
        ConfigError: `shared` is out of range.
    """

    shared: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("shared", self.shared, 1)

    def names(self, model: nn.Module) -> Collection[str]:
        """Returns those of all layers but the last `shared`."""
        layers = layers_of(model)
        _check("shared", self.shared, layers, model)
        return [name for layer in layers[: -self.shared] for name in layer]


@dataclass(frozen=True, kw_only=True)
class NormLayers(LocalLayers):
    """The layers that normalise, with their running statistics and counters.

    They are known by their types, whatever their names.

    Attributes:
        kinds: "batch", those over batches, which FedBN means; or "all", also those over groups,
            layers and instances.

    Raises:
        ConfigError: there is no such kind.
    """

    kinds: Literal["batch", "all"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kinds not in ("batch", "all"):
            raise ConfigError(f"kinds is {self.kinds!r}; it must be 'batch' or 'all'")

    def names(self, model: nn.Module) -> Collection[str]:
        """Returns those of all layers of these kinds."""
        norms = _BATCH if self.kinds == "batch" else _NORMS
        own = [f"{at}." for at, module in model.named_modules() if isinstance(module, norms)]
        names = [name for name in model.state_dict() if name.startswith(tuple(own))]
        if not names:
            raise ConfigError(
                f"kinds is {self.kinds!r}, and {type(model).__name__} has no such layer: use a "
                "model that has, such as resnet8, whose layers normalise over groups, or leave "
                "local_layers out"
            )
        return names


def _check(key: str, count: int, layers: Sequence[Sequence[str]], model: nn.Module) -> None:
    """Raises ConfigError if so many layers are not a part of a model."""
    if count >= len(layers):
        raise ConfigError(
            f"{key} is {count}, and {type(model).__name__} has {len(layers)} layers: it must be "
            "less, so that some stay with the client and some travel"
        )


def layers_of(model: nn.Module) -> list[list[str]]:
    """Returns the names of the entries of each layer, in the order of the modules."""
    own: dict[str, list[str]] = {}
    for name in model.state_dict():
        own.setdefault(name.rpartition(".")[0], []).append(name)
    layers: list[list[str]] = []
    for at, module in model.named_modules():
        if not own.get(at):
            continue
        trained = next(module.parameters(recurse=False), None) is not None
        if layers and (isinstance(module, _NORMS) or not trained):
            layers[-1] += own[at]
        else:
            layers.append(list(own[at]))
    return layers
