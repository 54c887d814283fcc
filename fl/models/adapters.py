"""Little to train beside a frozen model: adapters of its linear layers.

LoRA: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, ICLR 2022, arXiv:2106.09685. FFA-LoRA: Sun,
Li, Li, Ding, Improving LoRA in Privacy-preserving Federated Learning, ICLR 2024, arXiv:2403.12313.
PaCA: Woo et al., ICLR 2025, arXiv:2503.01905.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from fl.checks import at_least, positive
from fl.errors import ConfigError


class _Adapted(nn.Linear, ABC):
    """A linear layer with frozen weights W, shape (m, n), and an adapter.

    Its parameters `weight` and `bias` are those of the layer that it takes the place of, so that
    they have their names and stay tied to whatever they are tied to.
    """

    def __init__(self, layer: nn.Linear, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = scale

    @abstractmethod
    def merged(self) -> Tensor:
        """Returns the weights of the plain layer that does the same, shape (m, n)."""


class LowRank(_Adapted):
    """W x + s B (A x), with A of shape (r, n) and B of shape (m, r), 0 at first.

    A's entries are drawn uniformly from [-1 / sqrt(n), 1 / sqrt(n)], as PEFT does.

    Args:
        layer: the linear layer.
        rank: r.
        scale: s.
        freeze_A: train B alone.
    """

    def __init__(self, layer: nn.Linear, rank: int, scale: float, *, freeze_A: bool) -> None:
        super().__init__(layer, scale)
        like = layer.weight
        bound = 1 / math.sqrt(layer.in_features)
        A = torch.empty(rank, layer.in_features).uniform_(-bound, bound).to(like)
        self.A = nn.Parameter(A, requires_grad=not freeze_A)
        self.B = nn.Parameter(like.new_zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs, shape (..., m), of inputs of shape (..., n)."""
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.A), self.B)

    def merged(self) -> Tensor:
        """Returns W + s B A."""
        return self.weight + self.scale * (self.B @ self.A)


