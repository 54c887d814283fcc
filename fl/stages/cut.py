"""A model cut into pipeline stages: which piece lies where, and what each stage costs.

A model is a sequence of pieces (`fl.models.pieces_of`). A *span* is a run of them that one machine
computes without sending anything; a *stage* is what one machine holds: one span, or with both ends
together the first and the last one. The *route* of a micro-batch is the order of the spans.

    apart      S stages, S spans:      0 -> 1 -> ... -> S-1
    together   S stages, S + 1 spans:  0 -> 1 -> ... -> S-1 -> 0

With the ends together labels stay where the inputs are (U-shaped split learning), and an embedding
that is also the last layer is one tensor on one machine (CheckFree, arXiv:2506.15461).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fl.checks import at_least
from fl.errors import ConfigError
from fl.models.flops import Flops, flops_per_example, memory_bytes
from fl.models.pieces import pieces_of
from fl.models.structure import drop_weights

Ends = Literal["apart", "together"]


@dataclass(frozen=True)
class Span:
    """Pieces that follow each other on one machine.

    Attributes:
        stage: that holds them.
        first, last: numbers of the pieces, from first up to but not last.
        input_shape, output_shape: of one example's activations, without the batch; the inputs' own
            and the logits' at the ends.
        flops: of one example; backward with the gradients of the span's input, but at the first.
    """

    stage: int
    first: int
    last: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    flops: Flops

    @property
    def output_bytes(self) -> int:
        """Bytes of one example's activations that it sends on, float32; as many come back."""
        return 4 * torch.Size(self.output_shape).numel()


