"""Trains clients of one model and rule: one by itself, or several as one program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fl.clients.app.alone import train_alone
from fl.clients.app.batched import (
    gains_from_batching,
    rows_per_program,
    train_together,
    vmap_refuses,
)
from fl.clients.app.batching import Batching, Mode, compare
from fl.clients.app.examples import ExamplePool
from fl.clients.app.memory_format import takes_channels_last
from fl.clients.app.training import Trained, Training
from fl.clients.app.untrained import untrained
from fl.clients.contact import Contact
from fl.clients.estimator import Estimator
from fl.clients.rule import Rule
from fl.data import FederatedData
from fl.errors import ConfigError
from fl.vectors.layout import Layout

_MOST_TRIED = 16  # clients in the trial of "measured"
_MOST_TRIED_ALONE = 4


class Trainer:
    """Trains clients, together where that is possible and chosen.

    Args:
        model: in training mode; only its structure is used.
        layout: of what clients train; the model itself has what it leaves out.
        data: the clients' examples.
        rule: what a local step does.
        local: see `Received`.
        estimator: as of `TrainingApp`.
        train, shuffle, drop_last, batching: as of `TrainingApp`.
        device: where PyTorch trains.
        has_mods: whether Flower mods see the messages.
        contact: ends tasks by the loss of their epochs; None does not.

    Attributes:
        not_batchable: why no two clients train together; empty if they may.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        data: FederatedData,
        rule: Rule,
        *,
        local: Tensor | None,
        estimator: Estimator | None,
        train: bool,
        shuffle: bool,
        drop_last: bool,
        batching: Mode,
        device: torch.device,
        has_mods: bool,
        contact: Contact | None,
    ) -> None:
        self._model = model
        self._layout = layout
        self._data = data
        self._rule = rule
        self._local = None if local is None else local.to(device)
        self._estimator = estimator
        self._train = train
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._batching = batching
        self._contact = contact
        self._device = device
        self._pool = ExamplePool(data, device)
        self._channels_last = takes_channels_last(model, layout, data.input_shape, device)
        self._choice: Batching | None = None
        self.not_batchable = self._why_not_batchable(has_mods)

    def alone(self, training: Training, rule: Rule | None = None) -> Trained:
        """Returns what came of one training, of at least one step, done by itself.

        Args:
            training: what to do.
            rule: what a step does; None is the clients' own rule.
        """
        if not self._train:
            return untrained(self._layout, rule or self._rule, training, self._local)
        return train_alone(
            self._model,
            self._layout,
            self._rule if rule is None else rule,
            self._pool,
            training,
            shuffle=self._shuffle,
            drop_last=self._drop_last,
            channels_last=self._channels_last,
            local=self._local,
            estimator=self._estimator,
            contact=self._contact if rule is None else None,
        )

    def together(self, trainings: Sequence[Training]) -> list[tuple[list[int], Trained]]:
        """Returns what came of trainings, of at least one step each, done as one or more programs.

        Each agrees with what it would be by itself but for rounding, since sums are taken in
        another order: the tests allow 1e-4 relative and 2e-6 absolute after some tens of steps. The
        same trainings in the same order give the same bits.

        Returns:
            For every program, the positions of its trainings and what came of them.

        Raises:
            ConfigError: they cannot be done together.
        """
        if self.not_batchable:
            raise ConfigError(f"cannot train together: {self.not_batchable}")
        if not self._train:
            return [
                ([i], untrained(self._layout, self._rule, training, self._local))
                for i, training in enumerate(trainings)
            ]
        if len({training.batch_size for training in trainings}) > 1:
            raise ConfigError("cannot train together: the batches differ in size")
        if any(training.deadline_s is not None for training in trainings):
            raise ConfigError("cannot train together: a deadline in wall time needs a clock")
        return train_together(
            self._model,
            self._layout,
            self._rule,
            self._pool,
            trainings,
            shuffle=self._shuffle,
            drop_last=self._drop_last,
            local=self._local,
            estimator=self._estimator,
        )

    # ---- whether clients train together ----------------------------------------------------------

    def _why_not_batchable(self, has_mods: bool) -> str:
        if self._batching == "off":
            return "batching is off"
        if has_mods:
            return "mods see one message at a time"
        if not self._train:
            return ""
        if self._contact is not None:
            return f"{type(self._contact).__name__} ends each client's work by its own loss"
        if not self._rule.batchable:
            return f"{type(self._rule).__name__} trains one client at a time"
        moving = [entry.name for entry in self._layout.entries if entry.kind != "trainable"]
        if moving:
            return f"the model has buffers, or tied parameters: {moving}"
        gains, reason = gains_from_batching(self._model, self._device)
        if self._batching == "auto" and not gains:
            return reason
        tokens = self._data.task == "next-token"
        return vmap_refuses(self._model, self._layout, self._data.input_shape, tokens=tokens)

    def choose(self, trial: Callable[[int], Sequence[Training]]) -> Batching:
        """Returns whether clients train together, after a trial if that is to be measured.

        The first call decides; to be made before the app goes to other processes.

        Args:
            trial: makes at most so many trainings to try, of clients that have examples.
        """
        if self._choice is None:
            why = self.not_batchable
            self._choice = Batching(self._batching, not why, why)
            trainings: Sequence[Training] = []
            if self._batching == "measured" and not why:
                most = rows_per_program(self._layout.size, self._device)
                trainings = trial(min(_MOST_TRIED, most))
            if trainings:
                self._choice = compare(
                    partial(self._try_alone, trainings[:_MOST_TRIED_ALONE]),
                    partial(self._try_together, trainings),
                )
                self.not_batchable = self._choice.why
        return self._choice

    def take(self, choice: Batching) -> None:
        """Takes the choice that an earlier process of the same run made."""
        self._choice = choice
        self.not_batchable = choice.why

    def _try_alone(self, trainings: Sequence[Training]) -> int:
        for training in trainings:
            self.alone(training)
        return len(trainings)

    def _try_together(self, trainings: Sequence[Training]) -> int:
        self.together(trainings)
        return len(trainings)
