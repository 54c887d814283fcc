"""What a client's own model has apart from the one it sends, and what the client predicts with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from fl.clients.app.home import Home
from fl.clients.app.training import Training
from fl.clients.rule import Received, Rule
from fl.flower.carried import carried_tensors
from fl.randomness import global_generators
from fl.vectors.layout import Entry, Layout
from fl.vectors.rows import as_tensor

STATISTICS = "statistics/"
"""How names in a client's memory begin that are not its rule's, but of entries of the model."""


class Apart:
    """Statistics and random draws of a model that a client keeps.

    Args:
        buffers: entries that no rule moves, as `Layout.fixed` gives them; the model changes them.
        seed, client, message_id: name the stream of the draws.

    Attributes:
        passes: made so far, each of which has draws of its own.
    """

    def __init__(self, buffers: dict[str, Tensor], seed: int, client: int, message_id: str) -> None:
        self.buffers = buffers
        self._seed = seed
        self._key = ("dropout", "own", client, message_id)
        self.passes = 0

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Seeds the global generators for one pass, and puts them back after it."""
        self.passes += 1
        with global_generators(self._seed, *self._key, self.passes):
            yield


def statistics(layout: Layout, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns what the model's own code has moved, under its names in a client's memory."""
    return {f"{STATISTICS}{e.name}": buffers[e.name] for e in _moving(layout)}


def recalled(
    layout: Layout, memory: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Returns entries that no rule moves, with statistics as a client remembers them, if it does.

    Args:
        layout: of the model.
        memory: of the client.
        buffers: as `Layout.fixed` gives them; what the model's own code moves is copied.
    """
    own = {e.name: memory.get(f"{STATISTICS}{e.name}", buffers[e.name]) for e in _moving(layout)}
    entries = {**buffers, **{name: tensor.clone() for name, tensor in own.items()}}
    return {**entries, **{e.name: entries[e.tied_to] for e in layout.tied if e.name in entries}}


def _moving(layout: Layout) -> list[Entry]:
    carried = [entry for entry in layout.carried if not entry.tied_to]
    return [*layout.moving_buffers, *carried]


def predicts_with(home: Home, rule: Rule, task: Training) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns what a client would predict with before it adapts that, in host memory.

    Args:
        home: says what of the model stays with the client.
        rule: of the client.
        task: the model, and what the client remembers.

    Returns:
        The row, shape (d,), and the entries outside it.
    """
    row, layout = as_tensor(task.row), home.whole
    w = layout.select(row)
    buffers = layout.fixed(row, carried_tensors(task.carried))
    memory = rule.first_memory(w, task.scalars) if task.memory is None else task.memory
    if rule.keeps_statistics:
        buffers = recalled(layout, memory, buffers)
    w = rule.personal(Received(w, task.server, memory, dict(task.scalars), local=home.local))
    return layout.join(w, buffers), layout.carried_of(buffers)
