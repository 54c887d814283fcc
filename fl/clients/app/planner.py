"""What a client is to do, and what that costs a device: steps, FLOPs, bytes, memory."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fl.clients.app.batches import covered_examples, steps_per_epoch
from fl.clients.app.inbox import Instructions, read_amount, read_batch_size, read_chunks
from fl.clients.app.message_config import read_float, read_int
from fl.clients.estimator import Estimator
from fl.clients.rule import Adaptation, Rule
from fl.data import FederatedData
from fl.errors import ConfigError
from fl.execution.contract import Workload
from fl.models import Flops, flops_per_example, memory_bytes
from fl.models.batch_statistics import keeps_statistics
from fl.vectors.layout import Layout

STAGE_QUERY = "query.stage"
"""Type of a message that asks for the time of a stage's work, of a model that is not here."""

FLOPS_KEY = "flops"
"""What that takes, in its configuration."""


def check_amount(batch_size: int | None, local_epochs: int | None, local_steps: int | None) -> None:
    """Checks what clients do where no message says it.

    Raises:
        ConfigError: a number is below 1, or not exactly one of epochs and steps is set.
    """
    for name, value in (
        ("batch_size", batch_size),
        ("local_epochs", local_epochs),
        ("local_steps", local_steps),
    ):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name} is {value}; it must be a whole number, at least 1, or null")
    if (local_epochs is None) == (local_steps is None):
        raise ConfigError(
            f"local_epochs is {local_epochs} and local_steps is {local_steps}; set one of them "
            "and make the other null"
        )


def evaluated_by_default(on: str | None, data: FederatedData) -> str:
    """Returns on which examples clients evaluate where no message says it, "test" or "train".

    Raises:
        ConfigError: there are no such examples.
    """
    if on not in ("test", "train", None):
        raise ConfigError(f"evaluate_on is {on!r}; it must be 'test', 'train' or null")
    if on == "test" and data.test_partitions is None:
        raise ConfigError(
            f"evaluate_on is 'test', but data {data.name!r} has no held-out examples for each "
            "client: set it to 'train'"
        )
    return on or ("train" if data.test_partitions is None else "test")


