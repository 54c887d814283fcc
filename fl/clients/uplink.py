"""What a client sends, compressed: the change of the model travels as a payload of real bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from fl.compression import Channel, Shapes
from fl.compression.compressor import State
from fl.errors import ConfigError
from fl.params import Layout, Row, carried, from_record
from fl.randomness import SEED_KEY, generator

PAYLOAD_KEY = "update"
PAYLOAD_STYPE = "fl.payload"
NEXT_KEY = "next-message"
STATE_KEY = "fl.uplink"


class Uplink:
    """Replaces the model in a reply by the payload of x = w_i - w, w the model that came.

    `fl.strategies.Compressed` undoes it on the server, so that the strategy sees ordinary replies.
    The sender's state (residuals, control vectors) is in `Context.state["fl.uplink"]`. Random
    numbers come from the stream (seed, "compression", partition-id, message_id).

    Our own ClientApp packs its replies by itself, many clients at once. Anybody's ClientApp takes
    an Uplink as a Flower mod: `ClientApp(mods=[Uplink(channel)])`.

    Args:
        channel: carries the changes.
        arrays_key: name of the model's record in messages and replies.
        config_key: name of the message's configuration.
    """

    def __init__(
        self, channel: Channel, arrays_key: str = "arrays", config_key: str = "config"
    ) -> None:
        self.channel = channel
        self.arrays_key = arrays_key
        self.config_key = config_key

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Runs the app and packs its reply; a Flower mod."""
        received = message.content.get(self.arrays_key)
        reply = call_next(message, context)
        if not message.metadata.message_type.startswith("train") or not reply.has_content():
            return reply
        if not isinstance(received, ArrayRecord):
            raise ConfigError(f"the message has no ArrayRecord '{self.arrays_key}'")
        layout = Layout.of_record(received)
        reply.content = self.pack(
            layout, from_record(layout, received), reply.content, message, context
        )
        return reply

    def pack(
        self, layout: Layout, w: Row, content: RecordDict, message: Message, context: Context
    ) -> RecordDict:
        """Returns a reply's content with the payload in the place of the model.

        Args:
            layout: of the model.
            w: the model that came, shape (d,).
            content: of the reply, with the trained model.
            message: the message.
            context: of the client; its state is replaced.

        Raises:
            ConfigError: the change of the model is not finite, or the channel refuses it.
        """
        model = content.get(self.arrays_key)
        if not isinstance(model, ArrayRecord):
            raise ConfigError(f"the reply has no ArrayRecord '{self.arrays_key}'")
        x = np.ascontiguousarray(from_record(layout, model, finite=False) - w, dtype=np.float32)
        shapes = Shapes.of(layout)
        state = _load(context) if STATE_KEY in context.state else self.channel.init(shapes)
        config: Any = message.content.get(self.config_key, {})
        if NEXT_KEY in config:
            state = self.channel.resume(state, shapes, int(config[NEXT_KEY]))
        rng = generator(
            int(context.run_config[SEED_KEY]),
            "compression",
            int(context.node_config["partition-id"]),
            message.metadata.message_id,
        )
        payload, state = self.channel.encode(x, shapes, state, rng)
        if state:
            context.state[STATE_KEY] = ArrayRecord(
                {name: Array(np.asarray(value)) for name, value in state.items()}
            )
        arrays = {PAYLOAD_KEY: Array("uint8", (len(payload),), PAYLOAD_STYPE, payload)}
        arrays.update(carried(layout, model))
        return RecordDict({**content, self.arrays_key: ArrayRecord(arrays)})


def _load(context: Context) -> State:
    record = context.state[STATE_KEY]
    if not isinstance(record, ArrayRecord):
        raise ConfigError(
            f"Context.state['{STATE_KEY}'] is a {type(record).__name__}, not an ArrayRecord: the "
            "key belongs to the compressor, use another"
        )
    return {name: array.numpy() for name, array in record.items()}
