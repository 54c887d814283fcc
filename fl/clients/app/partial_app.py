"""One ClientApp for the whole model and its parts: each message goes to the app of its size."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fl.clients.app.inbox import ARRAYS_KEY
from fl.clients.app.masks import masks_record, read_masks
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
from fl.submodels import MASKS_KEY, Size, SubModel, masked, resized
from fl.vectors.layout import Layout
from fl.vectors.rows import as_tensor


@dataclass(frozen=True, eq=False)
class _Read:
    """A message's content, as the app of its part takes it.

    Attributes:
        app: trains the part.
        key: what the messages to that app share.
        payload: the content, with the whole model in the place of single numbers.
        part: which numbers these are; None without.
    """

    app: TrainingApp
    key: Hashable
    payload: Payload
    part: SubModel | None = None


class PartialApp(ClientApp, PlannedApp):
    """Trains the part of a model that a message brings, at the cost of the part.

    Smaller tensors of the model's names are a smaller model: an app of that size trains it, so
    time, memory and bytes are those of that. Where single numbers of a tensor are left out, those
    that came are put among zeros, which stay zeros (`fl.clients.Masked`), and go back alone.

    What a part's rule or a compressed link keeps in `Context.state` is of that part.

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
            return self._filled(payload.content, record)
        size = tuple(tuple(record[entry.name].shape) for entry in layout.entries)
        return _Read(self.of(size), size, payload)

    def _filled(self, content: RecordDict, record: ArrayRecord) -> _Read:
        """Returns a content with the whole model, whose missing numbers are 0, and the mask."""
        layout, masks = self.whole.layout, content[MASKS_KEY]
        part = masked(layout, read_masks(layout, masks))
        zeros = np.zeros(layout.size, np.float32)
        row = part.put(zeros, from_record(part.layout, record))
        ones = part.put(zeros, np.ones(len(part.positions), np.float32))
        whole = {
            **{key: value for key, value in content.items() if key != MASKS_KEY},
            ARRAYS_KEY: to_record(layout, row, carried(layout, record)),
            MASK_KEY: vector_record(layout.select(as_tensor(ones))),
        }
        return _Read(self.masked, MASKS_KEY, Payload(content_of(whole), 0), part)

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
        reads: list[_Read] = [request.payload.read_by(self) for request in requests]
        inner = [
            replace(request, payload=read.payload)
            for request, read in zip(requests, reads, strict=True)
        ]
        results = reads[0].app.train_many(inner, run)
        for result, read in zip(results, reads, strict=True):
            if read.part is not None and result.content is not None:
                result.content = self._cut(result.content, read.part)
        return results

    def _answer(self, message: Message, context: Context) -> Message:
        read = self.read(message.content)
        reply: Message = read.app(with_content(message, read.payload.content), context)
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
            vector = record_vector(scores, layout.num_trainable, "the scores")
            others[SCORES_KEY] = sparse_record(vector)
        model = content.get(ARRAYS_KEY)
        if not isinstance(model, ArrayRecord) or not len(model):
            return content_of(others)
        row = part.of(from_record(layout, model, finite=False))
        others[ARRAYS_KEY] = to_record(part.layout, row, carried(layout, model))
        return content_of(others)


def _size(layout: Layout) -> Size:
    return tuple(entry.shape for entry in layout.entries)
