"""The ClientApp that runs any client rule, on a simulated device or on a real SuperNode."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import Mod
from torch import Tensor, nn

from fl.checks import read_if
from fl.clients.alone import train_alone
from fl.clients.batched import (
    gains_from_batching,
    rows_per_program,
    train_together,
    vmap_refuses,
)
from fl.clients.batches import covered_examples, steps_per_epoch
from fl.clients.batching import Choice, Mode, check_mode, compare
from fl.clients.correction import Corrected, Correction
from fl.clients.downlink import Downlink
from fl.clients.examples import ExamplePool
from fl.clients.island import Island
from fl.clients.local_optimizer import FIRST_STEP_KEY, LocalOptimizer
from fl.clients.memory_format import takes_channels_last
from fl.clients.message_config import read_float, read_int
from fl.clients.planned import PlannedApp, Work
from fl.clients.replica import Replica
from fl.clients.rule import Rule
from fl.clients.task import Task, Trained, moved
from fl.clients.uplink import Uplink
from fl.compression import PayloadError
from fl.data import FederatedData
from fl.errors import ConfigError
from fl.flower.carried import carried, carried_tensors
from fl.flower.content import content_of
from fl.flower.messages import with_content
from fl.flower.payload import payload_bytes
from fl.flower.private import trusted_record
from fl.flower.records import (
    RecordReader,
    record_tensors,
    record_vector,
    tensors_record,
    to_record,
    to_records,
    vector_record,
)
from fl.models import Flops, drop_weights, evaluate, flops_per_example, memory_bytes
from fl.randomness import SEED_KEY, generator, global_generators
from fl.vectors.layout import Layout
from fl.vectors.rows import Row, as_tensor

ARRAYS_KEY = "arrays"
CONFIG_KEY = "config"
METRICS_KEY = "metrics"
WORK_KEY = "fl.work"  # what the simulated device has time for: {"steps": int}
MEMORY_KEY = "fl.memory"  # record of the client's Context.state that holds the rule's memory


class Order(NamedTuple):
    """What the content of a `train` message says, read and checked.

    Attributes:
        row: the model, shape (d,), read-only.
        carried: entries of the model outside the row.
        server: vectors beside the model, (p,) each.
        scalars: what the rule made of the configuration.
        config: the configuration.
        deadline_s: its "deadline-s".
        elapsed_s: its "elapsed-s".
        work: the record `fl.work`, if the content has one.
    """

    row: Row
    carried: dict[str, Array]
    server: dict[str, Tensor]
    scalars: dict[str, float]
    config: dict[str, Any]
    deadline_s: float | None
    elapsed_s: float | None
    work: Mapping[str, Any] | None


class Done(NamedTuple):
    """What came of a task.

    Attributes:
        content: of the reply.
        memory: what the rule keeps; None if that does not change.
    """

    content: RecordDict
    memory: ArrayRecord | None


@read_if(
    lambda a: a["rule"].get("clip_norm") is not None,
    "correction.clip_first",
    only="only {at}rule.clip_norm clips",
)
class TrainingApp(PlannedApp):
    """A Flower ClientApp that trains a model on a client's data by a client rule.

    It answers three kinds of messages:

    - `train`: the model in content["arrays"] is trained on the partition of
      `node_config["partition-id"]`. The reply has the model in "arrays", in "metrics"
      "num-examples" (size of the partition), "train-loss" (mean over the steps) and "steps", and a
      record for each vector the rule uploads beside the model.
    - `evaluate`: replies with "num-examples", "loss" and "accuracy" of the received model on the
      client's own held-out examples, or on its training examples. The message's configuration may
      say on which, "evaluate-on" being "test" or "train", and on how many of them, drawn uniformly:
      "evaluate-examples".
    - `query`: replies with "num-examples" and "num-partitions".

    A message's configuration (content["config"]) may set, for its task, "lr", "proximal-mu" (if the
    rule has one), one of "local-epochs" and "local-steps", and one of "deadline-s" and "elapsed-s".
    Other keys are somebody else's and are ignored.

    A deadline bounds the time of training: the client does as many whole steps as fit, and at least
    one, since a device learns what a step takes by doing it; its partial work counts like full
    work. On the simulator the planned time decides (`plan`, handed over in content["fl.work"]), on
    a real device the clock: no step starts that would end too late if it took as long as the mean
    of those before.

    "elapsed-s" interrupts a client that is thought to have begun so many seconds before the message
    reached it, with the model in the message: it returns what its whole steps until then have made,
    the model itself if there are none. On the simulator that work takes no more time, as it lies
    in the past, but its energy counts; on a real device it is done now, with a deadline.

    A client without examples, or told to do 0 steps, returns the received model with
    "num-examples" 0, so that it weighs nothing. A model that has become NaN or infinite is returned
    as it is: what to do with it is the strategy's decision, and "train-loss" shows it. A received
    model that is not finite is refused.

    Training is a function of the message and the client's state: batches come from the stream
    (seed, "batches", partition-id, message_id), with `run_config["fl.seed"]`, and what the model
    draws (dropout) from (seed, "dropout", partition-id, message_id). What the rule keeps from task
    to task is in `Context.state["fl.memory"]`.

    Args:
        model: a module, or a function that makes one. Only its structure is used: weights come
            with every message.
        data: the examples, dealt to partitions; partition-id p uses partition p modulo their
            number.
        rule: what a local step does.
        correction: of the gradients that the rule follows; None leaves them as they are.
        batch_size: examples of a step; None takes all of the client's.
        local_epochs: passes over the client's examples in a task; None if `local_steps` is set.
        local_steps: steps of a task, however many epochs these are; None if `local_epochs` is set.
        shuffle: a fresh permutation every epoch; otherwise the order of the data.
        drop_last: leave out an epoch's last batch if it is smaller than the others, as models with
            batch normalisation want, which refuse a batch of one. A client with fewer examples than
            `batch_size` has one batch of all of them.
        evaluate_on: "test" or "train" examples of the client; None is "test" where the data has
            held-out examples for each client, else "train".
        uplink: compresses the replies to `train`; None sends models as they are.
        downlink: decompresses the model of every message; None takes models as they are.
        batching: whether tasks that wait at the same time train as one program: "auto" where the
            model's structure says that this is faster on a CPU, "on" wherever it is possible,
            "off" never, "measured" if a trial before the run finds it faster. A choice changes
            results by rounding, so a measured one makes them depend on the machine; the summary
            has the choice.
        device: where PyTorch trains and evaluates, such as "cpu", "cuda" or "cuda:1". On a GPU,
            clients share it through batches; results differ from a CPU's by rounding.
        mods: Flower mods around every handler. With any, tasks are trained one by one.

    Raises:
        ConfigError: an argument is out of range, the model cannot be a flat vector, or PyTorch does
            not see the device.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        data: FederatedData,
        rule: Rule,
        *,
        correction: Correction | None = None,
        batch_size: int | None = 32,
        local_epochs: int | None = 1,
        local_steps: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        evaluate_on: Literal["test", "train"] | None = None,
        uplink: Uplink | Replica | Island | None = None,
        downlink: Downlink | Replica | Island | None = None,
        batching: Mode | bool = "auto",
        device: str = "cpu",
        mods: list[Mod] | None = None,
    ) -> None:
        super().__init__(mods=mods)
        self._has_mods = bool(mods)
        if isinstance(batching, bool):  # what YAML makes of on and off
            batching = "on" if batching else "off"
        check_mode(batching)
        for name, value in (
            ("batch_size", batch_size),
            ("local_epochs", local_epochs),
            ("local_steps", local_steps),
        ):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(
                    f"{name} is {value}; it must be a whole number, at least 1, or null"
                )
        if (local_epochs is None) == (local_steps is None):
            raise ConfigError(
                f"local_epochs is {local_epochs} and local_steps is {local_steps}; set one of them "
                "and make the other null"
            )
        if evaluate_on not in ("test", "train", None):
            raise ConfigError(f"evaluate_on is {evaluate_on!r}; it must be 'test', 'train' or null")
        if evaluate_on == "test" and data.test_partitions is None:
            raise ConfigError(
                f"evaluate_on is 'test', but data {data.name!r} has no held-out examples for each "
                "client: set it to 'train'"
            )
        self.device = _found_device(device)
        self.data = data
        self.optimizer = rule
        self.correction = correction
        self.rule = rule if correction is None else _corrected(rule, correction)
        self.batch_size = batch_size
        self.local_epochs = local_epochs
        self.local_steps = local_steps
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.uplink = uplink
        self.downlink = downlink
        self.evaluate_on = evaluate_on or ("train" if data.test_partitions is None else "test")
        if isinstance(model, nn.Module):
            self._model = copy.deepcopy(model)
        else:
            with global_generators(0, "structure"):  # its values are never used
                self._model = model()
        self._model.train()
        self.layout = Layout.of(self._model)
        if not self.layout.num_trainable:
            raise ConfigError(
                "the model has nothing to train: it has no parameters, or all are frozen or empty"
            )
        drop_weights(self._model)
        if correction is not None:
            correction.check_model(self._model)
        self._channels_last = takes_channels_last(
            self._model, self.layout, data.input_shape, self.device
        )
        self._pool = ExamplePool(data, self.device)
        self._reader = RecordReader(self.layout)
        self._not_batchable = self._why_not_batchable(batching)
        self.batching: Mode = batching
        self._choice: Choice | None = None
        self.train()(self._train)
        self.evaluate()(self._evaluate)
        self.query()(self._query)

    # ---- what work costs -------------------------------------------------------------------------

    @cached_property
    def _flops(self) -> Flops:
        with self._refusing_inputs():
            counted = flops_per_example(self._model, self.data.input_shape, self._input_dtype)
        self._let_go()
        return counted

    @cached_property
    def _memory_bytes(self) -> int:
        largest = int(self.data.partitions.sizes.max(initial=1))
        batch = largest if self.batch_size is None else min(self.batch_size, largest)
        with self._refusing_inputs():
            counted = memory_bytes(
                self._model, self.data.input_shape, batch, self.rule.vectors, self._input_dtype
            )
        self._let_go()
        return counted

    @contextmanager
    def _refusing_inputs(self) -> Iterator[None]:
        """Says in what is raised inside that the model does not take the data's inputs."""
        try:
            yield
        except RuntimeError as error:
            raise ConfigError(
                f"the model does not take inputs of shape {self.data.input_shape} and type "
                f"{self._input_dtype} ({str(error).splitlines()[0]}); one in float16 throughout "
                "needs .float()"
            ) from error

    @property
    def remembers(self) -> bool:
        """Whether clients may keep something: of their rule, of compressed links, of mods."""
        links = bool(self.uplink or self.downlink)
        return not self.rule.returns_only_the_model or self._has_mods or links

    @cached_property
    def _reply_bytes(self) -> int | None:
        """Size of the reply to every `train` message, if clients send a model and keep nothing."""
        if self.remembers or self.layout.carried:
            return None
        model = to_record(self.layout, np.zeros(self.layout.size, np.float32))
        return payload_bytes(content_of({"": model, METRICS_KEY: _train_metrics(0, 0.0, 0)}))

    def _let_go(self) -> None:
        """Frees the gradients that torch's counters leave in cycles, if they are large."""
        if self.layout.is_large:
            gc.collect()

    @property
    def _input_dtype(self) -> torch.dtype:
        return torch.int64 if self.data.task == "next-token" else torch.float32

    @property
    def has_mods(self) -> bool:
        """Whether Flower mods are around the handlers."""
        return self._has_mods

    def memory_bytes(self) -> int:
        """Returns the memory that training takes on a device, in bytes, for the largest batch."""
        return self._memory_bytes

    def plan(
        self,
        content: Mapping[str, Mapping[str, Any]],
        message_type: str,
        partition: int,
        seconds_per_flop: float,
    ) -> Work:
        """Returns what a message's work costs, before it is done.

        Training is charged forward and backward FLOPs for every example of every step (times the
        rule's gradients per step), evaluation forward FLOPs, a query nothing.

        Args:
            content: of the message, by record and key.
            message_type: of the message; what follows a dot is ignored.
            partition: the client's partition-id.
            seconds_per_flop: of the client's device, for this task.

        Raises:
            ConfigError: the message's configuration makes no sense, or not with this rule.
        """
        partition %= self.data.num_partitions
        kind = message_type.split(".")[0]
        if kind == "evaluate":
            _, count = self._evaluated_on(content.get(CONFIG_KEY, _NOTHING), partition)
            flops = float(self._flops.forward * count)
            return Work(flops, None, self._memory_bytes)
        if kind != "train":
            return Work(0.0, None, self._memory_bytes)
        config = content.get(CONFIG_KEY, _NOTHING)
        examples = self.data.size(partition)
        self._scalars(config)  # refuses now what the client would refuse later
        steps = self._planned_steps(config, examples)
        per_example = self._flops.training * self.rule.gradients_per_step
        deadline, elapsed = _limits(config)
        limit = deadline if elapsed is None else elapsed
        fitting = None
        if limit is not None:
            if not math.isfinite(seconds_per_flop):
                raise ConfigError(
                    "the message has a deadline-s or elapsed-s, but this fleet knows the seconds "
                    "of whole tasks only, not of steps: leave it out, or take a fleet with devices"
                )
            seconds_per_example = per_example * seconds_per_flop
            least = min(steps, 1) if elapsed is None else 0
            fitting = steps = self._fitting_steps(
                least, steps, examples, seconds_per_example, limit
            )
        flops = per_example * self._covered(steps, examples)
        if elapsed is not None:
            return Work(0.0, fitting, self._memory_bytes, flops, self._reply_bytes)
        return Work(flops, fitting, self._memory_bytes, 0.0, self._reply_bytes)

    def _fitting_steps(
        self,
        fewest: int,
        most: int,
        examples: int,
        seconds_per_example: float,
        deadline: float,
    ) -> int:
        """Returns the most steps that end by the deadline, between `fewest` and `most`."""
        while fewest < most:
            middle = (fewest + most + 1) // 2
            seconds = self._covered(middle, examples) * seconds_per_example
            # The last bit of a product must not cost a step that fits exactly.
            if seconds <= deadline * (1 + 1e-9):
                fewest = middle
            else:
                most = middle - 1
        return fewest

    def _covered(self, steps: int, examples: int) -> int:
        """Returns how many examples (with repeats) so many steps of a client's task take."""
        return covered_examples(steps, examples, self.batch_size, self.drop_last)

    def _planned_steps(self, config: Mapping[str, Any], examples: int) -> int:
        """Returns how many steps a message asks for, whatever they take."""
        epochs = read_int(config, "local-epochs", least=1)
        steps = read_int(config, "local-steps", least=1)
        if epochs is not None and steps is not None:
            raise ConfigError(
                f"the message asks for local-epochs {epochs} and local-steps {steps}; send one"
            )
        if epochs is None and steps is None:
            epochs, steps = self.local_epochs, self.local_steps
        per_epoch = steps_per_epoch(examples, self.batch_size, self.drop_last)
        if epochs is not None:
            return epochs * per_epoch
        return steps or 0 if per_epoch else 0

    def check_config(self, config: Mapping[str, Any]) -> None:
        """Checks a configuration that every `train` message would bring.

        Raises:
            ConfigError: it makes no sense, or not with this rule.
        """
        # Rounds count from 1, and schedules of rounds ask which one it is.
        self._scalars({"server-round": 1, **config})
        self._planned_steps(config, 1)
        _limits(config)

    def check_batches(self, config: Mapping[str, Any], least: int) -> None:
        """Checks that no client comes upon a batch that is too small for the model.

        Args:
            config: that every `train` message would bring.
            least: examples that a batch must have.

        Raises:
            ConfigError: one would.
        """
        if least == 1:
            return
        for partition, size in enumerate(self.data.partitions.sizes.tolist()):
            steps = self._planned_steps(config, size)
            epoch = steps_per_epoch(size, self.batch_size, self.drop_last)
            last = self._covered(epoch, size) - self._covered(epoch - 1, size)
            if self._covered(min(steps, 1), size) < least * min(steps, 1):
                remedy = (
                    "raise batch_size"
                    if size >= least
                    else f"give every client {least} examples (partition.min_partition_size), or "
                    "use a model without batch normalisation"
                )
            elif steps >= epoch and last < least * min(steps, 1):
                remedy = "set drop_last to true, or another batch_size"
            else:
                continue
            raise ConfigError(
                f"the model can only be trained on batches of at least {least} examples, and "
                f"client {partition} would come upon a smaller one (it has {size} examples, and "
                f"batch_size is {self.batch_size}): {remedy}"
            )

    def reads(self, key: str) -> bool:
        """Returns whether a client obeys a key of a message's configuration."""
        return key in _OBEYED or key in self.rule.honours

    def replaced_by(self, key: str) -> tuple[str, ...]:
        """Returns the arguments that a key of a message's configuration stands in for.

        Those of the rule are called "rule.NAME", those of the correction "correction.NAME".
        """
        if key in ("local-epochs", "local-steps"):
            return "local_epochs", "local_steps"
        parts = {"rule": self.optimizer, "correction": self.correction}
        return tuple(
            f"{place}.{name}"
            for place, part in parts.items()
            if part is not None
            for name in part.honours.get(key, ())
        )

    # ---- handlers --------------------------------------------------------------------------------

    def _train(self, message: Message, context: Context) -> Message:
        message = self._received(message, context)
        task = self._task(message, context)
        if task.steps == 0:
            content = self._sent(self._unchanged(task), task, message, context)
            return Message(content, reply_to=message)
        (done,) = self._done([task], self._trained_alone(task))
        return Message(self._sent(done, task, message, context), reply_to=message)

    def _trained_alone(self, task: Task) -> Trained:
        return train_alone(
            self._model,
            self.layout,
            self.rule,
            self._pool,
            task,
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
            channels_last=self._channels_last,
        )

    def _evaluate(self, message: Message, context: Context) -> Message:
        message = self._received(message, context)
        partition = self._partition(context)
        row = as_tensor(self._reader.row(_arrays(message.content)))
        held_out, count = self._evaluated_on(message.content.get(CONFIG_KEY, _NOTHING), partition)
        loss = accuracy = 0.0
        if count:
            entries = carried_tensors(carried(self.layout, _arrays(message.content)))
            entries = moved(entries, self.device)
            self.layout.load(self._evaluated, row.to(self.device), entries)
            x, y = (self.data.client_test if held_out else self.data.client)(partition)
            if count < len(y):
                key = ("evaluated examples", partition, message.metadata.message_id)
                rng = generator(int(context.run_config[SEED_KEY]), *key)
                some = torch.as_tensor(rng.choice(len(y), count, replace=False))
                x, y = x[some], y[some]
            loss, accuracy = evaluate(self._evaluated, (x.to(self.device), y.to(self.device)))
            drop_weights(self._evaluated)
        metrics: dict[str, int | float] = {
            "num-examples": count,
            "loss": loss,
            "accuracy": accuracy,
        }
        return _metrics_reply(message, metrics)

    def _query(self, message: Message, context: Context) -> Message:
        count = self.data.size(self._partition(context))
        return _metrics_reply(
            message, {"num-examples": count, "num-partitions": self.data.num_partitions}
        )

    @cached_property
    def _evaluated(self) -> nn.Module:
        return copy.deepcopy(self._model)

    def _evaluated_on(self, config: Mapping[str, Any], partition: int) -> tuple[bool, int]:
        """Returns whether a message's model is evaluated on held-out examples, and on how many."""
        on = config.get("evaluate-on", self.evaluate_on)
        held_out = self.data.test_partitions if on == "test" else None
        if on not in ("test", "train") or (on == "test" and held_out is None):
            raise ConfigError(
                f"the message's 'evaluate-on' is {on!r}; it must be 'train', or 'test' where "
                "clients have held-out examples"
            )
        most = read_int(config, "evaluate-examples", least=1)
        there = len((self.data.partitions if held_out is None else held_out)[partition])
        return held_out is not None, there if most is None else min(most, there)

    # ---- many tasks at once ----------------------------------------------------------------------

    def batch_key(self, message: Message, context: Context) -> Hashable | None:
        """Returns a key that tasks share if `train_many` may run them together, or None.

        None also for a message that `train` would refuse: alone, it gets its own error.
        `why_alone` gives the reason. Tasks whose schedules begin at different steps do not go
        together.
        """
        if self.why_alone(message, context) is not None:
            return None
        config: Mapping[str, Any] = message.content.get(CONFIG_KEY, _NOTHING)
        return "train", config.get(FIRST_STEP_KEY)

    def why_alone(self, message: Message, context: Context) -> str | None:
        """Returns why a task cannot be trained together with others, or None if it can."""
        if message.metadata.message_type not in ("train", "train.default"):
            return f"{message.metadata.message_type!r} messages are answered one by one"
        if self._not_batchable:
            return self._not_batchable
        try:
            task = self._task(self._opened(message, context)[0], context)
        except (ConfigError, PayloadError) as error:
            return str(error)
        if task.deadline_s is not None:
            return "its deadline is in wall time: only a clock tells when to stop"
        return None

    def choose_batching(self) -> Choice:
        """Returns whether tasks train together, after a trial if that is to be measured.

        The first call decides; to be made before the app goes to other processes.
        """
        if self._choice is None:
            why = self._not_batchable
            self._choice = Choice(self.batching, not why, why)
            tasks = self._trial_tasks() if self.batching == "measured" and not why else []
            if tasks:
                self._choice = compare(
                    partial(self._try_alone, tasks[:4]), partial(self._try_together, tasks)
                )
                self._not_batchable = self._choice.why
        return self._choice

    def take_batching(self, choice: Choice) -> None:
        """Takes the choice that an earlier process of the same run made."""
        self._choice = choice
        self._not_batchable = choice.why

    def _trial_tasks(self) -> list[Task]:
        order = Order(
            row=np.zeros(self.layout.size, np.float32),
            carried={},
            server={name: torch.zeros(self.layout.num_trainable) for name in self.rule.needs},
            scalars=self.rule.scalars(
                {"server-round": 1, **dict.fromkeys(self.rule.requires, 1.0)}
            ),
            config={},
            deadline_s=None,
            elapsed_s=None,
            work={"steps": 2},
        )
        there = np.flatnonzero(self.data.partitions.sizes)[
            : min(16, rows_per_program(self.layout.size, self.device))
        ]
        return [self.task(order, f"trial.{p}", int(p), 0, None) for p in there]

    def _try_alone(self, tasks: list[Task]) -> int:
        for task in tasks:
            self._trained_alone(task)
        return len(tasks)

    def _try_together(self, tasks: list[Task]) -> int:
        return len(self.train_tasks(tasks))

    def _why_not_batchable(self, mode: Mode) -> str:
        if mode == "off":
            return "batching is off"
        if self._has_mods:
            return "mods see one message at a time"
        if not self.rule.batchable:
            return f"{type(self.rule).__name__} trains one client at a time"
        moving = [entry.name for entry in self.layout.entries if entry.kind != "trainable"]
        if moving:
            return f"the model has buffers, or frozen or tied parameters: {moving}"
        gains, reason = gains_from_batching(self._model, self.device)
        if mode == "auto" and not gains:
            return reason
        tokens = self.data.task == "next-token"
        return vmap_refuses(self._model, self.layout, self.data.input_shape, tokens=tokens)

    def train_many(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        """Returns the replies of messages that have a batch key, trained together.

        Each is what `train` would reply but for rounding, since sums are taken in another order:
        the tests allow 1e-4 relative and 2e-6 absolute after some tens of steps. The same messages
        in the same order give the same bits. What the rule keeps is written into the contexts.

        Raises:
            ConfigError: a message has no batch key.
        """
        contents = self.train_contents(messages, contexts)
        return [
            Message(content, reply_to=message)
            for message, content in zip(messages, contents, strict=True)
        ]

    def train_contents(
        self, messages: Sequence[Message], contexts: Sequence[Context]
    ) -> list[RecordDict]:
        """Returns the contents of the replies of `train_many`.

        Raises:
            ConfigError: a message has no batch key.
        """
        messages = [self._received(m, c) for m, c in zip(messages, contexts, strict=True)]
        tasks = [self._task(m, c) for m, c in zip(messages, contexts, strict=True)]
        return [
            self._sent(done, task, message, context)
            for done, task, message, context in zip(
                self.train_tasks(tasks), tasks, messages, contexts, strict=True
            )
        ]

    def train_tasks(self, tasks: Sequence[Task]) -> list[Done]:
        """Returns what came of tasks trained together, before compression.

        The models are rows of one matrix for each program that trained them
        (`fl.clients.batched`).

        Raises:
            ConfigError: the tasks cannot be trained together.
        """
        if self._not_batchable:
            raise ConfigError(f"cannot train together: {self._not_batchable}")
        if any(task.deadline_s is not None for task in tasks):
            raise ConfigError("cannot train together: a deadline in wall time needs a clock")
        done = {i: self._unchanged(task) for i, task in enumerate(tasks) if task.steps == 0}
        working = [i for i, task in enumerate(tasks) if task.steps]
        for members, trained in train_together(
            self._model,
            self.layout,
            self.rule,
            self._pool,
            [tasks[i] for i in working],
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
        ):
            chosen = [working[i] for i in members]
            done.update(zip(chosen, self._done([tasks[i] for i in chosen], trained), strict=True))
        return [done[i] for i in range(len(tasks))]

    # ---- from messages to tasks and back ---------------------------------------------------------

    def _opened(self, message: Message, context: Context) -> tuple[Message, Mapping[str, Any]]:
        """Returns a message with the model in it, and the records the client then has to keep."""
        if self.downlink is None:
            return message, _NOTHING
        content, kept = self.downlink.open(self.layout, message.content, context)
        return with_content(message, content), kept

    def _received(self, message: Message, context: Context) -> Message:
        """Returns a message with the model in it; the client keeps what it has to."""
        message, kept = self._opened(message, context)
        context.state.update(kept)
        return message

    def _partition(self, context: Context) -> int:
        return _partition_id(context) % self.data.num_partitions

    def _task(self, message: Message, context: Context) -> Task:
        return self.task(
            self.order(message.content),
            message.metadata.message_id,
            _partition_id(context),
            context.run_config.get(SEED_KEY),
            read_memory(context.state),
        )

    def order(self, content: RecordDict) -> Order:
        """Returns what a `train` message's content says; the same for all clients of a broadcast.

        Raises:
            ConfigError: the content makes no sense, or not with this model and rule.
        """
        # Flower's records are slow to search, above all for keys they do not have.
        items = dict(content.items())
        record = _arrays(items)
        config = dict(items.get(CONFIG_KEY, _NOTHING).items())
        deadline, elapsed = _limits(config)
        return Order(
            row=self._reader.row(record),
            carried=carried(self.layout, record) if self.layout.carried else {},
            server=self._server_vectors(items),
            scalars=self._scalars(config),
            config=config,
            deadline_s=deadline,
            elapsed_s=elapsed,
            work=items.get(WORK_KEY),
        )

    def task(
        self,
        order: Order,
        message_id: str,
        partition: int,
        seed: object,
        memory: dict[str, Tensor] | None,
        work: Mapping[str, Any] | None = None,
    ) -> Task:
        """Returns what one client is to do.

        Args:
            order: what the message says.
            message_id: of the message.
            partition: the client's partition-id.
            seed: `run_config["fl.seed"]`.
            memory: what the rule kept at this client's last task.
            work: what the device has time for, if the message's content does not say it.

        Raises:
            ConfigError: a value makes no sense.
        """
        rows = self.data.partitions[partition % self.data.num_partitions]
        steps = self._planned_steps(order.config, len(rows))
        deadline = order.deadline_s
        if order.elapsed_s is not None:
            deadline = order.elapsed_s
            steps = steps if order.elapsed_s > 0 else 0
        work = order.work if work is None else work
        if work is not None:
            deadline = None
            fitting = read_int(work, "steps", least=0)
            if fitting is None:
                raise ConfigError(f"the record {WORK_KEY!r} has no 'steps', only {sorted(work)}")
            steps = min(steps, fitting)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ConfigError(
                f"run_config[{SEED_KEY!r}] is {seed!r}; it must be a whole number: on a "
                f"deployment, set {SEED_KEY} under [tool.flwr.app.config] in pyproject.toml"
            )
        return Task(
            seed=seed,
            client=partition,
            message_id=message_id,
            rows=rows,
            row=order.row,
            carried=order.carried,
            server=order.server,
            memory=memory,
            scalars=order.scalars,
            steps=steps,
            deadline_s=deadline,
        )

    def _scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        # FedProx, Flower's as well, leaves the proximal term to the client. Without it, it would be
        # FedAvg under another name, and nobody would notice.
        for key, correction in _ASKED_FOR.items():
            if config.get(key) and key not in self.rule.honours:
                raise ConfigError(
                    f"the message asks for {key} {config[key]!r}, but clients do not correct their "
                    f"gradients so: set client/correction={correction}"
                )
        return self.rule.scalars(config)

    def _server_vectors(self, content: Mapping[str, Any]) -> dict[str, Tensor]:
        vectors = {}
        for name in self.rule.needs:
            record = content.get(name)
            if not isinstance(record, ArrayRecord):
                raise ConfigError(
                    f"{type(self.correction or self.rule).__name__} needs the record {name!r} "
                    f"beside the model, the message has {sorted(content)}: use the strategy that "
                    "sends it"
                )
            vectors[name] = record_vector(record, self.layout.num_trainable, f"record {name!r}")
        return vectors

    def _unchanged(self, task: Task) -> Done:
        """Returns what comes of a task of no steps."""
        items: dict[str, Any] = {ARRAYS_KEY: to_record(self.layout, task.row, task.carried)}
        for name in self.rule.uploads:
            items[name] = vector_record(torch.zeros(self.layout.num_trainable))
        items[METRICS_KEY] = _train_metrics(0, 0.0, 0)
        return Done(content_of(items), None)

    def _done(self, tasks: Sequence[Task], trained: Trained) -> list[Done]:
        done = []
        records = to_records(self.layout, trained.rows, trained.carried)
        for i, task in enumerate(tasks):
            items: dict[str, Any] = {ARRAYS_KEY: records[i]}
            for name, vectors in trained.extras.items():
                items[name] = vector_record(vectors[i])
            items[METRICS_KEY] = _train_metrics(task.examples, trained.losses[i], trained.steps[i])
            memory = None
            if trained.memory:
                kept = {name: tensors[i] for name, tensors in trained.memory.items()}
                memory = tensors_record(kept)
            done.append(Done(content_of(items), memory))
        return done

    def _sent(self, done: Done, task: Task, message: Message, context: Context) -> RecordDict:
        """Returns what goes to the server, and writes what stays into the context."""
        if done.memory is not None:
            context.state[MEMORY_KEY] = done.memory
        if self.uplink is None:
            return done.content
        return self.uplink.pack(self.layout, task.row, done.content, message, context)


def _corrected(rule: Rule, correction: Correction) -> Corrected:
    if not isinstance(rule, LocalOptimizer):
        raise ConfigError(
            f"correction is {type(correction).__name__}, and rule is {type(rule).__name__}, which "
            "does not step by gradients: use an optimizer such as Sgd, or leave it out"
        )
    return Corrected(rule, correction)


def _found_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"client.device is {name!r}, which PyTorch cannot use here "
            f"({str(error).splitlines()[0]}): use 'cpu', or a PyTorch built for the device"
        ) from error
    return device


