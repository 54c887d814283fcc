"""What of a model travels, and what stays with the client: local layers and frozen parameters.

A message has what travels. Frozen parameters are the same everywhere and never move: they are in
the app's model, once for all clients. Local layers are the client's own: they are kept in its
`Context.state["fl.local"]`, and are as the model was made until the client has trained them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor, nn

from fl.clients.local_layers import LocalLayers
from fl.errors import ConfigError
from fl.flower.carried import carried, carried_arrays
from fl.flower.records import from_record, to_record
from fl.vectors.layout import Layout
from fl.vectors.part import Part
from fl.vectors.rows import Row, as_row, as_tensor, is_finite

STATE_KEY = "fl.local"


class Home:
    """Completes the models that clients receive, and takes apart what they have trained.

    Args:
        model: with the values that frozen parameters and local layers begin with.
        local_layers: which layers stay with the client; None keeps none.

    Attributes:
        whole: layout of all that a client trains: the model without frozen parameters.
        sent: what travels of it.
        kept: what stays with the client.
        absent: names of the model's entries that no message has.
        frozen: whether some are parameters that nobody trains, the same for all.
        local: which of the numbers that a client trains stay with it, shape (p,); None if none do.

    Raises:
        ConfigError: there is nothing to train, or to send.
    """

    def __init__(self, model: nn.Module, local_layers: LocalLayers | None = None) -> None:
        self.whole = Layout.of(model, frozen=False)
        if not self.whole.num_trainable:
            raise ConfigError(
                "the model has nothing to train: it has no parameters, or all are frozen or empty"
            )
        named = _names(local_layers, model)
        # A tensor stays where one of its names does.
        named |= {e.tied_to for e in self.whole.tied if e.name in named}
        named |= {e.name for e in self.whole.tied if e.tied_to in named}
        self.kept = Part(self.whole, named)
        self.sent = Part(self.whole, self.whole.names - named)
        self.absent = model.state_dict().keys() - self.sent.layout.names
        if not self.sent.layout.num_trainable:
            raise ConfigError(
                "local_layers are all that the model trains, so that nothing would be sent: leave "
                "some to the server, or use strategy=local"
            )
        self.frozen = any(not p.requires_grad for p in model.parameters())
        self.local: Tensor | None = None
        if self.kept.layout.num_trainable:
            self.local = self.kept.mask()
        state = model.state_dict()
        own = {e.name: state[e.name].detach().clone() for e in self.kept.layout.entries}
        self._first = self.kept.layout.flatten(own)
        self._first_carried = carried_arrays(
            {e.name: own[e.name] for e in self.kept.layout.carried}
        )

    @property
    def keeps(self) -> bool:
        """Whether anything stays with the client."""
        return bool(self.kept.layout.entries)

    def completed(
        self, row: Row, others: Mapping[str, Array], state: RecordDict | None
    ) -> tuple[Row, dict[str, Array]]:
        """Returns the whole model of what has come and what the client has.

        Args:
            row: of what travels; itself if nothing is missing.
            others: entries of it outside the row.
            state: the client's.

        Returns:
            The row of the whole, shape (d,), read-only, and the entries outside it.

        Raises:
            ConfigError: something else has taken the key of the local layers.
        """
        if not self.keeps:
            return row, dict(others)
        own, own_carried = self._first, self._first_carried
        if state is not None and STATE_KEY in state:
            record = state[STATE_KEY]
            if not isinstance(record, ArrayRecord):
                raise ConfigError(
                    f"Context.state[{STATE_KEY!r}] is a {type(record).__name__}, not an "
                    "ArrayRecord: the key belongs to the client's local layers, use another"
                )
            own = as_tensor(from_record(self.kept.layout, record))
            own_carried = carried(self.kept.layout, record)
        whole = torch.empty(self.whole.size)
        self.sent.put(whole, as_tensor(row))
        self.kept.put(whole, own)
        completed = as_row(whole)
        completed.flags.writeable = False
        return completed, {**others, **own_carried}

    def sent_carried(self, others: Mapping[str, Array]) -> dict[str, Array]:
        """Returns those entries outside the row that travel."""
        return {entry.name: others[entry.name] for entry in self.sent.layout.carried}

    def record_of(self, row: Tensor, others: Mapping[str, Array]) -> ArrayRecord | None:
        """Returns what a client keeps of a model that it has trained; None if that is not finite.

        A client whose training diverged has its local layers as they were before.

        Args:
            row: of the whole, shape (d,).
            others: entries of the whole outside the row.
        """
        own = self.kept.take(row).clone()
        if not is_finite(as_row(own)):
            return None
        named = {entry.name: others[entry.name] for entry in self.kept.layout.carried}
        return to_record(self.kept.layout, own, named)


def _names(local_layers: LocalLayers | None, model: nn.Module) -> set[str]:
    """Returns the names of local layers; what is wrong with them is said of `local_layers`."""
    if local_layers is None:
        return set()
    try:
        return {*local_layers.names(model)}
    except ConfigError as error:
        raise ConfigError(f"local_layers.{error}") from error