@dataclass(frozen=True)
class PipelineStage:
    """What one machine holds.

    Attributes:
        entries: names of the entries of the model's state dict.
        parameters: how many numbers these are.
        spans: their places in the route: one, or with the ends together two.
    """

    entries: tuple[str, ...]
    parameters: int
    spans: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Cut:
    """A model cut into stages.

    Attributes:
        spans: in the order of the model, which is that of the route unless somebody changes it.
        stages: what each machine holds.
        tokens: whether the inputs are tokens.
    """

    spans: tuple[Span, ...]
    stages: tuple[PipelineStage, ...]
    tokens: bool
    _model: _Pieces

    @classmethod
    def of(
        cls,
        model: nn.Module,
        input_shape: tuple[int, ...],
        num_stages: int,
        *,
        tokens: bool = False,
        ends: Ends = "apart",
        boundaries: Sequence[int] | None = None,
    ) -> Cut:
        """Cuts a model.

        Args:
            model: only its structure is kept.
            input_shape: of one example.
            num_stages: S, at least 2.
            tokens: the inputs are tokens.
            ends: whether the first stage also holds the last span.
            boundaries: numbers of the pieces at which a span begins, without 0; None makes the
                slowest span as fast as can be, by FLOPs of training. With the ends together it
                leaves one piece at each end.

        Raises:
            ConfigError: the model is no sequence of pieces, has buffers or frozen parameters, or
                fewer pieces than spans; or the boundaries, or a tensor that two stages would hold.
        """
        at_least("num_stages", num_stages, 2)
        if ends not in ("apart", "together"):
            raise ConfigError(f"ends is {ends!r}; it must be 'apart' or 'together'")
        structure = copy.deepcopy(model).cpu()
        run = _Pieces(structure)
        count, wanted = len(run), num_stages + (ends == "together")
        name = type(model).__name__
        _check_entries(name, model)
        if count < wanted:
            raise ConfigError(
                f"num_stages is {num_stages} with ends={ends}, which makes {wanted} spans, but "
                f"{name} has {count} pieces that can be apart: lower num_stages, or give the model "
                "more layers"
            )
        dtype = torch.int64 if tokens else torch.float32
        shapes = run.shapes(torch.zeros((1, *input_shape), dtype=dtype))
        costs = [
            flops_per_example(
                _Alone(run, i, i + 1), shapes[i], torch.float32 if i else dtype, inputs=i > 0
            )
            for i in range(count)
        ]
        if boundaries is None:
            training = [cost.training for cost in costs]
            if ends == "apart":
                starts = _balanced(training, num_stages)
            else:
                inner = _balanced(training[1:-1], num_stages - 1)
                starts = [0, *(1 + start for start in inner), count - 1]
        else:
            starts = [0, *boundaries]
            if len(starts) != wanted or any(
                a >= b for a, b in itertools.pairwise([*starts, count])
            ):
                raise ConfigError(
                    f"boundaries is {[*boundaries]}; for {num_stages} stages with ends={ends} it "
                    f"must be {wanted - 1} rising numbers from 1 to {count - 1}, the pieces of "
                    f"{name} at which a span begins"
                )
        spans = tuple(
            Span(
                k % num_stages,
                a,
                b,
                shapes[a],
                shapes[b],
                Flops(sum(c.forward for c in costs[a:b]), sum(c.backward for c in costs[a:b])),
            )
            for k, (a, b) in enumerate(itertools.pairwise([*starts, count]))
        )
        stages = _stages(name, model, run, spans, num_stages)
        drop_weights(structure)
        return cls(spans, stages, tokens, run)

    def forward(self, span: int, entries: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Returns what a span makes of activations, shape (B, *output_shape).

        Args:
            span: its number.
            entries: the entries of its stage, by name.
            x: shape (B, *input_shape).
        """
        where = self.spans[span]
        named = {f"model.{name}": value for name, value in entries.items()}
        output: Tensor = functional_call(self._model, named, (x, where.first, where.last))
        return output

    @property
    def middle(self) -> range:
        """The stages that hold no end of the model, in order; all, if the ends are apart."""
        return range(1 if len(self.stages[0].spans) > 1 else 0, len(self.stages))

    def route(self, *, swapped: bool = False) -> tuple[int, ...]:
        """Returns the spans in the order in which a micro-batch runs them.

        Args:
            swapped: the first two spans between the ends are in each other's place, and the last
                two.
        """
        order = list(range(len(self.spans)))
        if swapped:
            order[1], order[2] = order[2], order[1]
            order[-3], order[-2] = order[-2], order[-3]
        return tuple(order)

    def shapes(self, stage: int) -> tuple[tuple[int, ...], ...]:
        """Returns the shapes of a stage's tensors, in order."""
        state = self._model.model.state_dict()
        return tuple(tuple(state[name].shape) for name in self.stages[stage].entries)

    def memory_bytes(self, stage: int, batch_size: int) -> int:
        """Returns the memory that a step takes on the machine of a stage, in bytes.

        That is the stage with its gradient, and what the backward pass of one micro-batch keeps.

        Args:
            stage: its number.
            batch_size: examples of a micro-batch.
        """
        total = 0
        for k in self.stages[stage].spans:
            span = self.spans[k]
            dtype = torch.int64 if self.tokens and not span.first else torch.float32
            alone = _Alone(self._model, span.first, span.last)
            total += memory_bytes(alone, span.input_shape, batch_size, dtype=dtype)
        return total


class _Pieces(nn.Module):
    """Runs some pieces of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.pieces = tuple(pieces_of(model))  # of a tuple, torch registers nothing twice

    def __len__(self) -> int:
        return len(self.pieces)

    def reads(self, piece: int) -> tuple[str, ...]:
        """Returns the beginnings of the names of what a piece reads."""
        return tuple(f"{module}." for module in self.pieces[piece].reads)

    def forward(self, x: Tensor, first: int, last: int) -> Tensor:
        for piece in self.pieces[first:last]:
            x = piece.run(x)
        return x

    def shapes(self, x: Tensor) -> list[tuple[int, ...]]:
        """Returns the shapes of one example before each piece, and after the last."""
        found = [tuple(x.shape[1:])]
        with torch.no_grad():
            for i in range(len(self)):
                x = self(x, i, i + 1)
                found.append(tuple(x.shape[1:]))
        return found


class _Alone(nn.Module):
    """Some pieces by themselves, with their parameters and no others."""

    def __init__(self, pieces: _Pieces, first: int, last: int) -> None:
        super().__init__()
        self._pieces, self._first, self._last = (pieces,), first, last  # no part of this module
        names = [name for piece in pieces.pieces[first:last] for name in piece.reads]
        self.own = nn.ModuleList(pieces.model.get_submodule(name) for name in names)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self._pieces[0](x, self._first, self._last)
        return output


def _check_entries(name: str, model: nn.Module) -> None:
    buffer = next((n for n, _ in model.named_buffers()), None)
    if buffer is not None:
        raise ConfigError(
            f"model is {name}, which has the buffer {buffer!r}, and micro-batches that pass "
            "through a stage would move it by themselves: use a model without buffers, such as "
            "model.groups=2 instead of BatchNorm"
        )
    frozen = next((n for n, p in model.named_parameters() if not p.requires_grad), None)
    if frozen is not None:
        raise ConfigError(
            f"model is {name}, whose parameter {frozen!r} is frozen, and stages train all that "
            "they hold: use adapter=none, and frozen=[]"
        )


def _stages(
    name: str, model: nn.Module, run: _Pieces, spans: Sequence[Span], num_stages: int
) -> tuple[PipelineStage, ...]:
    """Deals the entries of a model to stages."""
    state = model.state_dict()
    tensors: dict[int, int] = {}  # stage that holds a tensor
    held: list[list[str]] = [[] for _ in range(num_stages)]
    for entry, value in state.items():
        readers = {
            span.stage
            for span in spans
            for piece in range(span.first, span.last)
            if entry.startswith(run.reads(piece))
        }
        first = tensors.setdefault(value.data_ptr(), min(readers))
        if readers != {first}:
            raise ConfigError(
                f"{entry!r} of {name} is read by the stages "
                f"{', '.join(map(str, sorted(readers | {first})))}, and one tensor is held by one "
                "stage: set ends=together, so that the first stage has both ends of the model, or "
                "other boundaries"
            )
        held[first].append(entry)
    made = []
    for stage, entries in enumerate(held):
        own = tuple(k for k, span in enumerate(spans) if span.stage == stage)
        if not entries:
            raise ConfigError(
                f"stage {stage} of {name} has no parameters: set other boundaries, or fewer stages"
            )
        made.append(PipelineStage(tuple(entries), sum(state[e].numel() for e in entries), own))
    return tuple(made)


def _balanced(costs: Sequence[int], count: int) -> list[int]:
    """Returns where `count` runs of costs begin whose largest sum is the least possible.

    Of several ways it takes the one whose earlier runs are longer.
    """
    total = [0, *itertools.accumulate(costs)]
    n = len(costs)
    # best[k][i]: (largest sum of k runs that cover costs[i:], the second run's beginning)
    best: list[dict[int, tuple[int, int]]] = [{}, {i: (total[n] - total[i], n) for i in range(n)}]
    for k in range(2, count + 1):
        best.append({})
        for i in range(n - k + 1):
            options = [
                (max(total[j] - total[i], best[k - 1][j][0]), -j) for j in range(i + 1, n - k + 2)
            ]
            value, j = min(options)
            best[k][i] = (value, -j)
    starts, i = [0], 0
    for k in range(count, 1, -1):
        i = best[k][i][1]
        starts.append(i)
    return starts
