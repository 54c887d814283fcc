"""Many tasks of one rule, trained together as `torch.func.vmap` programs.

A small model leaves a CPU idle: a step costs a few large operations' worth of Python and
dispatch. Here a program trains up to some hundred clients, a row of an (n, d) matrix each, with
the same rule and the same code that trains one (`fl.clients.app.alone`); results agree within
floating point tolerance, and are bit-identical if the same tasks come in the same order.

Clients differ in size, so programs are formed by a rule that depends on nothing but the tasks:

1. Tasks are sorted by the width of their batches, min(batch size, examples), rounded up to a power
   of two (at most the batch size), then by their steps, most first, then by their position.
2. Tasks of one width form programs of consecutive tasks, as few and as equal in number as
   `rows_per_program(d)` allows.

Within a program, step t runs on the tasks that still have one. They are a prefix, since tasks with
most steps come first, so no step is wasted. A batch shorter than the longest of its step is padded
with repeats of its last example, at weight 0. By the rounding, less than half of all examples
computed in an epoch are padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vmap
from torch.utils._pytree import tree_map

from fl.clients.app.batches import batch_bounds, steps_per_epoch, visiting_order
from fl.clients.app.directions import Directions
from fl.clients.app.examples import ExamplePool
from fl.clients.app.training import HOST, Trained, Training, moved
from fl.clients.estimator import EstimatedBatch, Estimator
from fl.clients.rule import Batch, Finished, Received, Rule, Scalar, State
from fl.execution.batches import even_runs
from fl.models.features import features
from fl.models.game import Game
from fl.models.objective import per_example_loss
from fl.models.without_compiler import grad_without_compiler
from fl.vectors.layout import Layout
from fl.vectors.rows import as_tensor

grad_without_compiler()

# Rows of a program together take at most this much: its vectors (weights, gradient, momentum) then
# stay in cache from step to step. One program of 80 MLPs of 50,000 weights is a quarter slower than
# four of 20.
PROGRAM_BYTES = 4 * 2**20
GPU_PROGRAM_BYTES = 2**30  # a GPU has no such cache, and needs much work at a time
MAX_ROWS = 512
_CLASSES = ("classes", "")
# With more weights than this, a step is bound by reading and writing them, alone or together:
# 50,000 weights gain a factor of 3, 200,000 nothing, 670,000 lose a quarter.
MAX_PARAMETERS = 150_000


def rows_per_program(size: int, device: torch.device = HOST) -> int:
    """Returns how many clients train as one program, for rows of length `size`."""
    bytes_at_once = PROGRAM_BYTES if device.type == "cpu" else GPU_PROGRAM_BYTES
    return max(1, min(MAX_ROWS, bytes_at_once // (4 * max(size, 1))))


# Layers whose cost per client falls when clients are stacked: dense algebra becomes one batched
# product, elementwise work one long loop.
_GAINING = (
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    Game,
)


def gains_from_batching(model: nn.Module, device: torch.device = HOST) -> tuple[bool, str]:
    """Says whether clients with this model train faster together than one by one.

    A rule on the model's structure, not a measurement, so that the choice is the same on every
    machine. On a GPU all models gain whose results cannot depend on the batch. On a CPU stacks of
    dense layers, embeddings, layer normalisation and elementwise functions do; convolutions become
    grouped convolutions, which are slower than one after another; recurrent layers have no batched
    kernel; and beyond `MAX_PARAMETERS` weights memory is the limit.

    Returns:
        Whether it gains, and why not.
    """
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    on_cpu = device.type == "cpu"
    if on_cpu and parameters > MAX_PARAMETERS:
        return False, f"{parameters} parameters are more than {MAX_PARAMETERS}: memory is the limit"
    for name, module in model.named_modules():
        kind = type(module)
        if isinstance(module, _GAINING) or kind.__module__ == nn.modules.activation.__name__:
            if on_cpu and isinstance(module, nn.MultiheadAttention):
                return False, f"attention {name!r} has no batched kernel"
            if isinstance(module, nn.RReLU):
                return False, f"RReLU {name!r} draws numbers that would depend on the batch"
            continue
        if isinstance(module, nn.modules.dropout._DropoutNd):
            if module.p > 0:
                return False, f"dropout {name!r} draws numbers that would depend on the batch"
            continue
        leaf = next(module.children(), None) is None
        if on_cpu and (leaf or next(module.parameters(recurse=False), None) is not None):
            return False, f"{kind.__name__} {name!r} is not known to train faster in a batch"
    return True, ""


def vmap_refuses(
    model: nn.Module, layout: Layout, input_shape: tuple[int, ...], *, tokens: bool
) -> str:
    """Returns why `vmap` cannot take a model; empty if it can.

    A module's code can do what its structure does not show: draw random numbers, or branch on
    values. So the loss is tried, of two clients with one example of zeros. Not its gradient, which
    passes through the same code.

    Args:
        model: in training mode, without buffers.
        layout: of the model.
        input_shape: shape of one input.
        tokens: the model takes tokens and predicts one at every position.
    """
    x = torch.zeros(2, 1, *input_shape, dtype=torch.int64 if tokens else torch.float32)
    y = torch.zeros(2, 1, *(input_shape if tokens else ()), dtype=torch.int64)

    def loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return VmapBatch(model, layout, x, y, None, 1).loss(w)

    try:
        with torch.no_grad():
            vmap(loss)(torch.zeros(2, layout.num_trainable), x, y)
    except (RuntimeError, ValueError, TypeError) as error:
        return f"vmap cannot take the model: {str(error).splitlines()[0]}"
    return ""


def train_together(
    model: nn.Module,
    layout: Layout,
    rule: Rule,
    pool: ExamplePool,
    tasks: Sequence[Training],
    *,
    shuffle: bool,
    drop_last: bool = False,
    local: Tensor | None = None,
    estimator: Estimator | None = None,
) -> list[tuple[list[int], Trained]]:
    """Returns the outcomes of tasks of at least one step each.

    Args:
        model: in training mode, without buffers; only its structure is used.
        layout: of the model.
        rule: what a step does.
        pool: the training examples; the tasks are done on its device.
        tasks: what to do, with batches of one size.
        shuffle: permute every epoch.
        drop_last: leave out an epoch's last batch if it is smaller than the others.
        local: see `Received`.
        estimator: makes the gradient of a batch; None takes the gradient itself.

    Returns:
        For every program, the positions of its tasks and what came of them. Rows are not copied
        into one matrix here: that costs as much as a step of a small model, and whoever needs it
        may hold the results of several calls.
    """
    outcomes = []
    limit = rows_per_program(layout.size, pool.device)
    for members in form_programs(tasks, limit):
        chosen = [tasks[i] for i in members]
        program = _Program(model, layout, rule, pool, chosen, shuffle, drop_last, local, estimator)
        outcomes.append((members, program.run()))
    return outcomes


def form_programs(tasks: Sequence[Training], limit: int) -> list[list[int]]:
    """Returns the positions of the tasks that train as one program, for each program.

    Args:
        tasks: in any order.
        limit: most tasks of a program.
    """
    widths = [_rounded_width(task.examples, task.batch_size) for task in tasks]
    order = sorted(range(len(tasks)), key=lambda i: (widths[i], -tasks[i].steps, i))
    programs = []
    for _, group in groupby(order, key=widths.__getitem__):
        members = list(group)
        programs += even_runs(members, -(-len(members) // limit))
    return programs


def _rounded_width(examples: int, batch_size: int | None) -> int:
    if batch_size is not None and examples >= batch_size:
        return batch_size
    width = 1 << (examples - 1).bit_length()
    return width if batch_size is None else min(width, batch_size)


class VmapBatch:
    """A mini-batch inside `vmap`: every client sees its own weights, inputs and targets.

    Args:
        model: in training mode.
        layout: of the model.
        x: inputs, shape (b, ...).
        y: targets, shape (b,) or (b, T).
        share: weight of each example in the mean loss, shape (b,), 0 for padding; None is 1/b.
        examples: number of examples that are not padding.
        classes: as of `fl.models.objective.per_example_loss`.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        x: Tensor,
        y: Tensor,
        share: Tensor | None,
        examples: Scalar,
        classes: Tensor | None = None,
    ) -> None:
        self._classes = classes
        self._model = model
        self._layout = layout
        self._x = x
        self._y = y
        self._share = share
        self._examples = examples

    @property
    def examples(self) -> Scalar:
        """Number of examples."""
        return self._examples

    @property
    def own(self) -> VmapBatch:
        """The batch itself: a model that trains so has no statistics, and draws nothing."""
        return self

    def loss(self, w: Tensor) -> Tensor:
        """Returns the loss at `w`."""
        # A layout without other entries than trained parameters: nothing tied to look for.
        parameters = self._layout.split(w)
        logits = functional_call(self._model, parameters, (self._x,), tie_weights=False)
        return self._mean(per_example_loss(logits, self._y, self._classes))

    def _mean(self, losses: Tensor) -> Tensor:
        return losses.mean() if self._share is None else (losses * self._share).sum()

    def losses(self, *points: Tensor) -> tuple[Tensor, ...]:
        """Returns the losses at several weights; a model that trains so draws nothing."""
        return tuple(self.loss(w) for w in points)

    def grad(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradient at `w` and the loss there."""
        g, loss = grad_and_value(self.loss)(w)
        return g, loss

    def hessian_product(self, w: Tensor, v: Tensor) -> Tensor:
        """Returns the Hessian at `w` times `v`."""
        product: Tensor = grad(lambda w: grad(self.loss)(w) @ v)(w)
        return product

    def features(self, w: Tensor) -> Tensor:
        """Returns the features at `w`."""
        return features(self._model, self._layout.split(w), self._x)

    def features_grad(self, loss: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        """Returns the gradient at `w` of a loss of the features."""
        g: Tensor = grad(lambda w: self._mean(loss(self.features(w))))(w)
        return g


class _Program:
    """Tasks that train together; those with most steps come first."""

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        rule: Rule,
        pool: ExamplePool,
        tasks: list[Training],
        shuffle: bool,
        drop_last: bool,
        local: Tensor | None,
        estimator: Estimator | None,
    ) -> None:
        self.local = local
        self.estimator = estimator
        self.model = model
        self.layout = layout
        self.rule = rule
        self.pool = pool
        self.device = pool.device
        self.batch_size = batch_size = tasks[0].batch_size
        self.drop_last = drop_last
        self.tasks = tasks
        self.steps = np.array([task.steps for task in tasks])
        self.sizes = np.array([task.examples for task in tasks])
        orders = [
            task.rows[
                visiting_order(
                    task.examples,
                    -(-task.steps // steps_per_epoch(task.examples, batch_size, drop_last)),
                    task.seed,
                    task.client,
                    task.message_id,
                    shuffle=shuffle and not task.in_order,
                )
            ]
            for task in tasks
        ]
        self.order = np.concatenate(orders)
        self.begins = np.cumsum([0, *(len(order) for order in orders[:-1])])
        self.directions: list[Directions] = []
        if estimator is not None:
            size = layout.num_trainable
            self.directions = [Directions(task, estimator, size) for task in tasks]

    def run(self) -> Trained:
        """Returns what came of the tasks."""
        n = len(self.tasks)
        self._receive()
        own = self.own
        # What `init` and `finish` return has a row per client even where all received one model.
        everyone = {("w", ""): self.shared.w.expand(n, -1), **own}
        state = vmap(lambda own: self.rule.init(self._received(own)))(everyone)
        w: Tensor = own.get(("w", ""), self.shared.w)
        w_dim = 0 if ("w", "") in own else None
        total = torch.zeros(n, device=self.device)
        ended: list[Any] = []  # (w, state, total) of tasks without steps left, last ones first
        active = n
        for t in range(int(self.steps[0])):
            going_on = int((self.steps > t).sum())
            if going_on < active:
                ended.append(_rows((w, state, total), slice(going_on, active)))
                w, state, total, own = _rows((w, state, total, own), slice(going_on))
                active = going_on
            w, state, loss = self._step(w, w_dim, state, own, t, active)
            w_dim = 0
            total = total + loss
        for tail in reversed(ended):
            w, state, total = tree_map(lambda a, b: torch.cat([a, b]), (w, state, total), tail)
        w, extras, memory = self._finish(w, state, everyone)
        losses = total / torch.from_numpy(self.steps).to(self.device)
        return Trained(
            rows=w.contiguous().to(HOST),  # if no step has moved it, it is one model for all
            carried={},
            extras=moved(extras, HOST),
            memory=moved(memory, HOST),
            losses=losses.tolist(),
            steps=self.steps.tolist(),
        )

    def _receive(self) -> None:
        """Sorts what the clients received into what they share and what each has of its own."""
        tasks, first = self.tasks, self.tasks[0]
        self.own: dict[tuple[str, str], Tensor] = {}
        self.shared = Received(as_tensor(first.row), {}, {}, {}, first.steps)
        if not _one([task.row for task in tasks]):
            self.own["w", ""] = torch.from_numpy(np.stack([task.row for task in tasks]))
        for name in first.server:
            vectors = [task.server[name] for task in tasks]
            if _one([vector.numpy() for vector in vectors]):
                self.shared.server[name] = vectors[0]
            else:
                self.own["server", name] = torch.stack(vectors)
        for name, tensors in self._memories().items():
            self.own["memory", name] = torch.stack(tensors)
        for name, scalar in first.scalars.items():
            scalars = [task.scalars[name] for task in tasks]
            if all(other == scalar for other in scalars):
                self.shared.scalars[name] = scalar
            else:
                self.own["scalars", name] = torch.tensor(scalars)
        if any(task.steps != first.steps for task in tasks):
            self.own["steps", ""] = torch.from_numpy(self.steps)
        classes = [task.classes for task in tasks if task.classes is not None]
        if classes:
            self.own[_CLASSES] = torch.from_numpy(np.stack(classes))
        self.own = {key: tensor.to(self.device) for key, tensor in self.own.items()}
        shared = self.shared
        self.shared = Received(
            shared.w.to(self.device),
            moved(shared.server, self.device),
            {},
            shared.scalars,
            shared.steps,
            self.local,
        )

    def _received(self, own: dict[tuple[str, str], Tensor]) -> Received:
        """Returns what one client received, given what is its own."""
        w, steps = self.shared.w, self.shared.steps
        fields: dict[str, dict[str, Any]] = {
            "server": dict(self.shared.server),
            "memory": {},
            "scalars": dict(self.shared.scalars),
        }
        for (field, name), value in own.items():
            if field == "w":
                w = value
            elif field == "steps":
                steps = value
            elif (field, name) != _CLASSES:
                fields[field][name] = value
        return Received(w, **fields, steps=steps, local=self.local)

    def _memories(self) -> dict[str, list[Tensor]]:
        fresh: dict[int, dict[str, Tensor]] = {}
        memories = []
        for task in self.tasks:
            if task.memory is not None:
                memories.append(task.memory)
                continue
            if id(task.row) not in fresh:
                fresh[id(task.row)] = self.rule.first_memory(as_tensor(task.row), task.scalars)
            memories.append(fresh[id(task.row)])
        return {name: [memory[name] for memory in memories] for name in memories[0]}

    def _step(
        self,
        w: Tensor,
        w_dim: int | None,
        state: State,
        own: dict[tuple[str, str], Tensor],
        t: int,
        active: int,
    ) -> tuple[Tensor, State, Tensor]:
        """Returns weights, state and losses after step t of the first `active` tasks."""
        starts, lengths = batch_bounds(t, self.sizes[:active], self.batch_size, self.drop_last)
        width = int(lengths.max())
        places = np.arange(width)[None]
        padding: tuple[Tensor, ...] = ()
        if lengths.min() < width:
            real = places < lengths[:, None]
            share = torch.from_numpy((real / lengths[:, None]).astype(np.float32))
            padding = (share.to(self.device), torch.from_numpy(lengths).to(self.device))
            places = np.minimum(places, lengths[:, None] - 1)
        z = None
        if self.directions:
            z = torch.stack([each.next() for each in self.directions[:active]]).to(self.device)
        x, y = self.pool.take(self.order[(self.begins[:active] + starts)[:, None] + places])

        def step(
            w: Tensor,
            state: State,
            own: dict[tuple[str, str], Tensor],
            x: Tensor,
            y: Tensor,
            z: Tensor | None,
            *padding: Tensor,
        ) -> tuple[Tensor, State, Tensor]:
            share, examples = padding or (None, width)
            classes = own.get(_CLASSES)
            batch: Batch = VmapBatch(self.model, self.layout, x, y, share, examples, classes)
            if self.estimator is not None and z is not None:
                batch = EstimatedBatch(batch, self.estimator, z)
            return self.rule.step(w, state, self._received(own), batch, t)

        z_dim = None if z is None else 0
        every = vmap(step, in_dims=(w_dim, 0, 0, 0, 0, z_dim, *(0 for _ in padding)))
        result: tuple[Tensor, State, Tensor] = every(w, state, own, x, y, z, *padding)
        return result

    def _finish(self, w: Tensor, state: State, everyone: dict[tuple[str, str], Tensor]) -> Finished:
        if self.rule.returns_only_the_model:
            return Finished(w, {}, {})

        def finish(
            w: Tensor, state: State, own: dict[tuple[str, str], Tensor], steps: Tensor
        ) -> Finished:
            return self.rule.finish(w, state, self._received(own), steps)

        finished: Finished = vmap(finish)(
            w, state, everyone, torch.from_numpy(self.steps).to(self.device)
        )
        return finished


def _one(rows: Sequence[NDArray[np.float32]]) -> bool:
    """Says whether all rows are the same memory."""
    first = rows[0]
    if all(row is first for row in rows):
        return True
    start = first.ctypes.data
    return all(row.ctypes.data == start for row in rows)


def _rows(tree: Any, rows: slice) -> Any:
    return tree_map(lambda tensor: tensor[rows], tree)
