"""What a client rule is: `init`, `step` and `finish` on flat vectors.

A rule is a frozen dataclass of hyperparameters whose methods are pure functions of tensors. The
same code runs for one client, on vectors of shape (p,), and for many at once, where
`torch.func.vmap` adds a leading dimension the rule never sees. From that follow the limits on what
a rule may do:

- no branch on the value of a tensor, no `.item()`, no in-place change of what it was given;
- a scalar in `Received.scalars`, and `Received.steps`, is a number, or a 0-d tensor where clients
  of one batch differ, so compute with it but do not branch on it, unless it makes their `role`;
- no random numbers: a rule that needs some takes them from its memory, seeded by the server.

How methods with more machinery fit, without a change here:

- What is added to the gradient before an optimizer steps by it, as in FedProx and SCAFFOLD, is a
  correction (`fl.clients.correction`) and goes with every `LocalOptimizer`.
- SAM (arXiv:2010.01412): an optimizer that takes its gradient elsewhere overrides `gradient`, and
  sets `gradients_per_step = 2`.
- Estimates by forward passes alone are no matter of a rule: `batch.grad` returns them in the place
  of gradients (`fl.clients.estimator`).
- Client momentum that outlives the round: `finish` returns the buffer as memory, `init` takes it.
- MicroAdam (arXiv:2405.15593): state and memory may be any tree of tensors of any type and shape.
- Variance reduction: `batch.grad` may be called at two points of the same batch.
- A full gradient, as in SCAFFOLD's option I: steps that leave `w` alone and sum
  `batch.examples * g` in the state.
- A model of the client's own, as in Ditto (arXiv:2012.04221): it is memory, trained through
  `batch.own`, and `personal` says what the client predicts with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, Self

from torch import Tensor, nn

from fl.vectors.layout import Layout

Scalar = float | Tensor
State = Any  # a tree (tuples, named tuples, lists, dicts) of tensors


class Received(NamedTuple):
    """What a client starts a task with; constant during the task.

    Attributes:
        w: the received model, shape (p,), float32.
        server: vectors the message carries beside the model, one per name in `Rule.needs`, (p,).
        memory: what `finish` kept at this client's last task, or `Rule.first_memory`.
        scalars: what `Rule.scalars` made of the message's configuration.
        steps: how many steps the task is to have, at least 1; a real device with a deadline may do
            fewer.
        local: which of the p numbers stay with the client, in layers that the server does not know,
            booleans, shape (p,); None if none do. `w` has there what the client's last task left.
    """

    w: Tensor
    server: dict[str, Tensor]
    memory: dict[str, Tensor]
    scalars: dict[str, Scalar]
    steps: Scalar = 0
    local: Tensor | None = None


class Role(NamedTuple):
    """What some of a rule's tasks are, where the message tells clients apart.

    Attributes:
        name: a rule may branch on it, as only tasks of one role train as one program.
        needs: records of the message that hold a vector beside the model.
        gradients_per_step: gradient evaluations that a step is charged for.
        gradients_once: evaluations on its first batch that a task is charged for besides.
        forwards_per_step: forward passes that a step is charged for besides.
    """

    name: str
    needs: tuple[str, ...]
    gradients_per_step: float
    gradients_once: float = 0.0
    forwards_per_step: float = 0.0


class Finished(NamedTuple):
    """What a client ends a task with.

    Attributes:
        w: the model to upload, shape (p,), or (0,) for the one that came: then none travels.
        extras: vectors to upload beside it, (p,) each, by the name of their record; or (0,) for
            zeros, which do not travel.
        memory: what the client keeps until its next task.
    """

    w: Tensor
    extras: dict[str, Tensor]
    memory: dict[str, Tensor]


class Adaptation(NamedTuple):
    """How a client trains a model on its own examples before it predicts with it.

    Attributes:
        rule: how a step is made; it keeps nothing.
        steps: how many; None if `epochs` is set.
        epochs: passes over the client's examples; None if `steps` is set.
    """

    rule: Rule
    steps: int | None = None
    epochs: int | None = None


class Batch(Protocol):
    """The loss of one mini-batch as a function of the weights: its mean over the examples."""

    @property
    def examples(self) -> Scalar:
        """Number of examples in the batch."""

    @property
    def own(self) -> Batch:
        """The same examples, for a second model, which the client keeps.

        What goes through it moves running statistics (BatchNorm's) of their own and draws dropout
        of its own, so that the model that is sent is what it would be without. On a GPU the draws
        of both are one stream.
        """

    def grad(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the gradient at `w`, shape (p,), and the loss there, shape ()."""

    def loss(self, w: Tensor) -> Tensor:
        """Returns the loss at `w`, shape (), by a forward pass only."""

    def losses(self, *points: Tensor) -> tuple[Tensor, ...]:
        """Returns the loss at each of several weights, with the same draws of dropout for all."""

    def hessian_product(self, w: Tensor, v: Tensor) -> Tensor:
        """Returns the Hessian at `w` times `v`, shape (p,), by two gradients' work."""

    def features(self, w: Tensor) -> Tensor:
        """Returns the examples' features at `w` (`fl.models.features`), by a forward pass only."""

    def features_grad(self, loss: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        """Returns the gradient at `w`, shape (p,), of a loss of the features.

        Args:
            loss: of each example, shape (b,), from the features, shape (b, ...); mean is taken.
            w: weights, shape (p,).
        """


class Rule(ABC):
    """How a client turns the received model into the one it sends back."""

    def for_model(self, model: nn.Module, layout: Layout) -> Self:
        """Returns the rule for a model, which rules need that tell its p numbers apart.

        Args:
            model: whose structure counts; its numbers are gone.
            layout: of the model.

        Raises:
            ConfigError: the rule cannot train it.
        """
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """Records of the message that hold a vector beside the model."""
        return ()

    @property
    def uploads(self) -> tuple[str, ...]:
        """Records of the reply that hold a vector beside the model, `Finished.extras`."""
        return ()

    @property
    def honours(self) -> Mapping[str, tuple[str, ...]]:
        """Keys of the message's configuration that `scalars` obeys.

        To the hyperparameters that each stands in for.
        """
        return {}

    @property
    def requires(self) -> tuple[str, ...]:
        """Keys, of numbers above 0, without which `scalars` refuses a message's configuration."""
        return ()

    @property
    def batchable(self) -> bool:
        """Whether `vmap` takes the rule's methods."""
        return True

    @property
    def returns_only_the_model(self) -> bool:
        """Whether nothing goes beside the model, and nothing is kept, after any task."""
        return type(self).finish is Rule.finish

    @property
    def personalises(self) -> bool:
        """Whether a client predicts with another model than the one it receives."""
        return type(self).personal is not Rule.personal or self.adaptation is not None

    @property
    def adaptation(self) -> Adaptation | None:
        """What becomes of `personal` before a client predicts with it; None is nothing."""
        return None

    @property
    def keeps_statistics(self) -> Literal["", "own", "sent"]:
        """Which running statistics (BatchNorm's) a client keeps for `personal`.

        Those that `batch.own` moves, those that it sends, or none: then they are the received ones.
        """
        return ""

    @property
    def gradients_per_step(self) -> float:
        """Gradient evaluations that a step is charged for, at most, if roles differ."""
        return 1.0

    @property
    def forwards_per_step(self) -> float:
        """Forward passes that a step is charged for beside its gradients."""
        return 0.0

    @property
    def differentiates(self) -> bool:
        """Whether a step takes more derivatives of a batch than `grad`, which no estimate has."""
        return False

    @property
    def least_steps(self) -> int:
        """Steps of a task below which the rule moves nothing."""
        return 1

    def role(self, scalars: Mapping[str, Scalar]) -> Role:
        """Returns what a task is, by its scalars: by default they are all the same."""
        forwards = self.forwards_per_step
        return Role("", self.needs, self.gradients_per_step, forwards_per_step=forwards)

    @property
    def vectors(self) -> int:
        """Vectors of length p a client holds beside weights and gradient, to charge its memory."""
        return 0

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns the numbers of this task that the message may change, such as the learning rate.

        Args:
            config: the message's configuration; keys it does not know are somebody else's.

        Raises:
            ConfigError: a value it knows is of the wrong type or out of range.
        """
        return {}

    def first_memory(self, w: Tensor, scalars: Mapping[str, Scalar]) -> dict[str, Tensor]:
        """Returns the memory of a client that has never been asked before.

        Args:
            w: the received model, shape (p,).
            scalars: of the task.
        """
        return {}

    @abstractmethod
    def init(self, received: Received) -> State:
        """Returns the state before the first step."""

    @abstractmethod
    def step(
        self, w: Tensor, state: State, received: Received, batch: Batch, t: int
    ) -> tuple[Tensor, State, Tensor]:
        """Returns weights and state after a step, and the loss before it.

        Args:
            w: weights, shape (p,).
            state: as returned by `init` or the last step.
            received: constants of the task.
            batch: the mini-batch.
            t: index of the step in the task, from 0.
        """

    def finish(self, w: Tensor, state: State, received: Received, steps: Scalar) -> Finished:
        """Returns what to upload and what to keep; called after at least one step.

        Args:
            w: weights after the last step, shape (p,).
            state: after the last step.
            received: constants of the task.
            steps: how many steps were done.
        """
        return Finished(w, {}, {})

    def personal(self, received: Received) -> Tensor:
        """Returns the weights that the client would predict with, shape (p,).

        Args:
            received: the model, and what the client remembers; `steps` is 0.
        """
        return received.w
