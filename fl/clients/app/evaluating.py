"""Evaluates models on a client's examples: the received one, or what the client makes of it."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from fl.clients.app.assembling import Asked, Assembler
from fl.clients.app.home import Home
from fl.clients.app.personal import predicts_with
from fl.clients.app.planner import Planner
from fl.clients.app.trainer import Trainer
from fl.clients.app.training import Training, moved
from fl.clients.rule import Rule
from fl.data import FederatedData
from fl.flower.carried import carried_arrays, carried_tensors
from fl.models import Measures, copy_of, drop_weights
from fl.randomness import generator
from fl.vectors.rows import as_tensor

Model = tuple[Tensor, dict[str, Tensor]]
"""A row, shape (d,), and the entries outside it, in host memory."""


class Evaluator:
    """Answers `evaluate` messages of clients with one model and rule.

    Args:
        model: only its structure is used.
        home: says what of the model stays with the client.
        data: the clients' examples.
        rule: of the clients.
        measures: what is reported.
        planner: says on which examples, and how long training before takes.
        assembler: makes the task of a message.
        trainer: trains before, if the message asks for that.
        device: where PyTorch evaluates.
    """

    def __init__(
        self,
        model: nn.Module,
        home: Home,
        data: FederatedData,
        rule: Rule,
        measures: Measures,
        planner: Planner,
        assembler: Assembler,
        trainer: Trainer,
        device: torch.device,
    ) -> None:
        self._structure = model
        self._home = home
        self._data = data
        self._rule = rule
        self._measures = measures
        self._planner = planner
        self._assembler = assembler
        self._trainer = trainer
        self._device = device

    @cached_property
    def _model(self) -> nn.Module:
        return copy_of(self._structure)

    def metrics(self, asked: Asked) -> dict[str, int | float]:
        """Returns what a client reports of the model that a message wants evaluated.

        Raises:
            ConfigError: the message makes no sense.
        """
        partition = asked.partition % self._data.num_partitions
        held_out, count = self._planner.evaluated_on(asked.instructions.config, partition)
        found = self._measures.nothing()
        if count:
            local = asked.instructions.evaluated == "local"
            task = self._assembler.training(asked) if local else self._assembler.model(asked)
            row, entries = self._asked_for(asked, task)
            self._home.whole.load(self._model, row.to(self._device), moved(entries, self._device))
            x, y = self._data.examples_of(partition, asked.sent_s, held_out=held_out)
            if count < len(y):
                rng = generator(task.seed, "evaluated examples", partition, asked.message_id)
                some = torch.as_tensor(rng.choice(len(y), count, replace=False))
                x, y = x[some], y[some]
            found = self._measures(self._model, (x.to(self._device), y.to(self._device)))
            drop_weights(self._model)
        return {"num-examples": count, "loss": found["loss"], **found}

    def _asked_for(self, asked: Asked, task: Training) -> Model:
        """Returns the model that a message wants evaluated, of the one that the client has."""
        which = asked.instructions.evaluated
        if which == "local":
            return self._after(task, self._rule)
        if which == "global":
            return as_tensor(task.row), carried_tensors(task.carried)
        model = predicts_with(self._home, self._rule, task)
        for i, adaptation in enumerate(asked.instructions.adaptations):
            row, entries = model
            task = replace(
                task,
                message_id=f"{asked.message_id}/{i}",
                row=row.numpy(),
                carried=carried_arrays(entries),
                memory=None,
                scalars=adaptation.rule.scalars({}),
                steps=self._planner.adapting_steps(adaptation, task.examples, task.batch_size),
            )
            model = self._after(task, adaptation.rule)
        return model

    def _after(self, task: Training, rule: Rule) -> Model:
        """Returns what a rule makes of a model; the model itself if it sends none, or no step."""
        if task.steps:
            trained = self._trainer.alone(task, rule)
            if trained.rows.shape[1]:
                return trained.rows[0], carried_tensors(trained.carried)
        return as_tensor(task.row), carried_tensors(task.carried)
