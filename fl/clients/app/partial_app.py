"""One ClientApp for the whole model and its parts: each message goes to the app of its size."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fl.clients.app.inbox import ARRAYS_KEY, CONFIG_KEY, MEMORY_KEY
from fl.clients.app.masks import masks_record, read_masks
from fl.clients.app.message_config import read_int
from fl.clients.app.training_app import TrainingApp
from fl.clients.masked import MASK_KEY, Masked
from fl.clients.pruning import SCORES_KEY
from fl.clients.rule import Rule
from fl.errors import ConfigError
from fl.execution.contract import Payload, PlannedApp, Request, Result, RunInfo, Workload
from fl.flower.carried import carried
from fl.flower.content import content_of
from fl.flower.messages import with_content
from fl.flower.records import from_record, record_vector, sparse_record, to_record, vector_record
from fl.submodels import MASK_NUMBER_KEY, MASKS_KEY, Size, SubModel, masked, resized
from fl.vectors.layout import Layout
from fl.vectors.rows import Row, as_tensor

_MASK_STATE, _NUMBER_STATE = "fl.mask", "fl.mask-number"  # records of a client's Context.state
_NUMBER = "number"
_SIZE_STATE, _NUMBERS = "fl.part", "numbers"  # of the part that the rule's memory is of


@dataclass(frozen=True, eq=False)
class _Read:
    """A message's content, as the app of its part takes it.

    Attributes:
        app: trains the part.
        key: what the messages to that app share.
        payload: the content, with the whole model in the place of single numbers.
        part: which numbers these are; None without.
        recalls: whether the client has to know: until then all numbers of `payload` are 0.
    """

    app: TrainingApp
    key: Hashable
    payload: Payload
    part: SubModel | None = None
    recalls: bool = False


class PartialApp(ClientApp, PlannedApp):
    """Trains the part of a model that a message brings, at the cost of the part.

    Smaller tensors of the model's names are a smaller model: an app of that size trains it, so
    time, memory and bytes are those of that. Where single numbers of a tensor are left out, those
    that came are put among zeros, which stay zeros (`fl.clients.Masked`), and go back alone.

    What a part's rule or a compressed link keeps in `Context.state` is of that part. Where a client
    evaluates what training makes of a model of another size, its rule begins as in a first task.

    Args:
        whole: the app of the whole model.
        make: makes the app of another module, by keyword: `model`, and as of `TrainingApp` `rule`
            and `correction` where they are to be others.
        structure: the whole model; its values are not used.
        least: shapes of the smallest part that a client may get, by which its memory is judged.
        scaled: divide what layers return by the share of their units, see `fl.submodels.resized`.
        masking: makes of the whole app's rule that of parts which lack single numbers.
        masked_structure: the model that trains them, of the same entries; None is `structure`.
    """

    def __init__(
        self,
        whole: TrainingApp,
        make: Callable[..., TrainingApp],
        structure: nn.Module,
        least: Size,
        *,
        scaled: bool = False,
        masking: Callable[[Rule], Rule] = Masked,
        masked_structure: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.whole = whole
        self._masking = masking
        self._masked_structure = structure if masked_structure is None else masked_structure
        self._make = make
        self._structure = structure
        self._scaled = scaled
        self._least = least
        self._apps: dict[Size, TrainingApp] = {_size(whole.layout): whole}
        self.train()(self._answer)
        self.evaluate()(self._answer)
        self.query()(self._answer)

    @property
    def has_mods(self) -> bool:
        """Whether Flower mods see its messages."""
        return self.whole.has_mods

    def memory_bytes(self) -> int:
        """Returns the memory that the smallest part needs, in bytes."""
        if self._masking is not Masked:  # all parts lack numbers, and train by that app
            return self.masked.memory_bytes()
        return self.memory_of(self._least)

    def memory_of(self, size: Size) -> int:
        """Returns the memory that training takes with tensors of these shapes, in bytes."""
        return self.of(size).memory_bytes()

    def of(self, size: Size) -> TrainingApp:
        """Returns the app of a part with these shapes, in the order of the layout.

        Raises:
            ConfigError: no part has these.
        """
        if size not in self._apps:
            model = resized(self._structure, self.whole.layout, size, scaled=self._scaled)
            self._apps[size] = self._make(model=model)
        return self._apps[size]

    def read(self, content: RecordDict) -> _Read:
        """Returns what a message's content says.

        Raises:
            ConfigError: it has a part that is none of this model.
        """
        return self._opened(Payload(content, 0))

    def _opened(self, payload: Payload) -> _Read:
        record = payload.content.get(ARRAYS_KEY)
        layout = self.whole.layout
        if not isinstance(record, ArrayRecord) or set(record) != layout.names:
            return _Read(self.whole, None, payload)  # which says what is wrong, if it is
        if MASKS_KEY in payload.content:
            return self._filled(payload.content, record, payload.content[MASKS_KEY])
        if _number(payload.content) is not None:
            nothing = np.zeros(layout.size, np.float32)
            content = self._with(payload.content, nothing, nothing, carried(layout, record))
            return _Read(self.masked, MASKS_KEY, Payload(content, 0), recalls=True)
        size = tuple(tuple(record[entry.name].shape) for entry in layout.entries)
        return _Read(self.of(size), size, payload)

    def _filled(self, content: RecordDict, record: ArrayRecord, masks: Any) -> _Read:
        """Returns a content with the whole model, whose missing numbers are 0, and the mask."""
        layout = self.whole.layout
        part = masked(layout, read_masks(layout, masks))
        zeros = np.zeros(layout.size, np.float32)
        row = part.put(zeros, from_record(part.layout, record))
        ones = part.put(zeros, np.ones(len(part.positions), np.float32))
        whole = self._with(content, row, ones, carried(layout, record))
        return _Read(self.masked, MASKS_KEY, Payload(whole, 0), part)

    def _with(
        self, content: RecordDict, row: Row, mask: Row, others: dict[str, Array]
    ) -> RecordDict:
        """Returns a content with a model and the mask, shape (d,) each, as masked rules take it."""
        layout = self.whole.layout
        items = {
            **{key: value for key, value in content.items() if key != MASKS_KEY},
            ARRAYS_KEY: to_record(layout, row, others),
            MASK_KEY: vector_record(layout.select(as_tensor(mask))),
        }
        return content_of(items)

    def _recalled(self, content: RecordDict, state: RecordDict | None) -> _Read:
        """Returns what a message says to a client that keeps the mask.

        Raises:
            ConfigError: it keeps another, or none.
        """
        number = _number(content)
        kept: Any = {} if state is None else state.get(_NUMBER_STATE, {})
        if state is None or _MASK_STATE not in state or kept.get(_NUMBER) != number:
            raise ConfigError(
                f"the message has mask {number} without its places, and the client keeps mask "
                f"{kept.get(_NUMBER)}: the server sends them to whoever has not answered to it"
            )
        record: Any = content[ARRAYS_KEY]
        return self._filled(content, record, state[_MASK_STATE])

    def _kept(self, content: RecordDict) -> dict[str, Any]:
        """Returns what a client keeps of a message: a mask that it is to know next time."""
        number = _number(content)
        if number is None or MASKS_KEY not in content:
            return {}
        return {_MASK_STATE: content[MASKS_KEY], _NUMBER_STATE: ConfigRecord({_NUMBER: number})}

    @cached_property
    def masked(self) -> TrainingApp:
        """The app of parts that lack single numbers."""
        rule = self._masking(self.whole.rule)
        return self._make(model=self._masked_structure, rule=rule, correction=None)

    def plan(
        self, payload: Payload, message_type: str, partition: int, seconds_per_flop: float
    ) -> Workload:
        """Returns what a message's work costs: that of its part."""
        read: _Read = payload.read_by(self)
        workload = read.app.plan(read.payload, message_type, partition, seconds_per_flop)
        return workload if read.part is None else replace(workload, reply_bytes=None)

    def batch_key(self, request: Request, run: RunInfo) -> Hashable | None:
        """Returns the part's size and its app's key; None if the request is answered alone."""
        try:
            read: _Read = request.payload.read_by(self)
        except ConfigError:
            return None
        key = read.app.batch_key(replace(request, payload=read.payload), run)
        return None if key is None else (read.key, key)

    def trains(self, request: Request) -> bool:
        """Returns whether the part's app trains the request."""
        return request.payload.read_by(self).app.trains(request)  # type: ignore[no-any-return]

    def train_many(self, requests: Sequence[Request], run: RunInfo) -> list[Result]:
        """Returns the results of requests with parts of one size; see `TrainingApp.train_many`."""
        reads: list[_Read] = []
        recalled: dict[tuple[int, int], _Read] = {}  # clients may share what they keep
        for request in requests:
            read: _Read = request.payload.read_by(self)
            if read.recalls:
                content, state = request.payload.content, request.state or RecordDict()
                key = (id(content), id(state.get(_MASK_STATE)))
                if key not in recalled:
                    recalled[key] = self._recalled(content, state)
                read = recalled[key]
            reads.append(read)
        inner = [
            replace(request, payload=read.payload)
            for request, read in zip(requests, reads, strict=True)
        ]
        results = reads[0].app.train_many(inner, run)
        for result, read, request in zip(results, reads, requests, strict=True):
            if read.part is not None and result.content is not None:
                result.content = self._cut(result.content, read.part)
            kept = {**self._kept(request.payload.content), **_size_kept(read.app, result.state)}
            if kept:
                result.state = RecordDict({**(result.state or {}), **kept})
        return results

    def _answer(self, message: Message, context: Context) -> Message:
        read = self.read(message.content)
        if read.recalls:
            read = self._recalled(message.content, context.state)
        opened = with_content(message, read.payload.content)
        if _is_of_another(read.app, context.state):
            memory = context.state.pop(MEMORY_KEY)
            reply: Message = read.app(opened, context)
            context.state[MEMORY_KEY] = memory
        else:
            reply = read.app(opened, context)
            context.state.update(_size_kept(read.app, context.state))
        context.state.update(self._kept(message.content))
        if read.part is not None and reply.has_content():
            reply.content = self._cut(reply.content, read.part)
        return reply

    def _cut(self, content: RecordDict, part: SubModel) -> RecordDict:
        """Returns a reply's content with those numbers alone that the client holds.

        Where the client has changed its mask, that goes with them; of what numbers are to be grown
        by, zeros do not travel.
        """
        layout, others = self.whole.layout, dict(content)
        mask, scores = others.pop(MASK_KEY, None), others.get(SCORES_KEY)
        changed = None
        if isinstance(mask, ArrayRecord) and len(mask):
            changed = record_vector(mask, layout.num_trainable, "the mask").numpy()
        if changed is not None and changed.any():  # nothing, of a client that did no step
            held = layout.with_trained(np.ones(layout.size, np.float32), changed)
            places = {e.name: slice(e.offset, e.offset + e.size) for e in layout.floats}
            part = masked(layout, {name: held[places[name]] > 0 for name in part.bitmaps})
            others[MASKS_KEY] = masks_record(part.bitmaps)
        if isinstance(scores, ArrayRecord) and len(scores):
            vector = record_vector(scores, layout.num_trainable, "the scores", finite=False)
            others[SCORES_KEY] = sparse_record(vector)
        model = content.get(ARRAYS_KEY)
        if not isinstance(model, ArrayRecord) or not len(model):
            return content_of(others)
        row = part.of(from_record(layout, model, finite=False))
        others[ARRAYS_KEY] = to_record(part.layout, row, carried(layout, model))
        return content_of(others)


def _number(content: RecordDict) -> int | None:
    """Returns the number of the mask that a message's part has, if it says one."""
    return read_int(content.get(CONFIG_KEY, {}), MASK_NUMBER_KEY, least=0)


def _size_kept(app: TrainingApp, state: RecordDict | None) -> dict[str, Any]:
    """Returns of which size the memory in a state is, if there is one."""
    if state is None or MEMORY_KEY not in state:
        return {}
    return {_SIZE_STATE: ConfigRecord({_NUMBERS: app.layout.size})}


def _is_of_another(app: TrainingApp, state: RecordDict) -> bool:
    """Returns whether the memory in a state is of another part than an app's."""
    record: Any = state.get(_SIZE_STATE, {})
    return MEMORY_KEY in state and record.get(_NUMBERS, app.layout.size) != app.layout.size


def _size(layout: Layout) -> Size:
    return tuple(entry.shape for entry in layout.entries)