class PartialColumns(_Adapted):
    """(W + s D S) x, where S selects r of the n columns of W, and D, shape (m, r), is 0 at first.

    Args:
        layer: the linear layer.
        rank: r; columns are drawn uniformly without replacement.
        scale: s.
    """

    columns: Tensor

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        super().__init__(layer, scale)
        columns = torch.randperm(layer.in_features)[:rank].sort().values
        self.register_buffer("columns", columns.to(layer.weight.device), persistent=False)
        self.D = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs, shape (..., m), of inputs of shape (..., n)."""
        return super().forward(x) + self.scale * F.linear(x[..., self.columns], self.D)

    def merged(self) -> Tensor:
        """Returns W + s D S."""
        return self.weight.index_add(1, self.columns, self.scale * self.D)


@dataclass(frozen=True)
class Adapter(ABC):
    """Makes of a model one that trains little beside frozen weights.

    The linear layers that are chosen by name get r (m + n) numbers or fewer to train, m being
    outputs and n inputs. Everything else is frozen, but for `trained`.

    Attributes:
        rank: r, at least 1; at most n of any layer.
        alpha: s = alpha / r is what the adapter's outputs are multiplied by; None is r, and so
            s = 1.
        layers: names of modules, in which * stands for any text: all linear layers that one fits.
        trained: names of parameters that are trained as they are, such as a new head.
        base: safetensors file with the state dict of the model before it is adapted, as a run
            leaves one; None takes fresh values. Every client reads it where it is made.

    Raises:
        ConfigError: a value is out of range.
    """

    rank: int = 8
    alpha: float | None = None
    layers: Sequence[str] = ("*",)
    trained: Sequence[str] = ()
    base: str | None = None

    def __post_init__(self) -> None:
        at_least("rank", self.rank, 1)
        if self.alpha is not None:
            positive("alpha", self.alpha)
        for name in ("layers", "trained"):
            texts = getattr(self, name)
            if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
                raise ConfigError(f"{name} is {texts!r}; it must be a list of names")
        if not (self.layers or self.trained):
            raise ConfigError(
                "layers is [] and trained is [], so that nothing would be trained: name layers, "
                "such as ['*'], or leave the adapter out"
            )

    def __call__(self, model: nn.Module) -> nn.Module:
        """Returns the model with adapters in the places of its linear layers.

        Draws from torch's global generator.

        Args:
            model: is changed.

        Raises:
            ConfigError: a name fits nothing, r is more than a layer has inputs, or the base cannot
                be read, is of another model, or is not finite.
        """
        if self.base is not None:
            _load(model, self.base)
        linear = {n: m for n, m in model.named_modules() if type(m) is nn.Linear}
        chosen = fitting("layers", self.layers, [name for name in linear if name])
        kept = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        trained = set(fitting("trained", self.trained, kept))
        model.requires_grad_(False)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in trained:
                parameter.requires_grad_(True)
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        for name in chosen:
            layer = linear[name]
            if self.rank > layer.in_features:
                raise ConfigError(
                    f"rank is {self.rank}, and layer {name!r} has {layer.in_features} inputs: "
                    "lower it, or leave the layer out of `layers`"
                )
            model.set_submodule(name, self.adapted(layer, scale))
        return model

    @abstractmethod
    def adapted(self, layer: nn.Linear, scale: float) -> nn.Module:
        """Returns what takes the place of a layer.

        Args:
            layer: its weights are frozen.
            scale: s.
        """


@dataclass(frozen=True)
class LoRA(Adapter):
    """W x + s B (A x), with A, B and nothing of W trained.

    The mean of the clients' products B_i A_i is not the product of their means, which is what
    averaging makes: they differ by the mean of (B_i - mean B)(A_i - mean A). With `freeze_A` A
    stays what the run's seed made it, and averaging is exact: FFA-LoRA.

    Attributes:
        freeze_A: train B alone.
    """

    freeze_A: bool = False

    def adapted(self, layer: nn.Linear, scale: float) -> nn.Module:
        """Returns a `LowRank` layer."""
        return LowRank(layer, self.rank, scale, freeze_A=self.freeze_A)


@dataclass(frozen=True)
class PaCA(Adapter):
    """r columns of W itself, the same for all clients: LoRA whose A is fixed and selects inputs.

    Nothing is multiplied by an A, and only r inputs are kept for the backward pass. Averaging is
    exact. The columns are drawn from the run's seed, for each layer anew.
    """

    def adapted(self, layer: nn.Linear, scale: float) -> nn.Module:
        """Returns a layer of which some columns are trained."""
        return PartialColumns(layer, self.rank, scale)


def _load(model: nn.Module, path: str) -> None:
    """Gives a model the values of a file; raises a ConfigError if it cannot."""
    try:
        state = load_file(path)
        model.load_state_dict(state)
    except FileNotFoundError as error:
        raise ConfigError(f"base is {path!r}, and there is no such file") from error
    except (OSError, SafetensorError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(
            f"base is {path!r}, which is no file of this model ({why:.300}): choose the model, "
            "with its sizes, that it was written by"
        ) from error
    endless = [name for name, x in state.items() if not bool(torch.isfinite(x).all())]
    if endless:
        raise ConfigError(
            f"base is {path!r}, which is not finite in {min(endless)!r}: choose the file of a "
            "model whose training has not diverged"
        )


def merged(model: nn.Module) -> nn.Module:
    """Returns a copy of a model with plain linear layers in the places of adapted ones.

    What they compute is the same but for rounding. A weight that was tied to another one is no
    longer, if its layer was adapted.
    """
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, _Adapted):
            plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(module.merged().detach(), requires_grad=False)
            plain.bias = module.bias
            if not name:
                return plain
            model.set_submodule(name, plain)
    return model


def fitting(key: str, patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns the names that a pattern fits, in their order.

    Args:
        key: of the patterns, for a message.
        patterns: in which * stands for any text.
        names: to choose from.

    Raises:
        ConfigError: a pattern fits none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            few = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            raise ConfigError(f"{key} has {pattern!r}, which fits no name; there are: {few}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
