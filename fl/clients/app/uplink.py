"""What a client sends, compressed: the change of the model travels as a payload of real bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from fl.compression import Channel, Shapes
from fl.compression.compressor import State
from fl.errors import ConfigError
from fl.flower.arrays import read_array
from fl.flower.carried import carried
from fl.flower.records import from_record, layout_of, record_vector
from fl.randomness import SEED_KEY, generator
from fl.vectors.layout import Layout
from fl.vectors.rows import Row, as_row, as_tensor, is_finite

PAYLOAD_KEY = "update"
PAYLOAD_STYPE = "fl.payload"
NOT_FINITE = b""  # the payload of an update that has diverged, which no channel carries
STATE_KEY = "fl.uplink"
_NEXT_KEY = "next-message"


def next_key(name: str = "") -> str:
    """Returns the key of a message's configuration with the number that a payload must have.

    Args:
        name: of the vector beside the model that it is for; "" is the model.
    """
    return f"{_NEXT_KEY}.{name}" if name else _NEXT_KEY


class Uplink:
    """Replaces the model in a reply by the payload of x = w_i - w, w the model that came.

    x has the parameters that the client trains. Buffers, which are few numbers of another size than
    any update, travel beside the payload as they are; frozen parameters, and the second name of
    tied ones, not at all. Vectors beside the model, as SCAFFOLD's, become payloads of their own.
    `fl.strategies.Exchange` undoes it on the server, so that the strategy sees ordinary replies. A
    vector that is not finite is a payload of no bytes.

    The sender's state (residuals, control vectors) is in `Context.state["fl.uplink"]`, and of the
    vector NAME in "fl.uplink.NAME". Random numbers come from the stream (seed, "compression",
    partition-id, message_id), and of the vector NAME from the same with the name at its end.

    Our own ClientApp packs its replies by itself, many clients at once. Anybody's ClientApp takes
    an Uplink as a Flower mod: `ClientApp(mods=[Uplink(channel)])`.

    Args:
        channel: carries the changes.
        layout: of the model, only needed as a mod, and if not all its entries are trained.
        arrays_key: name of the model's record in messages and replies.
        config_key: name of the message's configuration.
        vectors: names of the records of replies that hold a vector beside the model, shape (p,) of
            what clients train, and are compressed as well. One that is empty, and means 0, stays.
    """

    def __init__(
        self,
        channel: Channel,
        layout: Layout | None = None,
        arrays_key: str = "arrays",
        config_key: str = "config",
        vectors: Sequence[str] = (),
    ) -> None:
        self.channel = channel
        self.layout = layout
        self.arrays_key = arrays_key
        self.config_key = config_key
        self.vectors = tuple(vectors)

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Runs the app and packs its reply; a Flower mod."""
        received = message.content.get(self.arrays_key)
        reply = call_next(message, context)
        if not message.metadata.message_type.startswith("train") or not reply.has_content():
            return reply
        if not isinstance(received, ArrayRecord):
            raise ConfigError(f"the message has no ArrayRecord '{self.arrays_key}'")
        layout = layout_of(received) if self.layout is None else self.layout
        reply.content = self.pack(
            layout, from_record(layout, received), reply.content, message, context
        )
        return reply

    def pack(
        self, layout: Layout, w: Row, content: RecordDict, message: Message, context: Context
    ) -> RecordDict:
        """Returns a reply's content with payloads in the place of the model and other vectors.

        Args:
            layout: of the model.
            w: the model that came, shape (d,).
            content: of the reply, with the trained model, or an empty record for the one that came.
            message: the message.
            context: of the client; its state is replaced.

        Raises:
            ConfigError: there is no model of this layout, or the channel refuses its change.
        """
        model = content.get(self.arrays_key)
        if not isinstance(model, ArrayRecord):
            raise ConfigError(f"the reply has no ArrayRecord '{self.arrays_key}'")
        shapes = Shapes.trained(layout)
        packed: dict[str, ArrayRecord] = {}
        if len(model):
            trained = layout.select(as_tensor(from_record(layout, model, finite=False)))
            with np.errstate(over="ignore", invalid="ignore"):
                x = (trained - layout.select(as_tensor(w))).numpy()
            arrays = self._encoded("", x, shapes, message, context)
            arrays.update({entry.name: model[entry.name] for entry in layout.moving_buffers})
            arrays.update(carried(layout, model))
            packed[self.arrays_key] = ArrayRecord(arrays)
        for name in self.vectors:
            record = content.get(name)
            if isinstance(record, ArrayRecord) and len(record):
                vector = record_vector(record, shapes.size, f"record {name!r}", finite=False)
                arrays = self._encoded(name, as_row(vector), shapes, message, context)
                packed[name] = ArrayRecord(arrays)
        return RecordDict({**content, **packed})

    def _encoded(
        self, name: str, x: Row, shapes: Shapes, message: Message, context: Context
    ) -> dict[str, Array]:
        """Returns the payload of a vector, "" the model's change, and keeps the state after it."""
        key = f"{STATE_KEY}.{name}" if name else STATE_KEY
        state = _load(context, key) if key in context.state else self.channel.init(shapes)
        config: Any = message.content.get(self.config_key, {})
        if next_key(name) in config:
            state = self.channel.resume(state, shapes, int(config[next_key(name)]))
        rng = generator(
            int(context.run_config[SEED_KEY]),
            "compression",
            int(context.node_config["partition-id"]),
            message.metadata.message_id,
            *([name] if name else []),
        )
        payload = NOT_FINITE
        if is_finite(x):
            payload, state = self.channel.encode(x, shapes, state, rng)
        if state:
            context.state[key] = ArrayRecord(
                {part: Array(np.asarray(value)) for part, value in state.items()}
            )
        return {PAYLOAD_KEY: Array("uint8", (len(payload),), PAYLOAD_STYPE, payload)}


def _load(context: Context, key: str = STATE_KEY) -> State:
    record = context.state[key]
    if not isinstance(record, ArrayRecord):
        raise ConfigError(
            f"Context.state['{key}'] is a {type(record).__name__}, not an ArrayRecord: the "
            "key belongs to the compressor, use another"
        )
    return {name: read_array(array) for name, array in record.items()}
