"""The ClientApp of a machine that holds one stage of a model, of which it knows no more.

The server's part is `fl.strategies.Pipeline`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fl.clients.app.examples import ExamplePool
from fl.clients.app.inbox import CONFIG_KEY, read_partition
from fl.clients.app.message_config import read_int
from fl.clients.app.outbox import METRICS_KEY
from fl.clients.app.training_app import TrainingApp
from fl.data.drift import DRIFT_BEGINS
from fl.errors import ConfigError
from fl.execution.contract import Payload, PlannedApp, Request, Result, RunInfo, Workload
from fl.flower.arrays import read_array
from fl.flower.content import content_of
from fl.flower.private import trusted_record
from fl.flower.records import VECTOR, record_vector, tensors_record, vector_record
from fl.models import per_example_loss
from fl.randomness import SEED_KEY, generator, global_generators
from fl.stages import Cut
from fl.vectors.layout import Layout
from fl.vectors.rows import as_tensor

Kind = Literal["hold", "forward", "turn", "backward", "give"]
"""What a message asks; see `StageApp`."""

WORK_KEY = "stage-work"
STAGE_KEY = "stage"
SPAN_KEY = "span"
MICRO_BATCH_KEY = "micro-batch"
MICRO_BATCHES_KEY = "micro-batches"
STEP_KEY = "step"
ALSO_KEY = "also-forward"

WEIGHTS_KEY = "weights"
ACTIVATIONS_KEY = "activations"
LABELS_KEY = "labels"
GRADIENT_KEY = "gradient"

_WEIGHTS, _GRADIENT, _INPUT = "fl.stage.weights", "fl.stage.gradient", "fl.stage.input"


@dataclass(frozen=True, eq=False)
class StageOrder:
    """What a message asks of a stage.

    Attributes:
        kind: of the work.
        also: spans whose forward pass is computed as well, for whoever might lose them.
        records: of arrays in the message.
        stage: that the client holds.
        span: number of the span to run.
        micro_batch: number in the step, m.
        micro_batches: of a pipeline in a step, M.
        step: t, from 0.
    """

    kind: Kind
    also: tuple[int, ...]
    records: Mapping[str, ArrayRecord]
    stage: int
    span: int
    micro_batch: int
    micro_batches: int
    step: int


class StageApp(ClientApp, PlannedApp):
    """Answers messages that make a client hold a stage, and run it.

    - `hold`: the client has the stage in "weights" from now on, and nothing else.
    - `forward`: runs a span, on the activations in the message or, of the first one, on a
      micro-batch of the client's own examples; replies with the activations. The inputs are kept
      for the backward pass, which computes the forward pass again (GPipe, arXiv:1811.06965), so
      that a machine keeps of a micro-batch no more than its inputs.
    - `turn`: runs the last span, takes the mean loss, and goes back: replies with the gradient of
      the activations. Labels are the client's own if it has the first span as well, else the
      message's, to which the first machine's reply had them.
    - `backward`: replies with the gradient of the span's inputs, given that of its outputs; of the
      first span, with nothing.
    - `give`: replies with the mean gradient of the stage's parameters over the micro-batches that
      have gone back.

    Micro-batch m of step t has the examples (t M + m) b to (t M + m + 1) b of the client's, in the
    order of the stream (seed, "micro-batches", partition-id, epoch), b being `batch_size`, or all
    the client's if it has fewer. What a model draws (dropout) comes from (seed, "dropout",
    partition-id, step, micro-batch, span), both times.

    A client that holds no stage, as after a crash, sends nothing back.

    Kept in `Context.state`: "fl.stage.weights" and "fl.stage.gradient", shape (d_i,) each, and
    "fl.stage.input.k.m", the inputs of span k.

    Args:
        app: has data, device, sizes of batches, and whether clients learn at all. Those that do not
            send zeros of the right shapes, at the cost of the work.
        cut: the stages.
        layouts: of the stages' entries.
    """

    def __init__(self, app: TrainingApp, cut: Cut, layouts: Sequence[Layout]) -> None:
        super().__init__()
        self.app = app
        self.cut = cut
        self.layouts = layouts
        self._pool = ExamplePool(app.data, app.device)
        self.train()(self._answer)
        self.query()(app)

    @property
    def has_mods(self) -> bool:
        """Whether Flower mods see its messages."""
        return self.app.has_mods

    def memory_bytes(self) -> int:
        """Returns the memory that the largest stage needs on a device, in bytes."""
        sizes = self.app.data.partitions.sizes
        largest = max(1, int(sizes.max(initial=1)))
        batch = min(self.app.batch_size or largest, largest)
        return max(self.cut.memory_bytes(i, batch) for i in range(len(self.cut.stages)))

    def read(self, content: RecordDict) -> StageOrder:
        """Returns what a message's content says.

        Raises:
            ConfigError: it makes no sense for these stages.
        """
        config: Any = content.get(CONFIG_KEY, {})
        kind = config.get(WORK_KEY)
        if kind not in get_args(Kind):
            raise ConfigError(
                f"the message's {WORK_KEY!r} is {kind!r:.80}; a client that holds a stage knows "
                f"{', '.join(get_args(Kind))}: use a strategy such as strategy=pipeline"
            )
        numbers = {
            key.replace("-", "_"): read_int(config, key, least=0) or 0
            for key in (STAGE_KEY, SPAN_KEY, MICRO_BATCH_KEY, MICRO_BATCHES_KEY, STEP_KEY)
        }
        also = config.get(ALSO_KEY, [])
        spans, stages = len(self.cut.spans), len(self.cut.stages)
        wrong = numbers["stage"] >= stages or numbers["span"] >= spans
        if wrong or not all(isinstance(k, int) and 0 <= k < spans for k in also):
            raise ConfigError(
                f"the message is for stage {numbers['stage']} and span {numbers['span']}, and "
                f"there are {stages} stages and {spans} spans: client and server must cut the same "
                "model alike"
            )
        m, most = numbers["micro_batch"], numbers["micro_batches"]
        if kind not in ("hold", "give") and m >= most:
            raise ConfigError(
                f"the message's {MICRO_BATCH_KEY!r} is {m}; it must be below "
                f"{MICRO_BATCHES_KEY!r}, which is {most}"
            )
        records = dict(content.array_records)
        return StageOrder(cast(Kind, kind), tuple(also), records, **numbers)

    # ---- before the work is done -----------------------------------------------------------------

    def plan(
        self, payload: Payload, message_type: str, partition: int, seconds_per_flop: float
    ) -> Workload:
        """Returns what a message's work costs.

        A backward pass is charged with the forward pass that it does again; to hold a stage and to
        give its gradient costs nothing.
        """
        if message_type.split(".")[0] != "train":
            return self.app.plan(payload, message_type, partition, seconds_per_flop)
        work: StageOrder = payload.read_by(self)
        if work.kind in ("hold", "give"):
            return Workload(0.0)
        flops = self.cut.spans[work.span].flops
        each = flops.forward if work.kind == "forward" else flops.training
        if work.kind != "backward":
            each += sum(self.cut.spans[k].flops.forward for k in work.also)
        return Workload(float(each * self._examples(work, partition)))

    def _examples(self, work: StageOrder, partition: int) -> int:
        if work.kind != "backward" and work.span == 0:
            return self._batch_size(self.app.data.size(partition % self.app.data.num_partitions))
        record = work.records.get(ACTIVATIONS_KEY)
        sent = None if record is None else record.get(VECTOR)
        return int(sent.shape[0]) if sent is not None and sent.shape else 0

    def _batch_size(self, examples: int) -> int:
        return min(self.app.batch_size or examples, examples)

    def batch_key(self, request: Request, run: RunInfo) -> Hashable | None:
        """Returns None: stages of different machines do not train as one program."""
        return None

    def trains(self, request: Request) -> bool:
        """Returns False."""
        return False

    def train_many(self, requests: Sequence[Request], run: RunInfo) -> list[Result]:
        """Raises: requests are answered one by one."""
        raise ConfigError("a stage's messages are answered one by one")

    # ---- the work --------------------------------------------------------------------------------

    def _answer(self, message: Message, context: Context) -> Message:
        work = self.read(message.content)
        bench = _Bench(self, work, context, message.metadata.created_at - DRIFT_BEGINS)
        # A client that has lost its stage, as by a crash, has nothing to send.
        known = work.kind == "hold" or _WEIGHTS in context.state
        return Message(getattr(bench, work.kind)() if known else bench.nothing(), reply_to=message)


class _Bench:
    """One message's work: what it needs of app, message and client.

    Args:
        app: the app.
        work: what is asked.
        context: of the client; its state is changed.
        sent_s: when the message was sent, s since `DRIFT_BEGINS`.
    """

    def __init__(self, app: StageApp, work: StageOrder, context: Context, sent_s: float) -> None:
        self._app, self._cut, self._work = app, app.cut, work
        self._layout = app.layouts[work.stage]
        self._state = context.state
        self._data = app.app.data
        self._partition = read_partition(context)
        seed = context.run_config.get(SEED_KEY)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ConfigError(f"run_config[{SEED_KEY!r}] is {seed!r}; it must be a whole number")
        self._seed = seed
        self._rows = self._data.rows(self._partition % self._data.num_partitions, sent_s)
        self._device = app.app.device

    def hold(self) -> RecordDict:
        """Takes a stage, and forgets all else of stages."""
        weights = self._received(WEIGHTS_KEY)
        record_vector(weights, self._layout.size, "the stage")  # is what it must be
        for key in [key for key in self._state if key.startswith("fl.stage.")]:
            del self._state[key]
        self._state[_WEIGHTS] = weights
        return self._reply({}, len(self._rows))

    def forward(self) -> RecordDict:
        """Runs a span."""
        work = self._work
        if work.span == 0:
            x, y = self._own()
        else:
            x, y = self._activations(self._cut.spans[work.span].input_shape), None
            self._state[self._input_key] = tensors_record({VECTOR: x.cpu()})
        span = self._cut.spans[work.span]
        with torch.no_grad():
            out = self._run(self._weights(), x)
        if out.shape[1:] != span.output_shape:
            raise ConfigError(f"span {work.span} returned {tuple(out.shape)}")
        records = {ACTIVATIONS_KEY: tensors_record({VECTOR: out})}
        if y is not None and len(self._cut.stages[0].spans) == 1:
            records[LABELS_KEY] = tensors_record({VECTOR: y})
        return self._reply(records, len(x))

    def turn(self) -> RecordDict:
        """Runs the last span, and its gradient."""
        x = self._activations(self._cut.spans[self._work.span].input_shape)
        if 0 in self._cut.stages[self._work.stage].spans:
            _, y = self._own()
        else:
            y = _tensor(self._received(LABELS_KEY)).to(self._device)
        if len(y) != len(x):
            raise ConfigError(f"there are {len(y)} labels for activations of {len(x)} examples")
        w = self._weights().requires_grad_(self._learns)
        x.requires_grad_(self._learns)
        if not self._learns:
            return self._back(torch.zeros_like(w), torch.zeros_like(x), len(x), 1.0)
        loss = per_example_loss(self._run(w, x), y).mean()
        g, back = torch.autograd.grad(loss, (w, x))
        return self._back(g, back, len(x), loss.item())

    def backward(self) -> RecordDict:
        """Runs a span again, and its gradient."""
        work = self._work
        span = self._cut.spans[work.span]
        above = self._activations(span.output_shape)
        if work.span == 0:
            x, _ = self._own()
        else:
            kept = self._state.pop(self._input_key, None)
            if not isinstance(kept, ArrayRecord):
                raise ConfigError(
                    f"the client has no inputs of span {work.span} and micro-batch "
                    f"{work.micro_batch}: a forward message comes before"
                )
            x = _tensor(kept).to(self._device).clone()
        w = self._weights()
        if not self._learns:
            return self._back(torch.zeros_like(w), torch.zeros(x.shape), len(x))
        w.requires_grad_()
        if work.span == 0:
            (g,) = torch.autograd.grad(self._run(w, x), w, above)
            return self._back(g, None, len(x))
        x.requires_grad_()
        g, back = torch.autograd.grad(self._run(w, x), (w, x), above)
        return self._back(g, back, len(x))

    def give(self) -> RecordDict:
        """Gives the mean gradient."""
        kept = self._state.get(_GRADIENT)
        if not isinstance(kept, ArrayRecord):
            raise ConfigError("the client has no gradient: no micro-batch has gone back")
        return self._reply({GRADIENT_KEY: kept}, len(self._rows))

    def nothing(self) -> RecordDict:
        """Returns a reply without numbers, which is of no use."""
        return self._reply({}, 0)

    # ---- parts of it -----------------------------------------------------------------------------

    @property
    def _learns(self) -> bool:
        return self._app.app.learns

    @property
    def _input_key(self) -> str:
        return f"{_INPUT}.{self._work.span}.{self._work.micro_batch}"

    def _received(self, key: str) -> ArrayRecord:
        record = self._work.records.get(key)
        if record is None:
            raise ConfigError(f"the message has no record {key!r}, only {[*self._work.records]}")
        return record

    def _activations(self, shape: tuple[int, ...]) -> Tensor:
        """Returns activations that came, or their gradient, shape (B, *shape), of its own."""
        value = _tensor(self._received(ACTIVATIONS_KEY))
        if value.dtype != torch.float32 or value.shape[1:] != shape:
            raise ConfigError(
                f"activations have shape {tuple(value.shape)} and type {value.dtype}; they must be "
                f"float32, (B, {', '.join(map(str, shape))})"
            )
        return value.to(self._device).clone()

    def _weights(self) -> Tensor:
        record: Any = self._state[_WEIGHTS]
        kept = record_vector(record, self._layout.size, f"stage {self._work.stage}")
        return kept.to(self._device).clone()

    def _run(self, w: Tensor, x: Tensor) -> Tensor:
        work = self._work
        if not self._learns:
            return torch.zeros((len(x), *self._cut.spans[work.span].output_shape))
        key = "dropout", self._partition, work.step, work.micro_batch, work.span
        with global_generators(self._seed, *key):
            return self._cut.forward(work.span, self._layout.split(w), x)

    def _own(self) -> tuple[Tensor, Tensor]:
        """Returns inputs and labels of the micro-batch, of the client's own examples."""
        n, work = len(self._rows), self._work
        if not n:
            raise ConfigError("the client has no examples, and cannot have the first stage")
        b = self._app._batch_size(n)
        first = (work.step * work.micro_batches + work.micro_batch) * b
        places = np.arange(first, first + b)
        order = places % n
        if self._app.app.shuffle:
            for epoch in np.unique(places // n).tolist():
                stream = generator(self._seed, "micro-batches", self._partition, epoch)
                here = places // n == epoch
                order[here] = stream.permutation(n)[order[here]]
        return self._app._pool.take(self._rows[order])

    def _back(
        self, g: Tensor, back: Tensor | None, examples: int, loss: float | None = None
    ) -> RecordDict:
        """Adds a micro-batch's gradient, and returns what goes back."""
        g = g.detach() / self._work.micro_batches
        kept = self._state.get(_GRADIENT)
        if isinstance(kept, ArrayRecord):
            before = record_vector(kept, self._layout.size, "the gradient", finite=False)
            g = g + before.to(g.device)
        self._state[_GRADIENT] = vector_record(g)
        records = {} if back is None else {ACTIVATIONS_KEY: tensors_record({VECTOR: back})}
        return self._reply(records, examples, loss)

    def _reply(
        self, records: Mapping[str, ArrayRecord], examples: int, loss: float | None = None
    ) -> RecordDict:
        values: dict[str, Any] = {"num-examples": examples}
        if loss is not None:
            values["train-loss"] = loss
        return content_of({**records, METRICS_KEY: trusted_record(MetricRecord, values)})


def _tensor(record: ArrayRecord) -> Tensor:
    """Returns the array that a record has, of any shape and type; nobody may write to it."""
    if VECTOR not in record:
        raise ConfigError(f"a record has no array {VECTOR!r}, only {sorted(record)[:3]}")
    return as_tensor(read_array(record[VECTOR]))