_NOTHING: Mapping[str, Any] = {}
_ASKED_FOR = {
    "proximal-mu": "proximal",
    "feddyn-alpha": "dynamic_regularization",
    "momentum-beta": "global_momentum or controlled_momentum",
}
_OBEYED = ("local-epochs", "local-steps", "deadline-s", "elapsed-s")  # whatever the rule


def _limits(config: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Returns "deadline-s" and "elapsed-s" of a message's configuration, of which one is None."""
    deadline = read_float(config, "deadline-s", above=0.0)
    elapsed = read_float(config, "elapsed-s", least=0.0)
    if deadline is not None and elapsed is not None:
        raise ConfigError(
            f"the message has deadline-s {deadline} and elapsed-s {elapsed}; send one of them"
        )
    return deadline, elapsed


def _arrays(content: Mapping[str, Any]) -> ArrayRecord:
    record = content.get(ARRAYS_KEY)
    if not isinstance(record, ArrayRecord):
        raise ConfigError(
            f"the message has no ArrayRecord {ARRAYS_KEY!r}, only {sorted(content)}: the "
            "strategy must send the model under that key"
        )
    return record


def _partition_id(context: Context) -> int:
    value = context.node_config.get("partition-id")
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(
            f"node_config['partition-id'] is {value!r}; it must be a whole number, at least 0: "
            'start the SuperNode with --node-config "partition-id=0 num-partitions=2"'
        )
    return value


def read_memory(state: RecordDict | None) -> dict[str, Tensor] | None:
    """Returns what a rule kept in a client's `Context.state`; None if it kept nothing.

    Raises:
        ConfigError: something else has taken its key.
    """
    if state is None or MEMORY_KEY not in state:
        return None
    record = state[MEMORY_KEY]
    if not isinstance(record, ArrayRecord):
        raise ConfigError(
            f"Context.state[{MEMORY_KEY!r}] is a {type(record).__name__}, not an ArrayRecord: the "
            "key belongs to the client rule, use another"
        )
    return record_tensors(record)


def _train_metrics(examples: int, loss: float, steps: int) -> MetricRecord:
    return trusted_record(
        MetricRecord, {"num-examples": examples, "train-loss": loss, "steps": steps}
    )


def _metrics_reply(message: Message, metrics: dict[str, int | float]) -> Message:
    record = trusted_record(MetricRecord, metrics)
    return Message(content_of({METRICS_KEY: record}), reply_to=message)
