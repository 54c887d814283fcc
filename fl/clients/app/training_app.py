"""The ClientApp that runs any client rule, on a simulated device or on a real SuperNode.

A message goes through `TrainingApp.train_many`, or `evaluate`: what it says (`inbox`), what it
costs (`planner`), what the client makes of it to train (`assembling`), the training (`trainer`),
and what is sent and kept (`outbox`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from numpy.typing import NDArray
from torch import nn

from fl.checks import boolean, read_if
from fl.clients.app.assembling import Asked, Assembler
from fl.clients.app.batching import Batching, Mode, check_mode
from fl.clients.app.choosing import SMOOTHING_KEY, Chooser
from fl.clients.app.downlink import Downlink, is_compressed
from fl.clients.app.evaluating import Evaluator
from fl.clients.app.home import Home
from fl.clients.app.inbox import (
    NOTHING,
    Inbox,
    Instructions,
    read_amount,
    read_batch_size,
    read_chunks,
    read_limits,
    read_memory,
    read_partition,
)
from fl.clients.app.island import Island
from fl.clients.app.merging import Merger
from fl.clients.app.outbox import METRICS_KEY, Outbox, metrics_reply
from fl.clients.app.planner import Planner, check_amount, evaluated_by_default
from fl.clients.app.replica import Replica
from fl.clients.app.trainer import Trainer
from fl.clients.app.training import Trained, Training, found_device
from fl.clients.app.uplink import Uplink
from fl.clients.composing import composed
from fl.clients.contact import Contact
from fl.clients.correction import Correction
from fl.clients.estimator import Estimator
from fl.clients.local_layers import LocalLayers
from fl.clients.rule import Rule
from fl.data import FederatedData
from fl.data.drift import DRIFT_BEGINS
from fl.errors import ConfigError
from fl.execution.contract import (
    CohortRequest,
    ForeseenAnswers,
    ForeseenCosts,
    Payload,
    PlannedApp,
    Request,
    Result,
    RunInfo,
    Workload,
)
from fl.flower.content import content_of
from fl.flower.identity import message_id
from fl.flower.messages import with_content
from fl.models import Measures, copy_of, drop_weights
from fl.randomness import SEED_KEY, global_generators
from fl.vectors.rows import as_row, as_tensor

_KINDS = ("train", "train.default")
_OBEYED = (
    "batch-size",
    "chunks",
    "first-chunk",
    "chunk-examples",
    "chunk-begin",
    "local-epochs",
    "local-steps",
    "deadline-s",
    "elapsed-s",
    SMOOTHING_KEY,
)  # whatever the rule


@read_if(
    lambda a: a["rule"].get("clip_norm") is not None,
    "correction.clip_first",
    only="only {at}rule.clip_norm clips",
)
class TrainingApp(ClientApp, PlannedApp):
    """A Flower ClientApp that trains a model on a client's data by a client rule.

    It answers three kinds of messages:

    - `train`: the model in content["arrays"] is trained on the partition of
      `node_config["partition-id"]`. The reply has the model in "arrays", in "metrics"
      "num-examples" (size of the partition), "train-loss" (mean over the steps) and "steps", and a
      record for each vector the rule uploads beside the model.
    - `evaluate`: replies with "num-examples", "loss" and "accuracy", of regression the errors, and
      what `metrics` asks for, of a model on the client's own held-out examples, or on its training
      examples. The message's configuration may say on which,
      "evaluate-on" being "test" or "train", and on how many of them, drawn uniformly:
      "evaluate-examples". It may also say which model, "evaluate-model" being "global", the
      received one, "local", what training it makes of that, or "personal", what the client would
      predict with (`Rule.personal`), fine-tuned first if the message says so (`read_fine_tuning`).
      The client keeps nothing of that. A model that comes as it is is taken so, whatever the
      downlink.
    - `query`: replies with "num-examples", "num-partitions" and its "partition-id".

    A message's configuration (content["config"]) may set, for its task, "lr", "proximal-mu" (if the
    rule has one), "batch-size", one of "local-epochs" and "local-steps", and one of "deadline-s"
    and "elapsed-s". Other keys are somebody else's and are ignored.

    "chunks" in the place of a batch size cuts the client's examples, in the order of the data, into
    so many batches of equal size, of which the task takes as many as there are steps, from
    "first-chunk" (0) on: what several clients hold, they go through alike. Whatever `shuffle`.
    "chunk-examples" makes a batch of so many of a chunk, which follow those that were taken before,
    "chunk-begin" (0) of them, round the chunk.

    A message may carry several models: the client goes on with the one that has the lowest loss on
    its training examples, or with a mixture of them, see `fl.clients.app.choosing`, or with what it
    merges of them, see `fl.clients.app.merging`.

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

    Local layers and frozen parameters are in no message: see `fl.clients.app.home`. A client
    evaluates the received model with its own local layers.

    Args:
        model: a module, or a function that makes one. Its structure is used, and the values of
            frozen parameters and of local layers, which must be the same wherever the app is made;
            all other weights come with every message.
        data: the examples, dealt to partitions; partition-id p uses partition p modulo their
            number.
        rule: what a local step does.
        correction: of the gradients that the rule follows; None leaves them as they are.
        local_layers: which layers stay with the client; None keeps none there.
        estimator: of the gradients that the rule and the correction get; None takes gradients.
        contact: when a client ends its task before all of the local work is done; None never does.
        batch_size: examples of a step; None takes all of the client's.
        local_epochs: passes over the client's examples in a task; None if `local_steps` is set.
        local_steps: steps of a task, however many epochs these are; None if `local_epochs` is set.
        train: False: clients take the time of their work, and send its bytes, but train nothing.
            What comes back is the model that was sent, zeros beside it, and a "train-loss" of 1.
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
        metrics: what clients report of a model besides, as of `fl.models.Measures`.
        mods: Flower mods around every handler. With any, tasks are trained one by one.

    Attributes:
        layout: of what travels, in the order of the model's state dict.
        merger: merges several models that come.

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
        local_layers: LocalLayers | None = None,
        estimator: Estimator | None = None,
        contact: Contact | None = None,
        batch_size: int | None = 32,
        local_epochs: int | None = 1,
        local_steps: int | None = None,
        train: bool = True,
        shuffle: bool = True,
        drop_last: bool = False,
        evaluate_on: Literal["test", "train"] | None = None,
        uplink: Uplink | Replica | Island | None = None,
        downlink: Downlink | Replica | Island | None = None,
        batching: Mode | bool = "auto",
        device: str = "cpu",
        metrics: Sequence[str] = (),
        mods: list[Mod] | None = None,
    ) -> None:
        super().__init__(mods=mods)
        if isinstance(batching, bool):  # what YAML makes of on and off
            batching = "on" if batching else "off"
        check_mode(batching)
        check_amount(batch_size, local_epochs, local_steps)
        boolean("train", train)
        if contact is not None and not isinstance(contact, Contact):
            raise ConfigError(
                f"contact is {contact!r:.80}; it must be null, or have a _target_ that makes a "
                "fl.clients.Contact"
            )
        if estimator is not None and not isinstance(estimator, Estimator):
            raise ConfigError(
                f"estimator is {estimator!r:.80}; it must be null, or have a _target_ that makes a "
                "fl.clients.Estimator"
            )
        watching = contact if contact is not None and contact.watches else None
        if watching is not None and not train:
            raise ConfigError(
                f"train is false, and contact is {type(contact).__name__}, which goes by the loss: "
                "leave contact out, or let clients train"
            )
        self.measures = Measures(data.task, tuple(metrics), data.unit)
        self.evaluate_on = evaluated_by_default(evaluate_on, data)
        self.device = found_device(device)
        self.data = data
        self.correction = correction
        self.local_layers = local_layers
        self.contact = contact
        self.batch_size = batch_size
        self.local_epochs = local_epochs
        self.local_steps = local_steps
        self.learns = train
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.uplink = uplink
        self.downlink = downlink
        self.batching: Mode = batching
        self._has_mods = bool(mods)
        if isinstance(model, nn.Module):
            self._model = copy_of(model)
        else:
            with global_generators(0, "structure"):
                self._model = model()
        self._model.train()
        self.home = Home(self._model, local_layers)
        self.layout = self.home.sent.layout
        self.optimizer = rule.for_model(self._model, self.home.whole)
        local_first = None if local_layers is None else local_layers.first
        self.rule = composed(self.optimizer, correction, local_first)
        if estimator is not None:
            if self.rule.differentiates:
                raise ConfigError(
                    f"estimator is {type(estimator).__name__}, and "
                    f"{type(correction or rule).__name__} takes derivatives of a batch that it "
                    "does not estimate: leave client/estimator out, or use another client"
                )
            estimator = estimator.for_model(self._model, self.home.whole)
        self.estimator = estimator
        drop_weights(self._model)
        if correction is not None:
            correction.check_model(self._model)
        self._inbox = Inbox(
            self.home,
            self.rule,
            needing=type(correction or self.optimizer).__name__,
            seconds=None if contact is None else contact.seconds,
        )
        self._planner = Planner(
            self._model,
            self.home.whole,
            data,
            self.rule,
            estimator=estimator,
            batch_size=batch_size,
            local_epochs=local_epochs,
            local_steps=local_steps,
            drop_last=drop_last,
            evaluate_on=self.evaluate_on,
            open_end=watching is not None,
        )
        self._trainer = Trainer(
            self._model,
            self.home.whole,
            data,
            self.rule,
            local=self.home.local,
            estimator=estimator,
            train=train,
            shuffle=shuffle,
            drop_last=drop_last,
            batching=batching,
            device=self.device,
            has_mods=self._has_mods,
            contact=watching,
        )
        chooser = Chooser(self._model, self.home.whole, data, self.device)
        self.merger = Merger(self._model, self.home.whole, data, self.device)
        self._assembler = Assembler(
            self.home, data, self.rule, self._planner, chooser, self.merger, learns=train
        )
        self._evaluator = Evaluator(
            self._model,
            self.home,
            data,
            self.rule,
            self.measures,
            self._planner,
            self._assembler,
            self._trainer,
            self.device,
        )
        self._outbox = Outbox(self.home, self.rule)
        self.train()(self._train)
        self.evaluate()(self._evaluate)
        self.query()(self._query)
        self.query("stage")(self._worked)

    # ---- from the message to the reply -----------------------------------------------------------

    def read(self, content: RecordDict) -> Instructions:
        """Returns what a message's content says."""
        return self._inbox.read(content)

    def trains(self, request: Request) -> bool:
        """Returns whether `train_many` takes the request."""
        return request.message_type in _KINDS and not self._has_mods

    def train_many(self, requests: Sequence[Request], run: RunInfo) -> list[Result]:
        """Returns the results of one request, or of several that share a batch key.

        Raises:
            ConfigError, PayloadError: a request makes no sense.
        """
        if self.uplink is None and self.downlink is None:
            asked = [
                Asked(
                    request.payload.read_by(self),
                    request.message_id,
                    request.client % run.num_partitions,
                    run.run_config.get(SEED_KEY),
                    request.state,
                    request.created_at - DRIFT_BEGINS,
                    request.work,
                )
                for request in requests
            ]
            trained = self._trained([self._assembler.training(each) for each in asked])
            return [
                Result(content=content, state=_with_records(request.state, kept))
                for request, (content, kept) in zip(requests, trained, strict=True)
            ]
        messages = [request.message(own_content=False) for request in requests]
        contexts = [request.context(run) for request in requests]
        contents = self._through_links(messages, contexts)
        return [
            Result(content=content, state=context.state or None)
            for content, context in zip(contents, contexts, strict=True)
        ]

    def train_cohort(self, cohort: CohortRequest, run: RunInfo) -> Result:
        """Returns the one answer of clients that train together; of one, what it does alone.

        Raises:
            ConfigError: the request makes no sense.
        """
        instructions: Instructions = cohort.payload.read_by(self)
        seed, sent_s = run.run_config.get(SEED_KEY), cohort.created_at - DRIFT_BEGINS
        partitions = (cohort.clients % run.num_partitions).tolist()
        trainings, of_partition = [], dict[int, Training]()
        for partition, client, dispatch in zip(
            partitions, cohort.clients.tolist(), cohort.dispatches.tolist(), strict=True
        ):
            name, known = message_id(client, dispatch), of_partition.get(partition)
            if known is None:
                asked = Asked(instructions, name, partition, seed, None, sent_s)
                training = of_partition[partition] = self._assembler.training(asked)
            else:
                training = known.again(name)
            trainings.append(training)
        idle, parts = self._parts(trainings)
        return Result(content=self._outbox.together(trainings, idle, parts))

    def _train(self, message: Message, context: Context) -> Message:
        (content,) = self._through_links([message], [context])
        return Message(content, reply_to=message)

    def _through_links(
        self, messages: Sequence[Message], contexts: Sequence[Context]
    ) -> list[RecordDict]:
        """Returns the contents of replies; what clients keep is written into the contexts."""
        opened = [self._opened(*each) for each in zip(messages, contexts, strict=True)]
        trainings = [
            self._assembler.training(Asked.by(message, context, self.read(message.content)))
            for message, context in zip(opened, contexts, strict=True)
        ]
        contents = []
        for training, message, context, (content, kept) in zip(
            trainings, opened, contexts, self._trained(trainings), strict=True
        ):
            context.state.update(kept)
            if self.uplink is not None:
                received = as_row(self.home.sent.take(as_tensor(training.row)))
                content = self.uplink.pack(self.layout, received, content, message, context)
            contents.append(content)
        return contents

    def _opened(self, message: Message, context: Context) -> Message:
        """Returns a message with the model in it; the client keeps what it has to."""
        if self.downlink is None:
            return message
        content, kept = self.downlink.open(self.layout, message.content, context)
        context.state.update(kept)
        return with_content(message, content)

    def _trained(
        self, trainings: Sequence[Training]
    ) -> list[tuple[RecordDict, dict[str, ArrayRecord]]]:
        """Returns the contents of replies before compression, and what each client has to keep."""
        idle, parts = self._parts(trainings)
        done = {i: self._outbox.unchanged(trainings[i]) for i in idle}
        for members, trained in parts:
            replies = self._outbox.trained([trainings[i] for i in members], trained)
            done.update(zip(members, replies, strict=True))
        return [done[i] for i in range(len(trainings))]

    def _parts(
        self, trainings: Sequence[Training]
    ) -> tuple[list[int], list[tuple[list[int], Trained]]]:
        """Does trainings; returns the places of those without a step, and what came of others."""
        working = [i for i, training in enumerate(trainings) if training.steps]
        # One that trains among several is a program all the same: who else has nothing to do must
        # not change its bits.
        if len(trainings) == 1:
            parts = [([0], self._trainer.alone(trainings[0]))] if working else []
        else:
            parts = self._trainer.together([trainings[i] for i in working])
        idle = [i for i, training in enumerate(trainings) if not training.steps]
        return idle, [([working[i] for i in members], trained) for members, trained in parts]

    def _evaluate(self, message: Message, context: Context) -> Message:
        if self.downlink is not None and is_compressed(message.content):
            message = self._opened(message, context)
        asked = Asked.by(message, context, self.read(message.content))
        return metrics_reply(message, self._evaluator.metrics(asked))

    def _query(self, message: Message, context: Context) -> Message:
        partition = read_partition(context)
        count = self.data.size(partition % self.data.num_partitions)
        return metrics_reply(
            message,
            {
                "num-examples": count,
                "num-partitions": self.data.num_partitions,
                "partition-id": partition,
            },
        )

    def _worked(self, message: Message, context: Context) -> Message:
        """Says that the time of a stage's work has passed (`STAGE_QUERY`)."""
        return metrics_reply(message, {})

    # ---- before the work is done -----------------------------------------------------------------

    @property
    def has_mods(self) -> bool:
        """Whether Flower mods are around the handlers."""
        return self._has_mods

    @property
    def remembers(self) -> bool:
        """Whether clients may keep something: layers, or of their rule, compressed links, mods."""
        links = bool(self.uplink or self.downlink)
        own = self.home.keeps or not self.rule.returns_only_the_model
        own = own or (self.contact is not None and self.contact.watches)
        return own or self._has_mods or links

    @property
    def forward_flops(self) -> int:
        """FLOPs of the model for one example, without gradients."""
        return self._planner.forward_flops

    def memory_bytes(self) -> int:
        """Returns the memory that training takes on a device, in bytes, for the largest batch."""
        return self._planner.memory_bytes

    def plan(
        self, payload: Payload, message_type: str, partition: int, seconds_per_flop: float
    ) -> Workload:
        """Returns what a message's work costs; see `Planner.plan`."""
        instructions: Instructions = payload.read_by(self)
        known = self._reply_bytes
        chooses = instructions.num_models > 1 and instructions.merging is None
        reply_bytes = known and known[chooses]
        if instructions.smoothing is not None or instructions.own_classes:
            reply_bytes = None
        return self._planner.plan(
            instructions, message_type, partition, seconds_per_flop, reply_bytes
        )

    @cached_property
    def _reply_bytes(self) -> tuple[int, int] | None:
        """Size of the reply to `train` messages of one model, and of several.

        None if clients send more than a model, or keep something.
        """
        if self.remembers or self.layout.carried:
            return None
        return self._outbox.model_bytes(chosen=False), self._outbox.model_bytes(chosen=True)

    def check_config(self, config: Mapping[str, Any]) -> None:
        """Checks a configuration that every `train` message would bring.

        Raises:
            ConfigError: it makes no sense, or not with this rule.
        """
        # Rounds count from 1, and schedules of rounds ask which one it is.
        self._inbox.scalars({"server-round": 1, **config})
        read_amount(config)
        read_batch_size(config)
        read_chunks(config)
        read_limits(config)

    def check_batches(self, config: Mapping[str, Any], least: int) -> None:
        """Checks that no client comes upon a batch that is too small for the model.

        Args:
            config: that every `train` message would bring.
            least: examples that a batch must have.

        Raises:
            ConfigError: one would.
        """
        self._planner.check_batches(config, least)

    def check_steps(self, config: Mapping[str, Any]) -> None:
        """Checks that some client does as many steps as the rule needs to move at all.

        Args:
            config: that every `train` message would bring.

        Raises:
            ConfigError: none does.
        """
        self._planner.check_steps(config)

    def reads(self, key: str) -> bool:
        """Returns whether a client obeys a key of a message's configuration."""
        return key in _OBEYED or key in self.rule.honours

    def replaced_by(self, key: str) -> tuple[str, ...]:
        """Returns the arguments that a key of a message's configuration stands in for.

        Those of the rule are called "rule.NAME", those of the correction "correction.NAME".
        """
        if key in ("local-epochs", "local-steps"):
            return "local_epochs", "local_steps"
        if key == "batch-size":
            return ("batch_size",)
        if key == "chunks":
            return "batch_size", "shuffle", "drop_last"
        parts = {"rule": self.optimizer, "correction": self.correction}
        return tuple(
            f"{place}.{name}"
            for place, part in parts.items()
            if part is not None
            for name in part.honours.get(key, ())
        )

    # ---- what is known of answers before clients are asked ---------------------------------------

    def foresees(self, payload: Payload) -> str:
        """Returns why the answers to a `train` message are not known before; "" if they are.

        Without training they are the model as it came, and what a client reports hangs on how many
        examples it has.
        """
        return "clients train" if self.learns else self._unforeseen(payload)

    def _unforeseen(self, payload: Payload) -> str:
        """Returns why it hangs on more than a client's number of examples what an answer costs."""
        if self._reply_bytes is None:
            return "clients keep something, or send more than a model"
        instructions: Instructions = payload.read_by(self)
        if instructions.num_models > 1 or instructions.own_classes:
            return "clients choose among models, or have a loss of their own classes"
        if instructions.limits != (None, None) or instructions.fitting_steps is not None:
            return "the message says for how long clients may work"
        if instructions.chunks is not None or self.data.drift is not None:
            return "the examples of a task are not all that its client has, for good"
        return ""

    def costs(self, payload: Payload, partitions: NDArray[np.int64]) -> ForeseenCosts | None:
        """Returns what the answers of the clients that hold these partitions cost.

        None if more decides than how many examples a client has, or a model is more than its row.
        """
        if not self.learns or self.has_mods or self._unforeseen(payload):
            return None
        instructions: Instructions = payload.read_by(self)
        if not instructions.is_row:
            return None
        sizes = self._sizes[partitions % self.data.num_partitions]
        _, first, which = np.unique(sizes, return_index=True, return_inverse=True)
        plans = [self.plan(payload, "train", i, math.nan) for i in partitions[first].tolist()]
        for plan in plans:
            if plan.flops_of is not None or plan.past_flops or plan.reply_bytes is None:
                return None
        flops = np.array([plan.flops for plan in plans])
        reply_bytes = np.array([plan.reply_bytes for plan in plans], np.int64)
        which = which.reshape(-1)
        return ForeseenCosts(flops[which], reply_bytes[which])

    def answers(
        self, payload: Payload, partitions: NDArray[np.int64], run: RunInfo
    ) -> ForeseenAnswers:
        """Returns what the clients that hold these partitions answer, see `foresees`."""
        sizes = self._sizes[partitions % self.data.num_partitions]
        _, first, which = np.unique(sizes, return_index=True, return_inverse=True)
        requests = [
            Request(client, 0, payload, "train", "", 1.0, run.epoch)
            for client in partitions[first].tolist()
        ]
        plans = [self.plan(payload, "train", request.client, math.nan) for request in requests]
        contents = [self.train_many([request], run)[0].content for request in requests]
        metrics: list[dict[str, Any]] = [
            dict(content[METRICS_KEY].items()) for content in contents if content is not None
        ]
        return ForeseenAnswers(
            which=which.reshape(-1),
            flops=np.array([plan.flops for plan in plans]),
            reply_bytes=np.array([plan.reply_bytes for plan in plans], np.int64),
            metrics=metrics,
        )

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        """How many examples each partition has."""
        return np.array([self.data.size(i) for i in range(self.data.num_partitions)], np.int64)

    # ---- whether clients train together ----------------------------------------------------------

    def batch_key(self, request: Request, run: RunInfo) -> Hashable | None:
        """Returns what requests share that `train_many` takes together, or None.

        None also for a request that `train_many` would refuse: alone, it gets its own error.
        `why_alone` gives the reason. Clients whose schedules begin at different steps, or whose
        batches or roles differ, do not go together.
        """
        if self.why_alone(request) is not None:
            return None
        instructions: Instructions = request.payload.read_by(self)
        of_classes = instructions.own_classes
        role = instructions.role.name
        batch_size, chunks = instructions.batch_size, instructions.chunks
        if chunks is not None:
            partition = request.client % run.num_partitions % self.data.num_partitions
            batch_size = chunks.size(self.data.size(partition))
        first = instructions.first_step
        return "train", first, batch_size, chunks is None, role, of_classes

    def why_alone(self, request: Request) -> str | None:
        """Returns why a request cannot be answered together with others, or None if it can."""
        if request.message_type not in _KINDS:
            return f"{request.message_type!r} messages are answered one by one"
        if self._trainer.not_batchable:
            return self._trainer.not_batchable
        instructions: Instructions = request.payload.read_by(self)
        try:
            # What a downlink brings is only known with the client's own state.
            instructions.check(model=self.downlink is None)
            read_memory(request.state)
        except ConfigError as error:
            return str(error)
        told = request.work is not None or instructions.fitting_steps is not None
        if not told and instructions.limits != (None, None):
            return "its deadline is in wall time: only a clock tells when to stop"
        return None

    def choose_batching(self) -> Batching:
        """Returns whether clients train together, after a trial if that is to be measured.

        The first call decides; to be made before the app goes to other processes.
        """
        return self._trainer.choose(self._assembler.trial)

    def take_batching(self, choice: Batching) -> None:
        """Takes the choice that an earlier process of the same run made."""
        self._trainer.take(choice)


def _with_records(state: RecordDict | None, kept: Mapping[str, ArrayRecord]) -> RecordDict | None:
    return content_of({**(state or NOTHING), **kept}) if kept else state
