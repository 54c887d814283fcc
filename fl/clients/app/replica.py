"""A worker that is a replica: it takes the steps that the server tells and sends its gradients."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

from fl.clients.app.uplink import NOT_FINITE, PAYLOAD_KEY, PAYLOAD_STYPE
from fl.compression import PayloadError, Replicated, Shapes
from fl.compression.compressor import State
from fl.errors import ConfigError, NotFinite
from fl.flower.arrays import read_array
from fl.flower.records import from_record, record_vector, to_record
from fl.randomness import SEED_KEY, generator
from fl.vectors.layout import Layout
from fl.vectors.rows import Row

STATE_KEY = "fl.replica"
GRADIENT_KEY = "gradient"


class Replica:
    """Uplink and downlink of a TrainingApp whose rule is `Gradient`.

    The first message is the model; every later one is the server's message of
    `fl.compression.Replicated`, which moves the worker's own x and state. The reply is the worker's
    message. All of it is in `Context.state["fl.replica"]`: `x` and the rule's worker state.

    Args:
        rule: the method.
        arrays_key: name of the record in messages and replies.
    """

    def __init__(self, rule: Replicated, arrays_key: str = "arrays") -> None:
        self.rule = rule
        self.arrays_key = arrays_key

    def open(
        self, layout: Layout, content: RecordDict, context: Context
    ) -> tuple[RecordDict, dict[str, ArrayRecord]]:
        """Returns a message's content with x in it, and the records the worker keeps.

        Args:
            layout: of the model.
            content: of the message; not changed.
            context: of the client; not changed.

        Raises:
            PayloadError: the message is malformed, or of another step than the worker's next.
            ConfigError: the model has entries that are not trained, or there is no record.
        """
        shapes = trained_shapes(layout)
        record = content.get(self.arrays_key)
        if not isinstance(record, ArrayRecord):
            raise ConfigError(f"the message has no ArrayRecord '{self.arrays_key}'")
        payload = record.get(PAYLOAD_KEY)
        if payload is None:
            x, state = from_record(layout, record), self.rule.init_worker(shapes)
        elif payload.stype != PAYLOAD_STYPE:
            raise PayloadError(f"the payload is of stype '{payload.stype}', not '{PAYLOAD_STYPE}'")
        else:
            x, state = self._kept(context)
            x, state = self.rule.apply(x, payload.data, shapes, state)
        x.flags.writeable = False
        opened = RecordDict({**content, self.arrays_key: to_record(layout, x, {})})
        return opened, {STATE_KEY: _record(x, state)}

    def pack(
        self, layout: Layout, w: Row, content: RecordDict, message: Message, context: Context
    ) -> RecordDict:
        """Returns a reply's content with the worker's message in the place of model and gradient.

        Args:
            layout: of the model.
            w: the worker's x.
            content: of the reply, with the gradient.
            message: the message.
            context: of the client; its state is replaced.

        A gradient that is not finite is a message of no bytes.

        Raises:
            ConfigError: there is no gradient.
        """
        record = content.get(GRADIENT_KEY)
        if not isinstance(record, ArrayRecord):
            raise ConfigError(
                f"the reply has no record '{GRADIENT_KEY}': this method needs client=gradient"
            )
        x, state = self._kept(context)
        rng = generator(
            int(context.run_config[SEED_KEY]),
            "compression",
            int(context.node_config["partition-id"]),
            message.metadata.message_id,
        )
        payload = NOT_FINITE
        with suppress(NotFinite):
            g = record_vector(record, layout.num_trainable, "the gradient").numpy()
            payload, state = self.rule.send(g, trained_shapes(layout), state, rng)
        context.state[STATE_KEY] = _record(x, state)
        array = Array("uint8", (len(payload),), PAYLOAD_STYPE, payload)
        records: dict[str, Any] = {**content, self.arrays_key: ArrayRecord({PAYLOAD_KEY: array})}
        del records[GRADIENT_KEY]
        return RecordDict(records)

    def _kept(self, context: Context) -> tuple[Row, State]:
        record = context.state.get(STATE_KEY)
        if not isinstance(record, ArrayRecord):
            raise ConfigError(
                f"this worker of {type(self.rule).__name__} has no memory: it has crashed, or "
                "joined after the first round; every worker must be there from beginning to end"
            )
        state = {name: read_array(array) for name, array in record.items()}
        return state.pop("x"), state


def trained_shapes(layout: Layout) -> Shapes:
    """Returns the shapes of a model all of whose entries are trained.

    Raises:
        ConfigError: it has others, which would drift apart between the workers.
    """
    others = [entry.name for entry in layout.entries if entry.kind != "trainable"]
    if others:
        raise ConfigError(
            f"models are moved by gradients alone, and {others[0]!r} (of {len(others)} entries) "
            "has none of its own: use a model without frozen or tied parameters, and without "
            "buffers, such as BatchNorm's; GroupNorm has none (model.groups=2 of resnet8)"
        )
    return Shapes.of(layout)


def _record(x: Row, state: State) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(v)) for name, v in {"x": x, **state}.items()})
