"""A worker of outer-step training: it keeps its own parameters and sends outer gradients.

The server's part is `fl.strategies.OuterSteps`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

from fl.clients.app.uplink import PAYLOAD_KEY, PAYLOAD_STYPE
from fl.compression import Channel, Shapes
from fl.compression.compressor import State, prefixed, unprefixed
from fl.errors import ConfigError
from fl.flower.arrays import RowArray, read_array
from fl.flower.private import trusted_record
from fl.flower.records import from_record, record_vector, to_record
from fl.randomness import SEED_KEY, generator
from fl.vectors.layout import Layout
from fl.vectors.part import joined
from fl.vectors.rows import Row

STATE_KEY = "fl.island"
GRADIENT_KEY = "gradient"

RESET = "outer-reset"  # the message has the whole model, and the worker begins with it
MERGE = "outer-merge"  # numbers of the fragments that the message has
MIXING = "outer-mixing"  # alpha
SEND = "outer-send"  # numbers of the fragments whose outer gradient the reply shall have
AFRESH = "outer-afresh"  # numbers of the fragments whose compressor starts over

Pattern = Literal["strided", "sequential"]

_BLOCKS_PER_FRAGMENT = 3  # of Streaming DiLoCo


@dataclass(frozen=True)
class Fragments:
    """Which entries of a model are synchronised together.

    A block is what has one number in the names of its entries: "blocks.3.up.weight" belongs to
    block 3. Block l of L goes to fragment l mod P (strided) or floor(l P / L) (sequential). Entries
    outside the blocks, such as embeddings, join fragment 0 (arXiv:2501.18512, section 3.1, whose
    fragments have three blocks each).

    Attributes:
        slices: for each fragment, where it lies in the row.
        shapes: for each fragment, its tensors.
    """

    slices: tuple[tuple[slice, ...], ...]
    shapes: tuple[Shapes, ...]

    @classmethod
    def of(cls, layout: Layout, count: int | None, pattern: Pattern = "strided") -> Fragments:
        """Cuts a model into fragments.

        Args:
            layout: of the model.
            count: P; None takes a fragment for every three blocks, and at least one.
            pattern: how blocks are dealt to fragments.

        Raises:
            ConfigError: there are more fragments than blocks, or an entry is no parameter.
        """
        others = [e.name for e in layout.entries if e.kind not in ("trainable", "tied")]
        others += [e.name for e in layout.statistics]
        if others:
            raise ConfigError(
                f"outer steps are made of differences of parameters, and {others[0]!r} (of "
                f"{len(others)} such entries) is none, or never moves: use a model without "
                "buffers, such as BatchNorm's, and without frozen parameters"
            )
        numbers = [re.search(r"(?:^|\.)(\d+)\.", entry.name) for entry in layout.floats]
        blocks = sorted({int(found[1]) for found in numbers if found})
        if count is None:
            count = max(1, -(-len(blocks) // _BLOCKS_PER_FRAGMENT))
        if count > max(1, len(blocks)):
            raise ConfigError(
                f"fragments is {count}, but the model has {len(blocks)} blocks (entries with one "
                "number in their names): there can be no more fragments than blocks"
            )
        members: list[list[int]] = [[] for _ in range(count)]
        for i, found in enumerate(numbers):
            block = blocks.index(int(found[1])) if found else 0
            if not found:
                fragment = 0
            elif pattern == "strided":
                fragment = block % count
            else:
                fragment = block * count // len(blocks)
            members[fragment].append(i)
        entries = layout.floats
        return cls(
            tuple(
                joined(slice(entries[i].offset, entries[i].offset + entries[i].size) for i in m)
                for m in members
            ),
            tuple(Shapes(tuple(entries[i].shape for i in m)) for m in members),
        )

    def __len__(self) -> int:
        """Returns P."""
        return len(self.slices)

    def take(self, row: Row, p: int) -> Row:
        """Returns fragment p of a row; read-only, a view if it lies in one piece."""
        parts = [row[where] for where in self.slices[p]]
        fragment = parts[0] if len(parts) == 1 else np.concatenate(parts)
        fragment.flags.writeable = False
        return fragment

    def put(self, row: Row, p: int, fragment: Row) -> None:
        """Writes fragment p into a row."""
        start = 0
        for where in self.slices[p]:
            stop = start + where.stop - where.start
            row[where] = fragment[start:stop]
            start = stop


class Island:
    """Uplink and downlink of a TrainingApp that trains from its own parameters.

    A message with "outer-reset" has the model, with which the worker begins. Any other has
    fragments of the outer parameters, possibly none; the worker goes on from

        theta_m <- alpha theta_m + (1 - alpha) theta

    for these, and from its own parameters for the rest. After its steps it replies with the
    fragments of "outer-send". Without a channel it sends its parameters, which are as many bytes
    as their difference and leave the subtraction to whoever knows theta. With one it sends

        Q(Delta),    Delta = theta - theta_m

    where theta is what it was last given, whatever alpha. With client=gradient, Delta is the
    gradient.

    Kept in `Context.state["fl.island"]`: theta_m and, for a channel, theta, shape (d,) each, and
    the sender's state for every fragment, which starts over with the worker, or when a message says
    so ("outer-afresh").

    Args:
        fragments: P; None as in `Fragments.of`.
        pattern: how blocks are dealt to fragments.
        channel: of outer gradients; None sends float32.
        arrays_key: name of the record in messages and replies.
        config_key: name of the message's configuration.
    """

    def __init__(
        self,
        fragments: int | None = 1,
        pattern: Pattern = "strided",
        channel: Channel | None = None,
        arrays_key: str = "arrays",
        config_key: str = "config",
    ) -> None:
        self.fragments = fragments
        self.pattern: Pattern = pattern
        self.channel = channel
        self.arrays_key = arrays_key
        self.config_key = config_key

    def open(
        self, layout: Layout, content: RecordDict, context: Context
    ) -> tuple[RecordDict, dict[str, ArrayRecord]]:
        """Returns a message's content with theta_m in it, and the records the worker keeps.

        Args:
            layout: of the model.
            content: of the message; not changed.
            context: of the client; not changed.

        Raises:
            ConfigError: the message is malformed, or builds on parameters that the worker lacks.
        """
        cut = Fragments.of(layout, self.fragments, self.pattern)
        record, config = self._parts(content)
        states: State = {}
        if config.get(RESET):
            live = theta = from_record(layout, record)
        else:
            kept_live, kept_theta, states = self._kept(context)
            for p in _numbers(config, AFRESH, len(cut)):
                for name in unprefixed(str(p), states):
                    del states[f"{p}.{name}"]
            live, theta = np.array(kept_live), np.array(kept_theta)
            alpha = np.float32(config.get(MIXING, 0.0))
            for p in _numbers(config, MERGE, len(cut)):
                outer = fragment_of(record, p, cut.shapes[p].size)
                mixed = outer
                if alpha:
                    mixed = alpha * cut.take(live, p) + (1 - alpha) * outer
                cut.put(live, p, mixed)
                cut.put(theta, p, outer)
            live.flags.writeable = theta.flags.writeable = False
        opened = RecordDict({**content, self.arrays_key: to_record(layout, live, {})})
        return opened, {STATE_KEY: self._record(live, theta, states)}

    def pack(
        self, layout: Layout, w: Row, content: RecordDict, message: Message, context: Context
    ) -> RecordDict:
        """Returns a reply's content with fragments in the place of the model.

        Args:
            layout: of the model.
            w: theta_m before the steps.
            content: of the reply, with theta_m after them.
            message: the message.
            context: of the client; its state is replaced.

        Raises:
            ConfigError: the message is malformed.
        """
        cut = Fragments.of(layout, self.fragments, self.pattern)
        record, _ = self._parts(content)
        _, config = self._parts(message.content)
        live = from_record(layout, record, finite=False)
        _, theta, states = self._kept(context)
        records: dict[str, Any] = dict(content)
        gradient = records.pop(GRADIENT_KEY, None)
        g: Row | None = None
        if isinstance(gradient, ArrayRecord):
            vector = record_vector(gradient, layout.num_trainable, "the gradient", finite=False)
            g = vector.numpy()
        arrays: dict[str, Array] = {}
        for p in _numbers(config, SEND, len(cut)):
            sent = cut.take(live if g is None else g, p)
            if self.channel is None:
                arrays[f"{PAYLOAD_KEY}.{p}"] = RowArray(sent, 0, sent.shape)
                continue
            delta = np.ascontiguousarray(cut.take(theta, p) - sent if g is None else sent)
            # One that diverged sends nothing, and the server does without it.
            if np.isfinite(delta).all():
                payload, state = self._encoded(delta, cut.shapes[p], p, states, message, context)
                arrays[f"{PAYLOAD_KEY}.{p}"] = payload
                states.update(prefixed(str(p), state))
        context.state[STATE_KEY] = self._record(live, theta, states)
        records[self.arrays_key] = ArrayRecord(arrays)
        return RecordDict(records)

    def _encoded(
        self,
        delta: Row,
        shapes: Shapes,
        p: int,
        states: State,
        message: Message,
        context: Context,
    ) -> tuple[Array, State]:
        """Returns the payload of fragment p, and the sender's state after it."""
        assert self.channel is not None
        rng = generator(
            int(context.run_config[SEED_KEY]),
            "compression",
            int(context.node_config["partition-id"]),
            message.metadata.message_id,
            p,
        )
        state = unprefixed(str(p), states) or self.channel.init(shapes)
        payload, state = self.channel.encode(delta, shapes, state, rng)
        return Array("uint8", (len(payload),), PAYLOAD_STYPE, payload), state

    def _parts(self, content: RecordDict) -> tuple[ArrayRecord, Mapping[str, Any]]:
        record = content.get(self.arrays_key)
        if not isinstance(record, ArrayRecord):
            raise ConfigError(
                f"there is no ArrayRecord '{self.arrays_key}', only {sorted(content)}"
            )
        config: Any = content.get(self.config_key, {})
        return record, config

    def _kept(self, context: Context) -> tuple[Row, Row, State]:
        record = context.state.get(STATE_KEY)
        if not isinstance(record, ArrayRecord):
            raise ConfigError(
                "this worker has no parameters of its own, because it is new or has crashed, and "
                "the message brings none: the server must send the whole model first"
            )
        kept: State = {name: read_array(array) for name, array in record.items()}
        live = kept.pop("live")
        return live, kept.pop("theta", live), kept

    def _record(self, live: Row, theta: Row, states: State) -> ArrayRecord:
        rows = {"live": live} if self.channel is None else {"live": live, "theta": theta}
        arrays: dict[str, Array] = {name: RowArray(row, 0, row.shape) for name, row in rows.items()}
        arrays.update({name: Array(np.asarray(value)) for name, value in states.items()})
        return ArrayRecord(arrays)


def fragment_of(record: ArrayRecord, p: int, size: int) -> Row:
    """Returns fragment p of a record, shape (size,), float32, read-only.

    Raises:
        ConfigError: it is missing, of another form, or not finite.
    """
    name = f"{PAYLOAD_KEY}.{p}"
    array = record.get(name)
    if array is None:
        raise ConfigError(f"fragment {p} is missing among {len(record)} arrays")
    # The receiver knows the length; what the array says of its own is only compared with it.
    return from_record(Layout.of_vector(name, size), trusted_record(ArrayRecord, {name: array}))


def fragment_record(fragments: Mapping[int, Row]) -> ArrayRecord:
    """Returns a record of fragments, by their numbers; they must not be changed afterwards."""
    return ArrayRecord(
        {f"{PAYLOAD_KEY}.{p}": RowArray(row, 0, row.shape) for p, row in fragments.items()}
    )


def _numbers(config: Mapping[str, Any], key: str, count: int) -> list[int]:
    value = config.get(key, [])
    if not isinstance(value, list) or any(
        isinstance(p, bool) or not isinstance(p, int) or not 0 <= p < count for p in value
    ):
        raise ConfigError(
            f"the message's {key!r} is {value!r}; it must list fragments below {count}"
        )
    return list(value)