class Planner:
    """Plans the work of clients with one model and rule.

    Args:
        model: in training mode; only its structure is used.
        layout: of the model.
        data: the clients' examples.
        rule: what a local step does.
        estimator: as of `TrainingApp`.
        batch_size, local_epochs, local_steps, drop_last, evaluate_on: as of `TrainingApp`.
        open_end: whether only training tells how many steps a task has.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        data: FederatedData,
        rule: Rule,
        estimator: Estimator | None,
        *,
        batch_size: int | None,
        local_epochs: int | None,
        local_steps: int | None,
        drop_last: bool,
        evaluate_on: str,
        open_end: bool,
    ) -> None:
        self._model = model
        self._layout = layout
        self._data = data
        self._rule = rule
        self._estimator = estimator
        self._batch_size = batch_size
        self._local_epochs = local_epochs
        self._local_steps = local_steps
        self._drop_last = drop_last
        self._evaluate_on = evaluate_on
        self._open_end = open_end

    def plan(
        self,
        instructions: Instructions,
        message_type: str,
        partition: int,
        seconds_per_flop: float,
        reply_bytes: int | None,
    ) -> Workload:
        """Returns what a message's work costs, before it is done.

        Training is charged forward and backward FLOPs, or those of an estimate of the gradient, for
        every example of every step (times the rule's gradients per step, and its forward passes
        beside them; and of the first, what the rule does once), evaluation forward FLOPs and those
        of the training that it takes, a query nothing but what it says itself (`STAGE_QUERY`). To
        choose one of k models takes forward FLOPs of each for all of the client's training
        examples, and to merge them those of the passes that this takes; finding partners in what
        they show takes nothing.

        Args:
            instructions: of the message.
            message_type: of the message; what follows a dot is ignored.
            partition: the client's partition-id.
            seconds_per_flop: of the client's device, for this work.
            reply_bytes: of the reply to a `train` message, if known.

        Raises:
            ConfigError: the message's configuration makes no sense, or not with this rule.
        """
        partition %= self._data.num_partitions
        kind = message_type.split(".")[0]
        if kind == "evaluate":
            _, count = self.evaluated_on(instructions.config, partition)
            flops = float(self._flops.forward * count) + self._choosing(instructions, partition)
            if count:
                flops += self._before_evaluation(instructions, self._data.size(partition))
            return Workload(flops, None, self.memory_bytes)
        if message_type == STAGE_QUERY:
            asked = read_float(instructions.config, FLOPS_KEY, least=0.0)
            return Workload(asked or 0.0, reply_bytes=0)
        if kind != "train":
            return Workload(0.0, None, self.memory_bytes)
        examples = self._data.size(partition)
        role = instructions.role  # refuses now what the client would refuse later
        batch_size = self.batch_size(instructions.batch_size)
        if (chunks := instructions.chunks) is not None:
            batch_size = chunks.size(examples) or None
            examples = chunks.count(instructions.amount[1]) * (batch_size or 0)
        steps = self.steps(instructions.amount, examples, batch_size)
        once = role.gradients_once * self._covered(min(steps, 1), examples, batch_size)
        once *= self._gradient_flops
        per_example = self._step_flops(role.gradients_per_step, role.forwards_per_step)
        deadline, elapsed = instructions.limits
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
                least,
                steps,
                examples,
                seconds_per_example,
                limit - once * seconds_per_flop,
                batch_size,
            )
        choosing = self._choosing(instructions, partition)

        def flops_of(steps: int) -> float:
            trained = per_example * self._covered(steps, examples, batch_size)
            return trained + (once if steps else 0.0) + choosing

        flops = flops_of(steps)
        if self._open_end and elapsed is None:
            return Workload(flops, fitting, self.memory_bytes, flops_of=flops_of, local_steps=steps)
        if elapsed is not None:
            return Workload(0.0, fitting, self.memory_bytes, flops, reply_bytes)
        return Workload(flops, fitting, self.memory_bytes, 0.0, reply_bytes, local_steps=steps)

    def _choosing(self, instructions: Instructions, partition: int) -> float:
        """Returns the FLOPs by which a client chooses one of the models that came, or merges them.

        Those of forward passes over its training examples.
        """
        passes = k if (k := instructions.num_models) > 1 else 0
        if instructions.merging is not None:
            passes = instructions.merging.passes(statistics=keeps_statistics(self._model))
        return float(self._flops.forward * passes * self._data.size(partition)) if passes else 0.0

    def _before_evaluation(self, instructions: Instructions, examples: int) -> float:
        """Returns the FLOPs of the training that makes the model which is to be evaluated."""
        batch_size = self.batch_size(instructions.batch_size)
        parts: list[tuple[float, float, int]] = []  # FLOPs per step and once, steps
        if instructions.evaluated == "local":
            role, steps = instructions.role, self.steps(instructions.amount, examples, batch_size)
            every = self._step_flops(role.gradients_per_step, role.forwards_per_step)
            parts = [(every, role.gradients_once * self._gradient_flops, steps)]
        elif instructions.evaluated == "personal":
            parts = [
                (
                    self._step_flops(a.rule.gradients_per_step, a.rule.forwards_per_step),
                    0.0,
                    self.adapting_steps(a, examples, batch_size),
                )
                for a in instructions.adaptations
            ]
        return sum(
            every * self._covered(steps, examples, batch_size)
            + once * self._covered(min(steps, 1), examples, batch_size)
            for every, once, steps in parts
        )

    def adapting_steps(self, adaptation: Adaptation, examples: int, batch_size: int | None) -> int:
        """Returns how many steps a client adapts a model by; arguments as of `steps`."""
        return self.steps((adaptation.epochs, adaptation.steps), examples, batch_size)

    def batch_size(self, told: int | None) -> int | None:
        """Returns the examples of a step, None for all: what a message tells, or the app's."""
        return self._batch_size if told is None else told

    def steps(
        self, amount: tuple[int | None, int | None], examples: int, batch_size: int | None
    ) -> int:
        """Returns how many steps a client does, whatever they take.

        Args:
            amount: epochs and steps that the message asks for; where both are None, the app's own
                count.
            examples: the client's.
            batch_size: as from `batch_size`.
        """
        epochs, steps = amount
        if epochs is None and steps is None:
            epochs, steps = self._local_epochs, self._local_steps
        per_epoch = steps_per_epoch(examples, batch_size, self._drop_last)
        if epochs is not None:
            return epochs * per_epoch
        return steps or 0 if per_epoch else 0

    def _fitting_steps(
        self,
        fewest: int,
        most: int,
        examples: int,
        seconds_per_example: float,
        deadline: float,
        batch_size: int | None,
    ) -> int:
        """Returns the most steps that end by the deadline, between `fewest` and `most`."""
        while fewest < most:
            middle = (fewest + most + 1) // 2
            seconds = self._covered(middle, examples, batch_size) * seconds_per_example
            # The last bit of a product must not cost a step that fits exactly.
            if seconds <= deadline * (1 + 1e-9):
                fewest = middle
            else:
                most = middle - 1
        return fewest

    def _covered(self, steps: int, examples: int, batch_size: int | None) -> int:
        """Returns how many examples (with repeats) so many steps of a client take."""
        return covered_examples(steps, examples, batch_size, self._drop_last)

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
        amount, chunks = read_amount(config), read_chunks(config)
        batch_size = self.batch_size(read_batch_size(config))
        for partition, size in enumerate(self._data.partitions.sizes.tolist()):
            if chunks is not None:
                if (each := chunks.size(size)) >= least:
                    continue
                raise ConfigError(
                    f"the model can only be trained on batches of at least {least} examples, and "
                    f"the {chunks.of} chunks of client {partition} have {each}: use a model "
                    "without batch normalisation, or fewer clients"
                )
            steps = self.steps(amount, size, batch_size)
            epoch = steps_per_epoch(size, batch_size, self._drop_last)
            whole = self._covered(epoch - 1, size, batch_size)
            last = self._covered(epoch, size, batch_size) - whole
            if self._covered(min(steps, 1), size, batch_size) < least * min(steps, 1):
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
                f"batch_size is {batch_size}): {remedy}"
            )

    def check_steps(self, config: Mapping[str, Any]) -> None:
        """Checks that some client does as many steps as the rule needs to move at all.

        Args:
            config: that every `train` message would bring.

        Raises:
            ConfigError: none does.
        """
        least, amount = self._rule.least_steps, read_amount(config)
        if least == 1:
            return
        batch_size = self.batch_size(read_batch_size(config))
        sizes = self._data.partitions.sizes.tolist()
        most = max((self.steps(amount, size, batch_size) for size in sizes), default=0)
        if not 0 < most < least:
            return
        told = [(key, config[key]) for key in ("local-steps", "local-epochs") if key in config]
        own = ("local_steps", self._local_steps), ("local_epochs", self._local_epochs)
        name, value = next(pair for pair in (*told, *own) if pair[1] is not None)
        raise ConfigError(
            f"{name} is {value}, by which clients do {most} at most of the {least} steps in which "
            f"{type(self._rule).__name__} moves the model once: set local_steps to a multiple of "
            f"{least}, and local_epochs to null"
        )

    def evaluated_on(self, config: Mapping[str, Any], partition: int) -> tuple[bool, int]:
        """Returns whether a message's model is evaluated on held-out examples, and on how many."""
        on = config.get("evaluate-on", self._evaluate_on)
        held_out = self._data.test_partitions if on == "test" else None
        if on not in ("test", "train") or (on == "test" and held_out is None):
            raise ConfigError(
                f"the message's 'evaluate-on' is {on!r}; it must be 'train', or 'test' where "
                "clients have held-out examples"
            )
        most = read_int(config, "evaluate-examples", least=1)
        there = len((self._data.partitions if held_out is None else held_out)[partition])
        return held_out is not None, there if most is None else min(most, there)

    @property
    def forward_flops(self) -> int:
        """FLOPs of the model for one example, without gradients."""
        return self._flops.forward

    @cached_property
    def _gradient_flops(self) -> float:
        """FLOPs of what the rule gets for a gradient, for one example."""
        of = self._estimator
        return float(self._flops.training if of is None else of.flops(self._flops))

    def _step_flops(self, gradients: float, forwards: float) -> float:
        """Returns the FLOPs of a step for one example."""
        return self._gradient_flops * gradients + self._flops.forward * forwards

    @cached_property
    def memory_bytes(self) -> int:
        """The memory that training takes on a device, in bytes, for the largest batch."""
        largest = int(self._data.partitions.sizes.max(initial=1))
        batch = largest if self._batch_size is None else min(self._batch_size, largest)
        with self._refusing_inputs():
            of = self._estimator
            counted = memory_bytes(
                self._model,
                self._data.input_shape,
                batch,
                self._rule.vectors,
                self._input_dtype,
                forwards=0 if of is None else of.activations,
            )
        self._let_go()
        return counted

    @cached_property
    def _flops(self) -> Flops:
        with self._refusing_inputs():
            counted = flops_per_example(self._model, self._data.input_shape, self._input_dtype)
        self._let_go()
        return counted

    @contextmanager
    def _refusing_inputs(self) -> Iterator[None]:
        """Says in what is raised inside that the model does not take the data's inputs."""
        try:
            yield
        except RuntimeError as error:
            raise ConfigError(
                f"the model does not take inputs of shape {self._data.input_shape} and type "
                f"{self._input_dtype} ({str(error).splitlines()[0]}); one in float16 throughout "
                "needs .float()"
            ) from error

    def _let_go(self) -> None:
        """Frees the gradients that torch's counters leave in cycles, if they are large."""
        if self._layout.is_large:
            gc.collect()

    @property
    def _input_dtype(self) -> torch.dtype:
        return torch.int64 if self._data.task == "next-token" else torch.float32
