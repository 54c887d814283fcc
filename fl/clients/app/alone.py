"""One task, trained by itself, with PyTorch's ordinary autograd."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fl.clients.app.batches import batch_bounds, steps_per_epoch, visiting_order
from fl.clients.app.directions import Directions
from fl.clients.app.examples import ExamplePool
from fl.clients.app.personal import Apart, recalled, statistics
from fl.clients.app.training import HOST, Trained, Training, moved
from fl.clients.contact import Contact
from fl.clients.estimator import EstimatedBatch, Estimator
from fl.clients.rule import Batch, Received, Rule
from fl.flower.carried import carried_arrays, carried_tensors
from fl.models.channels_last import with_channels_last
from fl.models.features import features
from fl.models.objective import per_example_loss
from fl.randomness import global_generators
from fl.vectors.layout import Layout
from fl.vectors.rows import as_tensor

LAST_LOSS = "contact/loss"
"""Name in a client's memory of the mean loss of the last whole epoch, where contacts go by that."""


class AutogradBatch:
    """A mini-batch whose gradient comes from `torch.autograd`.

    A forward pass updates the model's buffers (BatchNorm's running statistics), as it does in any
    PyTorch loop; a rule that evaluates a batch twice updates them twice.

    Args:
        model: in training mode; its own parameters and buffers are not touched.
        layout: of the model.
        buffers: current values of the entries that no rule moves, as `Layout.fixed` gives them;
            kept up to date.
        x: inputs, shape (b, ...).
        y: targets, shape (b,) or (b, T).
        apart: what a model that the client keeps has of its own; None if there is none.
        classes: as of `fl.models.objective.per_example_loss`.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        buffers: dict[str, Tensor],
        x: Tensor,
        y: Tensor,
        apart: Apart | None = None,
        classes: Tensor | None = None,
    ) -> None:
        self._classes = classes
        self._model = model
        self._layout = layout
        self._buffers = buffers
        self._x = x
        self._y = y
        self._apart = apart

    @property
    def examples(self) -> int:
        """Number of examples b."""
        return len(self._x)

    @property
    def own(self) -> AutogradBatch:
        """The same examples, with the statistics and the draws of the client's own model."""
        if self._apart is None:
            return self
        x, y, apart = self._x, self._y, self._apart
        return _OwnBatch(self._model, self._layout, apart.buffers, x, y, apart, self._classes)

    def _mean_loss(self, w: Tensor, buffers: dict[str, Tensor] | None = None) -> Tensor:
        buffers = self._buffers if buffers is None else buffers
        entries = {**self._layout.split(w), **buffers}
        # The layout knows all ties: no need to look for them.
        logits = functional_call(self._model, entries, (self._x,), tie_weights=False)
        for name in buffers:  # a model may assign to a buffer what it does not write into it
            buffers[name] = entries[name].detach()
        return per_example_loss(logits, self._y, self._classes).mean()

    def grad(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradient at `w` and the loss there."""
        w = w.detach().requires_grad_()
        loss = self._mean_loss(w)
        (g,) = torch.autograd.grad(loss, w)
        return g, loss.detach()

    def loss(self, w: Tensor) -> Tensor:
        """Returns the loss at `w`."""
        with torch.no_grad():
            return self._mean_loss(w)

    def losses(self, *points: Tensor) -> tuple[Tensor, ...]:
        """Returns the losses at several weights; dropout draws the same for all."""
        of, on = (torch.cuda, (self._x.device,)) if self._x.is_cuda else (torch, ())
        state, losses = of.get_rng_state(*on), []
        for w in points:
            of.set_rng_state(state, *on)
            losses.append(self.loss(w))
        return tuple(losses)

    def _buffers_aside(self) -> dict[str, Tensor]:
        # The statistics of the model in training are those of the passes that take its gradient.
        return {name: buffer.clone() for name, buffer in self._buffers.items()}

    def hessian_product(self, w: Tensor, v: Tensor) -> Tensor:
        """Returns the Hessian at `w` times `v`; buffers stay as they are."""
        w = w.detach().requires_grad_()
        loss = self._mean_loss(w, self._buffers_aside())
        (g,) = torch.autograd.grad(loss, w, create_graph=True)
        (product,) = torch.autograd.grad(g @ v, w, materialize_grads=True)
        return product

    def _features(self, w: Tensor) -> Tensor:
        entries = {**self._layout.split(w), **self._buffers_aside()}
        return features(self._model, entries, self._x)

    def features(self, w: Tensor) -> Tensor:
        """Returns the features at `w`; buffers stay as they are."""
        with torch.no_grad():
            return self._features(w)

    def features_grad(self, loss: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        """Returns the gradient at `w` of a loss of the features; buffers stay as they are."""
        w = w.detach().requires_grad_()
        # Of the last layer there is no gradient: it is 0.
        (g,) = torch.autograd.grad(loss(self._features(w)).mean(), w)
        return g


class _OwnBatch(AutogradBatch):
    """What is drawn in its passes, and moved by them, is the client's own model's."""

    _apart: Apart

    def losses(self, *points: Tensor) -> tuple[Tensor, ...]:
        """Returns the losses at several weights; all are one pass of the model's draws."""
        passes, losses = self._apart.passes, []
        for w in points:
            self._apart.passes = passes
            losses.append(self.loss(w))
        return tuple(losses)

    def _mean_loss(self, w: Tensor, buffers: dict[str, Tensor] | None = None) -> Tensor:
        with self._apart.drawing():
            return super()._mean_loss(w, buffers)

    def _features(self, w: Tensor) -> Tensor:
        with self._apart.drawing():
            return super()._features(w)


def train_alone(
    model: nn.Module,
    layout: Layout,
    rule: Rule,
    pool: ExamplePool,
    task: Training,
    *,
    shuffle: bool,
    drop_last: bool,
    channels_last: bool,
    local: Tensor | None = None,
    estimator: Estimator | None = None,
    contact: Contact | None = None,
) -> Trained:
    """Returns the outcome of one task of at least one step.

    Args:
        model: in training mode; only its structure is used.
        layout: of the model.
        rule: what a step does.
        pool: the training examples; the task is done on its device.
        task: what to do.
        shuffle: permute every epoch.
        drop_last: leave out an epoch's last batch if it is smaller than the others.
        channels_last: give the model images that lie with channels last in memory.
        local: see `Received`.
        estimator: makes the gradient of a batch; None takes the gradient itself.
        contact: ends the task by the loss of its epochs; None does all steps.
    """
    device, batch_size = pool.device, task.batch_size
    row = as_tensor(task.row).to(device)
    w = layout.select(row)
    buffers = layout.fixed(row, moved(carried_tensors(task.carried), device))
    memory = task.memory
    if memory is None:
        memory = rule.first_memory(w, task.scalars)
    server, memory = moved(task.server, device), moved(memory, device)
    received = Received(w, server, memory, dict(task.scalars), task.steps, local)
    apart = Apart(recalled(layout, memory, buffers), task.seed, task.client, task.message_id)
    per_epoch = steps_per_epoch(task.examples, batch_size, drop_last)
    epochs = -(-task.steps // per_epoch)
    last = memory[LAST_LOSS].item() if LAST_LOSS in memory else None
    by_epoch: list[float] = []
    classes = None if task.classes is None else torch.from_numpy(task.classes).to(device)
    order = task.rows[
        visiting_order(
            task.examples,
            epochs,
            task.seed,
            task.client,
            task.message_id,
            shuffle=shuffle and not task.in_order,
        )
    ]
    along = None if estimator is None else Directions(task, estimator, w.shape[0])
    state = rule.init(received)
    losses = []
    size = np.array([task.examples])
    began = time.perf_counter()
    # Whatever the model draws, above all for dropout, belongs to this task and leaves no trace.
    with global_generators(task.seed, "dropout", task.client, task.message_id):
        for t in range(task.steps):
            (start,), (length,) = batch_bounds(t, size, batch_size, drop_last)
            x, y = pool.take(order[start : start + length])
            x = with_channels_last(x) if channels_last else x
            batch: Batch = AutogradBatch(model, layout, buffers, x, y, apart, classes)
            if estimator is not None and along is not None:
                batch = EstimatedBatch(batch, estimator, along.next().to(device))
            w, state, loss = rule.step(w, state, received, batch, t)
            losses.append(loss)
            if contact is not None and (t + 1) % per_epoch == 0:
                by_epoch.append(float(torch.stack(losses[-per_epoch:]).mean()))
                if contact.now(by_epoch, last):
                    break
            elapsed = time.perf_counter() - began
            if task.deadline_s is not None and elapsed * (t + 2) / (t + 1) > task.deadline_s:
                break  # another step of average length would end too late
    steps = len(losses)
    uploaded, extras, memory = rule.finish(w, state, received, steps)
    if rule.keeps_statistics:
        of = apart.buffers if rule.keeps_statistics == "own" else buffers
        memory = {**memory, **statistics(layout, of)}
    if contact is not None and (last := by_epoch[-1] if by_epoch else last) is not None:
        memory = {**memory, LAST_LOSS: torch.tensor(last, dtype=torch.float64)}
    row = layout.join(uploaded, buffers) if uploaded.numel() else uploaded
    return Trained(
        rows=row[None].to(HOST),
        carried=carried_arrays(moved(layout.carried_of(buffers), HOST)),
        extras=moved({name: vector[None] for name, vector in extras.items()}, HOST),
        memory=moved({name: tensor[None] for name, tensor in memory.items()}, HOST),
        losses=[float(torch.stack(losses).mean())],
        steps=[steps],
    )
