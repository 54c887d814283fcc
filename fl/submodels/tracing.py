"""Which layers read which units, found by passing marks through a model.

The layers of a copy compute nothing: one at a time returns NaN in some of its channels, all others
zeros, and normalisation what it is given. Activations, pooling, flattening, sums and concatenation
are the model's own, and leave NaN where they belong. Each layer notes where its input is NaN. The
channels whose number has bit b are marked together, then those without it, for every bit: of K
channels, 2 log2 K passes tell which one reaches which input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import tree_map

from fl.errors import ConfigError

_MAKES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_LAST = (nn.LayerNorm, nn.RMSNorm)
_REMEDY = "declare the model's units, see docs/own_parts.md"

Node = tuple[str, int]  # a layer and one of its channels


@dataclass(frozen=True)
class Traced:
    """Units that were found.

    Attributes:
        width: their number.
        places: entry, dimension, and the unit of each index along it, -1 for none.
    """

    width: int
    places: tuple[tuple[str, int, NDArray[np.int64]], ...]


@dataclass
class _Layer:
    """A module with parameters of its own.

    Attributes:
        name: in the model.
        module: of the copy.
        makes: whether it makes units of its own.
        norm: whether it gives on those that it is given.
        axis: of its channels in what it takes and returns.
        zeros: what it returns, without marks.
        marked: of the last pass, which channels of its input are NaN; None if it was not called.
    """

    name: str
    module: nn.Module
    makes: bool = False
    norm: bool = False
    axis: int = -1
    zeros: Any = None
    marked: NDArray[np.bool_] | None = None


def trace(model: nn.Module, input_shape: tuple[int, ...], tokens: bool) -> dict[str, Traced]:
    """Returns the hidden units of a model, by the first layer that makes them.

    Layers that make units, and read them, are linear layers, convolutions and embeddings;
    normalisation has a number of each. Channels that a group normalisation takes together are kept
    together: a unit is then one channel of each of its groups, so that what is left of a group
    stays a group. What other modules with parameters read or make is left whole, and so are units
    that are mixed (as attention does) before a layer reads them.

    Args:
        model: any module; not changed.
        input_shape: shape of one input.
        tokens: it takes tokens.

    Raises:
        ConfigError: a module has parameters and is not called, so that something else reads them.
    """
    model = copy.deepcopy(model).cpu().eval()
    layers = list(_layers(model))
    if any(layer.module is model for layer in layers):
        return {}
    x = torch.zeros((2, *input_shape), dtype=torch.int64 if tokens else torch.float32)
    with torch.no_grad():
        _measure(model, layers, x)
        for layer in layers:
            _replace(layer)
        links = _Links()
        if not tokens:
            model(x * torch.nan)
            for layer in layers:
                links.fix(_nodes(layer.name, layer.marked))
        for layer in layers:
            if layer.makes:
                _follow(model, x, layer, layers, links)
    return links.groups([layer for layer in layers if layer.makes])


def _layers(module: nn.Module, name: str = "") -> Iterator[_Layer]:
    """Yields the modules with parameters; of one that is not known, not those inside."""
    own = next(module.parameters(recurse=False), None) is not None
    if is_parametrized(module):
        yield _Layer(name, module)
    elif isinstance(module, _MAKES) and getattr(module, "groups", 1) == 1:
        last = isinstance(module, nn.Linear | nn.Embedding)
        yield _Layer(name, module, makes=True, axis=-1 if last else 1)
    elif own and isinstance(module, (*_BATCH, nn.GroupNorm)):
        yield _Layer(name, module, norm=True, axis=1)
    elif own and isinstance(module, _LAST) and len(module.normalized_shape) == 1:
        yield _Layer(name, module, norm=True, axis=-1)
    elif own:
        yield _Layer(name, module)
    else:
        for child, inner in module.named_children():
            yield from _layers(inner, f"{name}.{child}" if name else child)


def _measure(model: nn.Module, layers: list[_Layer], x: Tensor) -> None:
    """Notes what each layer returns."""

    def noting(layer: _Layer) -> Callable[..., None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            layer.zeros = tree_map(
                lambda t: torch.zeros_like(t) if isinstance(t, Tensor) else t, output
            )

        return note

    handles = [layer.module.register_forward_hook(noting(layer)) for layer in layers]
    model(x)
    for handle in handles:
        handle.remove()
    for layer in layers:
        if layer.zeros is None:
            raise ConfigError(
                f"module {layer.name!r} has parameters, and the model does not call it: something "
                f"else reads them, so that its units cannot be found: {_REMEDY}"
            )


def _replace(layer: _Layer) -> None:
    """Makes a layer note marks instead of computing."""

    def forward(x: Tensor, *others: Any, **named: Any) -> Any:
        if x.is_floating_point():
            axes = tuple(d for d in range(x.ndim) if d != layer.axis % x.ndim)
            marked = torch.isnan(x).any(dim=axes).numpy() if axes else torch.isnan(x).numpy()
            before = layer.marked
            layer.marked = marked if before is None else before | marked
        return x if layer.norm else tree_map(_own, layer.zeros)

    layer.module.forward = forward


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value  # the model may write to it


def _nodes(name: str, marked: NDArray[np.bool_] | None) -> Iterator[Node]:
    """Yields the inputs of a layer that are marked."""
    if marked is not None:
        for i in np.flatnonzero(marked).tolist():
            yield f"{name} in", i


class _Links:
    """Which channels are one unit, and which must stay."""

    def __init__(self) -> None:
        self._above: dict[Node, Node] = {}
        self._fixed: set[Node] = set()
        self.reached: dict[str, dict[str, tuple[_Layer, NDArray[np.int64]]]] = {}

    def root(self, node: Node) -> Node:
        """Returns the node that stands for all that are one with this."""
        while (above := self._above.get(node, node)) != node:
            self._above[node] = node = self._above.get(above, above)
        return node

    def join(self, a: Node, b: Node) -> None:
        """Makes two nodes one."""
        a, b = self.root(a), self.root(b)
        if a != b:
            self._above[max(a, b)] = min(a, b)

    def fix(self, nodes: Iterator[Node]) -> None:
        """Notes that nodes stay in every sub-model."""
        self._fixed.update(nodes)

    def groups(self, makers: list[_Layer]) -> dict[str, Traced]:
        """Returns the groups of units that may be left out."""
        fixed = {self.root(node) for node in self._fixed}
        units: dict[str, list[Node]] = {}  # of each maker, by channel
        for maker in makers:
            units[maker.name] = [self.root((maker.name, u)) for u in range(_channels(maker))]
        group_of: dict[Node, int] = {}  # makers that share units are one group
        members: list[list[_Layer]] = []
        for maker in makers:
            shared = {group_of[node] for node in units[maker.name] if node in group_of}
            first = min(shared, default=len(members))
            if first == len(members):
                members.append([])
            members[first].append(maker)
            for other in shared - {first}:
                members[first] += members[other]
                members[other] = []
            for layer in members[first]:
                group_of.update((node, first) for node in units[layer.name])
        found = {}
        for layers in members:
            nodes = list(dict.fromkeys(node for layer in layers for node in units[layer.name]))
            if not layers or fixed & set(nodes):
                continue
            number = {node: i for i, node in enumerate(nodes)}
            places = []
            for layer in layers:
                own = np.array([number[node] for node in units[layer.name]])
                places += _made(layer, own)
            readers: dict[str, tuple[_Layer, NDArray[np.int64]]] = {}
            for layer in layers:
                own = np.array([number[node] for node in units[layer.name]])
                for name, (reader, channel) in self.reached.get(layer.name, {}).items():
                    unit = np.where(channel >= 0, own[channel], -1)
                    before = readers.get(name, (reader, unit))[1]
                    readers[name] = (reader, np.where(unit >= 0, unit, before))
            for reader, unit in readers.values():
                places += _read(reader, unit)
            found[layers[0].name] = Traced(len(nodes), tuple(places))
        return found


def _follow(
    model: nn.Module, x: Tensor, maker: _Layer, layers: list[_Layer], links: _Links
) -> None:
    """Links a layer's channels to the inputs that they reach."""
    count = _channels(maker)
    numbers = np.arange(count)
    silent, whole = maker.zeros, False
    codes: dict[str, NDArray[np.int64]] = {}  # channel that reaches each input of a layer, or -1
    seen: dict[str, list[NDArray[np.bool_]]] = {}
    bits = max(1, (count - 1).bit_length())
    shape = [1] * silent.ndim
    shape[maker.axis] = count
    for b in range(bits):
        for marks in ((numbers >> b) & 1 == 1, (numbers >> b) & 1 == 0):
            for layer in layers:
                layer.marked = None
            mark = torch.from_numpy(np.where(marks, np.nan, 0.0).astype(np.float32))
            maker.zeros = silent + mark.view(shape)
            logits = model(x)
            whole = whole or bool(torch.isnan(logits).any())
            for layer in layers:
                if layer.marked is not None:
                    seen.setdefault(layer.name, []).append(layer.marked)
    maker.zeros = silent
    for layer in layers:
        if layer.name not in seen:
            continue
        with_bit, without = (np.stack(seen[layer.name][i::2]) for i in (0, 1))
        once = (with_bit != without).all(axis=0)
        never = ~(with_bit | without).any(axis=0)
        whole = whole or not (once | never).all()
        whole = whole or (bool(once.any()) and not (layer.makes or layer.norm))
        number = (with_bit.astype(np.int64) << np.arange(bits)[:, None]).sum(axis=0)
        codes[layer.name] = np.where(once, number, -1)
    if whole:
        links.fix((maker.name, u) for u in range(count))
    for layer in layers:
        channel = codes.get(layer.name)
        if channel is None or not (channel >= 0).any() or not (layer.makes or layer.norm):
            continue
        links.reached.setdefault(maker.name, {})[layer.name] = (layer, channel)
        for i, u in enumerate(channel.tolist()):
            if u >= 0:
                links.join((maker.name, u), (f"{layer.name} in", i))
        if isinstance(layer.module, nn.GroupNorm):
            each = len(channel) // layer.module.num_groups
            for i in range(each, len(channel)):
                links.join((f"{layer.name} in", i), (f"{layer.name} in", i % each))


def _channels(layer: _Layer) -> int:
    """Returns how many channels a layer makes."""
    weight: Any = layer.module.weight
    return int(weight.shape[1 if isinstance(layer.module, nn.Embedding) else 0])


def _made(layer: _Layer, unit: NDArray[np.int64]) -> list[tuple[str, int, NDArray[np.int64]]]:
    """Returns the places of units in the layer that makes them."""
    if isinstance(layer.module, nn.Embedding):
        return [(f"{layer.name}.weight", 1, unit)]
    bias = [(f"{layer.name}.bias", 0, unit)] if layer.module.bias is not None else []
    return [(f"{layer.name}.weight", 0, unit), *bias]


def _read(layer: _Layer, unit: NDArray[np.int64]) -> list[tuple[str, int, NDArray[np.int64]]]:
    """Returns the places of units in a layer that reads them."""
    if layer.makes:
        return [(f"{layer.name}.weight", 1, unit)]
    names = [name for name, t in layer.module.state_dict().items() if t.ndim == 1]
    return [(f"{layer.name}.{name}", 0, unit) for name in names]
