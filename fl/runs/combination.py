"""What is chosen together, and what each of the parts says it is."""

from __future__ import annotations

from dataclasses import dataclass

from hydra.utils import instantiate

from fl.attacks import Attack
from fl.clients import (
    AdamW,
    Correction,
    Estimator,
    LocalOptimizer,
    MicroAdam,
    Rule,
    Sgd,
)
from fl.compression import Channel, JustOneByte, Shapes
from fl.runs.groups import members_of
from fl.simulation.world.hierarchies import Hierarchy
from fl.strategies import Driver, Traits
from fl.vectors.layout import Layout

_CORRECTION = "client/correction"


@dataclass(frozen=True)
class Combination:
    """What is chosen side by side; None is no choice, or one that is wrong by itself.

    Attributes:
        strategy: the server's.
        uplink: compresses what clients send.
        downlink: compresses what they receive.
        attack: forges what Byzantine clients send.
        rule: of the clients, without a correction of gradients.
        correction: of the gradients that the rule follows.
        estimator: of these gradients.
        tasks: whether there are several models.
        hierarchy: adds up what clients send, on its way; None does not.
        num_clients: clients there are.
        layout: of what travels of the clients' model, if it is known.
        keeps: whether layers of it stay with the clients.
        adapted: whether little is trained, beside frozen weights.
        contacts: whether clients may contact the server before all of their local work is done.
    """

    strategy: Driver
    uplink: Channel | None = None
    downlink: Channel | None = None
    attack: Attack | None = None
    rule: Rule | None = None
    correction: Correction | None = None
    estimator: Estimator | None = None
    tasks: bool = False
    hierarchy: Hierarchy | None = None
    num_clients: int = 0
    layout: Layout | None = None
    keeps: bool = False
    adapted: bool = False
    contacts: bool = False

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        return self.strategy.traits

    @property
    def steps_by_gradients(self) -> bool:
        """Whether the strategy steps by gradients that clients compute."""
        return self.traits.sends != "model"

    @property
    def client(self) -> str:
        """The part of the client that knows vectors beside the model: key and value."""
        if self.correction is None:
            return f"client.rule is {type(self.rule).__name__}"
        name = _member(self.correction)
        if not name:
            return f"client.correction is {type(self.correction).__name__}"
        return f"{_CORRECTION} is {name}"

    @property
    def fitting(self) -> str:
        """What to choose so that the client knows the vectors of the strategy."""
        sent, needed = {*self.traits.carries}, {*self.traits.needs}
        if not sent | needed:
            return f"leave {_CORRECTION} out"
        parts = {name: instantiate(keys) for name, keys in members_of(_CORRECTION)}
        known = {n: ({*part.needs}, {*part.uploads}) for n, part in parts.items()}
        names = [name for name, both in known.items() if both == (sent, needed)]
        one = " or ".join(names)
        return (
            f"choose {_CORRECTION}={one}" if names else f"leave {_CORRECTION} as it is by default"
        )

    @property
    def home(self) -> str:
        """The strategies that the client's correction is for."""
        member = _member(self.correction)
        key = f"override /{_CORRECTION}@_global_.client.correction"
        names = [
            name
            for name, keys in members_of("strategy")
            for entry in keys.get("defaults") or ()
            if member and not isinstance(entry, str) and entry.get(key) == member
        ]
        return f"strategy={' or '.join(names)}" if names else "another strategy"

    @property
    def lacking(self) -> str:
        """A vector that the client needs and the strategy does not send, or the other way round."""
        if self.rule is None or not self.traits.known:
            return ""
        part = self.correction or self.rule
        sent, needed = self.traits.carries, self.traits.needs
        lacking = {*part.needs} - {*sent} or {*needed} - {*part.uploads}
        return min(lacking, default="")

    @property
    def sends_tensors(self) -> bool:
        """Whether what clients send are tensors that a compressor can take."""
        return self.traits.compressors != "none"

    @property
    def remembers(self) -> bool:
        """Whether the compressor keeps something of each client between its updates."""
        if self.uplink is None or self.layout is None:
            return False
        shapes = Shapes.trained(self.layout)
        return bool(self.uplink.init(shapes) or self.uplink.init_receiver(shapes))

    @property
    def client_remembers(self) -> bool:
        """Whether the client's rule, or its correction, keeps something between tasks."""
        if self.correction is not None and type(self.correction).finish is not Correction.finish:
            return True
        if isinstance(self.rule, LocalOptimizer):
            keeps = self.rule.keeps
            return self.traits.continues if keeps is None else keeps
        return self.rule is not None and not self.rule.returns_only_the_model

    @property
    def own_model(self) -> bool:
        """Whether the client keeps a model of its own, with which it predicts."""
        if self.correction is not None:
            return self.correction.personalises
        return self.rule is not None and type(self.rule).personal is not Rule.personal

    @property
    def projections(self) -> int:
        """How many projections of its gradient a client sends; 0 if it sends something else."""
        rule = getattr(self.strategy, "rule", None)
        return rule.compressor.samples if isinstance(rule, JustOneByte) else 0

    @property
    def another_rule(self) -> bool:
        """Whether the server is for clients with a rule, and these, of ours, have another one."""
        needed = self.traits.client_rule
        ours = type(self.rule).__module__.startswith("fl.")
        return needed is not None and ours and not isinstance(self.rule, needed)

    @property
    def forgotten(self) -> str:
        """What the client forgets between tasks that are one training; "" if nothing."""
        if isinstance(self.rule, AdamW) and self.rule.keep_moments is False:
            return "moments"
        if isinstance(self.rule, MicroAdam) and self.rule.keep_state is False:
            return "state"
        return "momentum" if isinstance(self.rule, Sgd) and self.rule.momentum else ""


def _member(correction: Correction | None) -> str:
    """Returns the name by which a correction is chosen; "" if it is no member of the group."""
    kind = type(correction)
    ours = f"fl.clients.{kind.__name__}" if kind.__module__.startswith("fl.") else ""
    return next((n for n, keys in members_of(_CORRECTION) if keys["_target_"] == ours), "")
