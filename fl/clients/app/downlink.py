"""What a client receives, decompressed: the model comes as payloads of real bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from numpy.typing import NDArray

from fl.clients.app.uplink import PAYLOAD_KEY, PAYLOAD_STYPE
from fl.compression import Channel, PayloadError, Shapes, receive_parts
from fl.compression.compressor import State
from fl.errors import ConfigError
from fl.flower.arrays import RowArray, read_array
from fl.flower.carried import carried
from fl.flower.records import to_record, vector_record
from fl.vectors.layout import Layout
from fl.vectors.rows import Row, as_tensor

VERSION_KEY = "version"
STATE_KEY = "fl.downlink"
_KEEP = 4  # of what was decoded, of each vector

Decoded = tuple[State, tuple[bytes, ...], int, Row, State]


class Downlink:
    """Puts the model into the place of the payloads that `fl.strategies.Exchange` sent for it.

    What comes is decoded to the model all clients of the round hold (`fl.compression.Broadcast`),
    and the client's copy of it is kept in `Context.state["fl.downlink"]` where the method has one.
    Vectors beside the model come as payloads of their own, and the copy of the vector NAME is in
    "fl.downlink.NAME". Decoding depends on the message and that copy alone, so clients with equal
    ones share the work.

    Our own ClientApp opens its messages by itself, many clients at once. Anybody's ClientApp takes
    a Downlink as a Flower mod, outside an Uplink: `ClientApp(mods=[Downlink(channel, layout),
    Uplink(channel)])`.

    Args:
        channel: carries the model; see `fl.compression.check_broadcast`.
        layout: of the model, which payloads do not describe; only needed as a mod.
        arrays_key: name of the model's record in messages.
        vectors: names of the records that hold a vector beside the model, shape (p,) of what
            clients train, and are compressed as well, in messages that have them.
    """

    def __init__(
        self,
        channel: Channel,
        layout: Layout | None = None,
        arrays_key: str = "arrays",
        vectors: Sequence[str] = (),
    ) -> None:
        self.channel = channel
        self.layout = layout
        self.arrays_key = arrays_key
        self.vectors = tuple(vectors)
        self._decoded: dict[str, deque[Decoded]] = {
            name: deque(maxlen=_KEEP) for name in ("", *self.vectors)
        }

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Opens the message and runs the app; a Flower mod."""
        if self.arrays_key in message.content:
            if self.layout is None:
                raise ConfigError("a Downlink that is a mod needs the layout: Layout.of(model)")
            message.content, kept = self.open(self.layout, message.content, context)
            context.state.update(kept)
        return call_next(message, context)

    def open(
        self, layout: Layout, content: RecordDict, context: Context
    ) -> tuple[RecordDict, dict[str, ArrayRecord]]:
        """Returns a message's content with model and vectors in it, and what the client keeps.

        Args:
            layout: of the model.
            content: of the message; not changed.
            context: of the client; not changed.

        Raises:
            PayloadError: a payload is malformed, or does not fit what the client holds.
            ConfigError: there is no payload.

        Returns:
            The content, and the records to put into the client's `Context.state`.
        """
        kept: dict[str, ArrayRecord] = {}
        packed = _packed(content, self.arrays_key)
        row = self._received("", packed, Shapes.of(layout), context, kept)
        opened = {self.arrays_key: to_record(layout, row, carried(layout, packed))}
        for name in self.vectors:
            if name in content:
                packed = _packed(content, name)
                row = self._received(name, packed, Shapes.trained(layout), context, kept)
                opened[name] = vector_record(as_tensor(row))
        return RecordDict({**content, **opened}), kept

    def _received(
        self,
        name: str,
        record: ArrayRecord,
        shapes: Shapes,
        context: Context,
        kept: dict[str, ArrayRecord],
    ) -> Row:
        """Returns a vector, "" the model, and notes what the client keeps of it."""
        version = int.from_bytes(_payload(record, VERSION_KEY, 4), "little")
        count = sum(key.startswith(f"{PAYLOAD_KEY}.") for key in record)
        parts = tuple(_payload(record, f"{PAYLOAD_KEY}.{i}") for i in range(count))
        key = f"{STATE_KEY}.{name}" if name else STATE_KEY
        before = self._state(shapes, context, key)
        row, state = self._decode(self._decoded[name], shapes, before, parts, version)
        if state:
            arrays = {part: _array(np.asarray(value)) for part, value in state.items()}
            kept[key] = ArrayRecord(arrays)
        return row

    def _decode(
        self,
        decoded: deque[Decoded],
        shapes: Shapes,
        state: State,
        parts: tuple[bytes, ...],
        version: int,
    ) -> tuple[Row, State]:
        for before, known, number, row, after in decoded:
            if number == version and known == parts and _equal(before, state):
                return row, after
        row, after = receive_parts(self.channel, shapes, state, parts, version)
        row.flags.writeable = False
        decoded.append((state, parts, version, row, after))
        return row, after

    def _state(self, shapes: Shapes, context: Context, key: str = STATE_KEY) -> State:
        if key not in context.state:
            return self.channel.init_receiver(shapes)
        record = context.state[key]
        if not isinstance(record, ArrayRecord):
            raise ConfigError(
                f"Context.state['{key}'] is a {type(record).__name__}, not an ArrayRecord: "
                "the key belongs to the downlink, use another"
            )
        return {name: read_array(array) for name, array in record.items()}


def is_compressed(content: RecordDict, arrays_key: str = "arrays") -> bool:
    """Returns whether a message's model is one that a `Downlink` can open."""
    record = content.get(arrays_key)
    return isinstance(record, ArrayRecord) and VERSION_KEY in record


def _packed(content: RecordDict, key: str) -> ArrayRecord:
    record = content.get(key)
    if not isinstance(record, ArrayRecord) or VERSION_KEY not in record:
        raise ConfigError(
            f"the message has nothing compressed in '{key}': the server must use an "
            "fl.strategies.Exchange with the same downlink"
        )
    return record


def _array(value: NDArray[Any]) -> Array:
    if value.dtype != np.float32:
        return Array(value)
    value.flags.writeable = False
    return RowArray(value.reshape(-1), 0, value.shape)  # clients with equal models share one


def _equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(a[k] is b[k] or np.array_equal(a[k], b[k]) for k in a)


def _payload(record: ArrayRecord, name: str, length: int | None = None) -> bytes:
    array = record.get(name)
    if array is None or array.stype != PAYLOAD_STYPE or not isinstance(array.data, bytes):
        raise PayloadError(f"'{name}' is missing, or not of stype '{PAYLOAD_STYPE}'")
    if length is not None and len(array.data) != length:
        raise PayloadError(f"'{name}' has {len(array.data)} bytes, not {length}")
    return array.data
