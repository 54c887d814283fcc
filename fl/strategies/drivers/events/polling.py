"""The driver of rules whose server interrupts clients instead of waiting for them.

The rule is `fl.strategies.event_rule.PollingRule`; this says who is contacted and when, and where
every client is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fl.checks import at_least, positive
from fl.errors import ConfigError, SimulationError
from fl.strategies.drivers.combining import Combining
from fl.strategies.drivers.driver import Traits
from fl.strategies.drivers.events.server import Server, Update
from fl.strategies.event_rule import Answers, Combine, PollingRule
from fl.vectors.rows import Row, is_finite

_MOST_IN_VAIN = 1000  # contacts without an answer, in a row: then none will ever come


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What a client has been working from since its last contact.

    Attributes:
        version: of the server's model at that time.
        w: the client's own model then, shape (d,).
        since_s: when that was, s.
    """

    version: int
    w: Row
    since_s: float


class Polling(Combining):
    """Again and again the server contacts s clients, whatever they are doing.

    All clients work all the time, up to K local steps from where their last contact left them, then
    they wait. One that is contacted returns at once what its whole steps so far have made, possibly
    nothing. The server steps when all have answered, or `interaction_s` after the contact without
    those that have not, which are told to stop; `waiting_s` later it contacts the next.

    Flower has no message to a client that is at work. So a client's work is done when it is
    contacted: the message has the model it has been working from, "local-steps" K and "elapsed-s",
    the time since its last contact, of which it uses as many whole steps as fit. Per contact a
    model travels each way, as in the papers; there the downward one comes right after the answer.
    A client that fails, or is too late, keeps its place: it is as if it had not been contacted.

    Args:
        rule: makes the next models.
        contacted: s, clients contacted at a time.
        local_steps: K; None sends none, and K is as many steps as the client does in any other
            method: `client.local_steps`, or those of `client.local_epochs`.
        waiting_s: server waiting time, s.
        interaction_s: longest interaction time, s.
        **events: arguments of `Combining`, but `concurrency`, which s takes the place of, and
            `patience`, which `interaction_s` does.

    Raises:
        ConfigError: an argument is out of its range.
    """

    rules = PollingRule
    example = "QuAFL"
    rule: PollingRule

    def __init__(
        self,
        rule: PollingRule,
        *,
        contacted: int,
        local_steps: int | None = None,
        waiting_s: float,
        interaction_s: float,
        **events: Any,
    ) -> None:
        super().__init__(rule, concurrency=None, patience=None, **events)
        at_least("contacted", contacted, 1)
        if local_steps is not None:
            at_least("local_steps", local_steps, 1)
        positive("waiting_s", waiting_s)
        positive("interaction_s", interaction_s)
        self.contacted = contacted
        self.local_steps = local_steps
        self.waiting_s = waiting_s
        self.interaction_s = interaction_s
        self.check_aggregator(self.most)

    @property
    def tells(self) -> Mapping[str, str]:
        """What messages say beside the model, by the argument that it comes from."""
        return {"local-steps": "local_steps"}

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        return replace(super().traits, interrupts=True)

    @property
    def most(self) -> int:
        """The most updates that a step combines."""
        return self.contacted

    takes_empty = True  # no whole step since the last contact is an answer like another

    def check_clients(self, num_clients: int) -> None:
        """Raises ConfigError if a contact never has enough answers for F."""
        if self.robust:
            self.aggregator.check(min(self.contacted, num_clients))

    def check_answers(self, seconds: float) -> None:
        """Raises ConfigError if an interaction is over before most clients can have answered."""
        if self.interaction_s < seconds:
            raise ConfigError(
                f"interaction_s is {self.interaction_s:g}, and with this runtime a client takes "
                f"{seconds:.3g} s on average to answer, even if it had nothing to send: give more, "
                f"such as interaction_s={2 * seconds:.2g}"
            )

    def unusable(self, update: Update) -> str | None:
        """Returns why the rule cannot use an answer."""
        return self.rule.refuses(update.metrics)

    def begin(self, server: Server) -> None:
        """Puts every client at the initial model."""
        super().begin(server)
        self.state = self.rule.init(server.w, len(server.w))
        self.first = Start(server.version, server.w, server.now)
        self.starts: dict[int, Start] = {}
        self.answers: list[Update] = []
        self.contacts: Counter[int] = Counter()  # of each client, answered or not
        self.contacting = False
        self.in_vain = 0
        self.due_s = server.now + self.waiting_s

    def timer(self, server: Server) -> float:
        """Returns when the interaction ends at the latest, or when the next one begins."""
        return self.due_s

    def tick(self, server: Server) -> None:
        """Ends an interaction, or begins the next with s clients drawn uniformly.

        While nobody is there, there is nothing to begin: it looks again `retry_s` later.
        """
        if self.contacting:
            for task in server.tasks:
                server.tasks.cancel(task)
            return
        nodes = server.sample(server.tasks.nodes(), self.contacted)
        if not nodes:
            self.due_s = server.now + self.retry_s
            return
        self.contacting = True
        self.due_s = server.now + self.interaction_s
        for node in nodes:
            self.contacts[node] += 1
            start = self.starts.get(node, self.first)
            config: dict[str, Any] = {"elapsed-s": server.now - start.since_s}
            if self.local_steps is not None:
                config["local-steps"] = self.local_steps
            server.send([node], config, old=(start.version, start.w))

    def receive(self, server: Server, update: Update) -> None:
        """Keeps the answer until the interaction ends."""
        self.answers.append(update)

    def dispatch(self, server: Server) -> None:
        """Ends the interaction when nothing is awaited any more."""
        if self.contacting and not len(server.tasks):
            self.contacting = False
            self.due_s = server.now + self.waiting_s
            self._end(server)

    def free_slots(self, server: Server) -> int:
        """Returns 0: nobody is sent anything but at contacts."""
        return 0

    def _end(self, server: Server) -> None:
        if not self.answers:
            self.in_vain += 1
            if self.in_vain == _MOST_IN_VAIN:
                raise SimulationError(
                    f"{self.in_vain} contacts in a row brought no answer within "
                    f"strategy.interaction_s, {self.interaction_s:g} s: raise it above the time "
                    "that a model takes to a client and back, unless it is that clients fail "
                    "(fleet.faults)"
                )
            return
        self.in_vain = 0
        answers, self.answers = self.answers, []
        places: dict[int, Row] = {}

        def make(usable: Sequence[Update], combine: Combine | None) -> Any:
            given = Answers(
                usable,
                starts=[update.start for update in usable],
                contacts=[self.contacts[update.node] for update in usable],
                combine=combine,
            )
            state, goes_on_from = self.rule.step(self.state, given)
            nodes = [update.node for update in usable]
            places.update(zip(nodes, goes_on_from, strict=True))
            return state

        state = self.advance(server, answers, make, polled=True)
        if state is None:
            return  # they go on from where they were
        self.state = state._replace(w=server.w)
        for node, place in places.items():
            held = server.model.layout.rounded(place)
            if is_finite(held):
                self.starts[node] = Start(server.version, held, server.now)
