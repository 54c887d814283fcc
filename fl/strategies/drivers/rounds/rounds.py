"""The driver of rounds: clients train the same model, and a rule makes the next of what they did.

The rule is `fl.strategies.round_rule`, and who is asked is up to a `fl.selection.Selection`; this
sends, waits, looks at what comes, combines it, and makes the versions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

from flwr.app import ArrayRecord

from fl.aggregation import (
    shown,
    weight_of,
)
from fl.checks import at_least, is_a, positive, read_if
from fl.clients.app.inbox import EVALUATED
from fl.errors import ConfigError, NoStep
from fl.selection import Choice, Selection, Trial, UniformSampling
from fl.strategies.adaptive_batch import BatchTest
from fl.strategies.drivers.aggregating import Aggregating
from fl.strategies.drivers.driver import Traits
from fl.strategies.drivers.events.server import GlobalModel, Sent, Server, Update
from fl.strategies.drivers.replies import not_reported
from fl.strategies.drivers.rounds.checks import check_replies, check_sub_models
from fl.strategies.drivers.rounds.foreseen import has_foreseen
from fl.strategies.drivers.rounds.messages import RoundMessages
from fl.strategies.drivers.rounds.models import first_models
from fl.strategies.drivers.rounds.noise import RoundNoise
from fl.strategies.drivers.rounds.parts import Division, OnePart, Parts
from fl.strategies.drivers.rounds.rates import RoundRates
from fl.strategies.drivers.rounds.selection import RoundSelection
from fl.strategies.drivers.rounds.step import RoundStep
from fl.strategies.drivers.tasks import Task
from fl.strategies.rates import Rate
from fl.strategies.round_rule import HasModel, RoundRule
from fl.strategies.sparse import Sparse
from fl.submodels import SparseMask, SubModels, Whole

log = logging.getLogger("fl")


@read_if(
    lambda a: a["clients"] is None,
    "fraction_train",
    "min_train_nodes",
    only="{at}clients counts instead",
)
@read_if(
    lambda a: a["fraction_evaluate"] > 0,
    "min_evaluate_nodes",
    "evaluate_model",
    only="clients evaluate only with {at}fraction_evaluate above 0",
)
@read_if(
    lambda a: a["noise_scale"] is not None,
    "batch_size",
    only="only {at}noise_scale reads it",
)
class Rounds(Aggregating):
    """Synchronous rounds of a server rule.

    A round selects clients among those that are available and idle: floor(factor N) of them, with N
    the replies it waits for. It ends with the first of

    - N replies;
    - its deadline, or the moment when no further reply can come.

    Then the replies that are there make a step, if they are at least the share `min_fraction` of N,
    or of those selected if these were fewer, and at least one; otherwise the round is abandoned and
    leaves the model as it is. Whoever has not answered by then is told to stop, or goes on and is
    discarded. What was sent to them, and what they send, counts. `num_rounds` counts rounds,
    abandoned ones included.

    The clients' changes of the model become one by the aggregator F: the mean weighted by examples,
    or a robust rule. A reply that is no model of the right form, or not finite, never reaches F: it
    counts as one of the f that F tolerates, and is an event of the trace. More than f leave the
    model as it is, and so does a step to a model that is not finite.

    What clients change but do not train, as statistics of normalisation layers, is no direction: it
    moves by F's change, whatever the rule does. Entries that are no floats become the median of the
    usable replies'.

    What the selection asks for before a round, and the training by which it times clients, take
    time and bytes as everything else.

    On a grid with machines that add updates up (`fl.flower.grid_view.Summation`), a round ends when
    they have its sum: of the replies that count, in the order in which the machines add, unless the
    model is so large that no two are kept. The others are in no sum, nor are those that died with a
    machine.

    Args:
        rule: makes the next model.
        selection: says who trains; None draws clients uniformly.
        clients: N; None is `fraction_train` of the clients that are available, at least
            `min_train_nodes`.
        fraction_train: see `clients`.
        min_train_nodes: see `clients`.
        over_selection: factor, at least 1.
        deadline_s: s after its beginning when a round ends at the latest; None waits for the
            messages' time to live.
        min_fraction: that share, in [0, 1]; by default a round needs half of the replies it waited
            for, so that no single client makes a model.
        abort: tell clients that are too late to stop; otherwise they go on, busy until they have
            finished.
        fraction_evaluate: share of the available clients that evaluate the model on their own
            examples after a round.
        min_evaluate_nodes: but at least so many, if the share is above 0.
        evaluate_model: which model they evaluate: the "global" one, what they would predict with,
            "personal", or what "local" training makes of the global one.
        weighted_by_key: metric that weights the average.
        root_examples: how many examples the server holds itself, for an F that wants its update.
        eta_schedule: factor on the rule's `eta` by the round, from 0, such as `fl.clients.Warmup`,
            or by that and the number of clients, `fl.strategies.LinearScaling`; None is 1.
        lr_schedule: likewise a factor on the clients' learning rate, told to them. With a schedule
            the record of a run has the rate of each round, as "eta" and "lr_factor".
        noise_scale: decay of the averages by which the gradient noise scale is measured, see
            `fl.strategies.NoiseScale`; None does not measure it.
        batch_size: of the clients, for that; None is all of their examples.
        sub_models: has clients train parts of the model that fit their devices, or one part for all
            whose mask the rule adjusts; None sends all of it.
        batch_test: grows their batches, or the number of clients, by what is measured; None leaves
            both as they are.
        **aggregating: arguments of `Aggregating` but `concurrency` and `patience`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    lasting = (
        *("state", "results", "vain", "diverged", "unusable_first", "failing"),
        *("wanted", "waits_for", "selected", "opens_s", "prepared", "chooses", "noise", "rates"),
    )
    rules = RoundRule
    example = "FedAvg"
    rule: RoundRule
    state: HasModel
    reads_timeout = True
    takes_empty = True  # their weight is 0, and the rule's business

    def __init__(
        self,
        rule: RoundRule,
        *,
        selection: Selection | None = None,
        clients: int | None = None,
        fraction_train: float = 0.1,
        min_train_nodes: int = 10,
        over_selection: float = 1.0,
        deadline_s: float | None = None,
        min_fraction: float = 0.5,
        abort: bool = True,
        fraction_evaluate: float = 0.0,
        min_evaluate_nodes: int = 2,
        evaluate_model: Literal["global", "personal", "local"] = "global",
        weighted_by_key: str = "num-examples",
        root_examples: int = 100,
        eta_schedule: Rate | None = None,
        lr_schedule: Rate | None = None,
        noise_scale: float | None = None,
        batch_size: int | None = None,
        batch_test: BatchTest | None = None,
        sub_models: SubModels | SparseMask | None = None,
        **aggregating: Any,
    ) -> None:
        self.sub_models = sub_models  # which the name tells, also in errors
        super().__init__(
            rule, concurrency=None, patience=None, root_examples=root_examples, **aggregating
        )
        if clients is not None:
            at_least("clients", clients, 1)
        for name, share in (
            ("fraction_train", fraction_train),
            ("fraction_evaluate", fraction_evaluate),
            ("min_fraction", min_fraction),
        ):
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise ConfigError(f"{name} is {share!r}; it must be a number in [0, 1]")
        at_least("min_train_nodes", min_train_nodes, 0)
        at_least("min_evaluate_nodes", min_evaluate_nodes, 0)
        if evaluate_model not in EVALUATED:
            raise ConfigError(
                f"evaluate_model is {evaluate_model!r}; it must be one of {', '.join(EVALUATED)}"
            )
        positive("over_selection", over_selection)
        if over_selection < 1:
            raise ConfigError(f"over_selection is {over_selection}; it must be at least 1")
        if deadline_s is not None:
            positive("deadline_s", deadline_s)
        self.rates = RoundRates(rule, eta_schedule, lr_schedule)
        self.selection = UniformSampling() if selection is None else selection
        is_a("selection", self.selection, Selection)
        if self.wants_own_update and not rule.folds:
            raise ConfigError(
                f"aggregator is {self.aggregator.name}, which compares what it combines with the "
                f"server's own update, and {self.name} combines other vectors than updates: use "
                "another aggregator, or another strategy"
            )
        self.clients = clients
        self.fraction_train = fraction_train
        self.min_train_nodes = min_train_nodes
        self.over_selection = over_selection
        self.deadline_s = deadline_s
        self.min_fraction = min_fraction
        self.abort = abort
        self.fraction_evaluate = fraction_evaluate
        self.min_evaluate_nodes = min_evaluate_nodes
        self.evaluate_model = evaluate_model
        self.weighted_by_key = weighted_by_key
        if noise_scale is not None and rule.num_models > 1:
            raise ConfigError(
                f"noise_scale is {noise_scale}, and clients of {self.name} are sent "
                f"{rule.num_models} models, so that their gradients differ by more than noise: "
                "leave it out, or use another strategy"
            )
        self.batch_size = batch_size
        self.noise = RoundNoise(noise_scale, batch_size, batch_test)
        if sub_models is not None or rule.prunes or rule.knows_parts:
            check_sub_models(self, sub_models)

    @property
    def name(self) -> str:
        """Of the rule, and of the parts that clients hold, for messages."""
        if not isinstance(self.sub_models, SubModels):
            return super().name
        return f"{super().name} with {type(self.sub_models.extraction).__name__}"

    @property
    def tells(self) -> Mapping[str, Any]:
        """What every message says beside the model, by the argument that it comes from."""
        told: dict[str, Any] = {key: f"rule.{name}" for key, name in self.rule.tells.items()}
        told |= self.rates.told(0, 1)
        if self.noise.test is not None:
            told["batch-size"] = "batch_size"
        return told

    @property
    def readers(self) -> Mapping[str, Any]:
        """Rule and selection."""
        return {"rule": self.rule, "selection": self.selection}

    @property
    def assumes(self) -> Mapping[str, str]:
        """What the rule takes to be the clients'."""
        return {key: f"rule.{name}" for key, name in self.rule.assumes.items()}

    @property
    def carries(self) -> tuple[str, ...]:
        """Records of the messages that hold a vector beside the model."""
        return self.rule.carries

    @property
    def needs(self) -> tuple[str, ...]:
        """Records of the replies that hold a vector beside the model."""
        return self.rule.needs

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        rule, parts = self.rule, self.sub_models
        return replace(
            super().traits,
            downlink=rule.num_models == 1 and parts is None,
            public_examples=rule.public_examples,
            clusters=rule.clients_choose,
            client_rule=rule.client_rule,
            partial="" if parts is None else "stays" if parts.stays else "changes",
            edges=rule.edges,
            of_adapters=isinstance(parts, SubModels) and parts.extraction.of_adapters,
            compressors="any" if parts is None or parts.slices else "none",
            needs=() if rule.prunes else self.needs,  # which whoever trains such parts sends
            exact=rule.exact,
            sums=self._sums,
        )

    @property
    def _sums(self) -> bool:
        """Whether a step takes a weighted mean of what a round brings, and nothing else of it."""
        means = self.rule.edges > 0 or (self.rule.folds and self.rule.num_models == 1)
        looks = self.selection.keeps_changes or self.noise.scale is not None
        looks = looks or self.sub_models is not None
        return means and not self.robust and not looks

    @property
    def may_stay(self) -> str:
        """What the rule says."""
        return self.rule.may_stay

    @property
    def evaluates_on_clients(self) -> bool:
        """Whether clients are sent `evaluate` messages."""
        return self.fraction_evaluate > 0 or self.selection.evaluates

    def check_clients(self, num_clients: int) -> None:
        """Raises ConfigError if a round never has enough replies, or too many clients."""
        check_replies(self, num_clients)
        if (why := self.selection.refuses_count(self.cohort(num_clients))) is not None:
            raise ConfigError(why)

    def check_rounds(self, num_rounds: int) -> None:
        """Raises ConfigError if none of the rounds can make a step, or one at a rate of 0."""
        if 1 <= num_rounds <= self.rule.prepares:
            raise ConfigError(
                f"num_rounds={num_rounds} learns nothing: {self.name} leaves the model as it is "
                f"before round {self.rule.prepares + 1}"
            )
        self.rates.check_rounds(num_rounds)

    def replies_of(self, num_clients: int) -> int:
        """Returns N of a round that begins when so many clients are available."""
        if self.clients is not None:
            return self.clients
        return max(int(self.fraction_train * num_clients), self.min_train_nodes, 1)

    def cohort(self, num_clients: int) -> int:
        """Returns how many clients are asked in a round."""
        return min(num_clients, int(self.over_selection * self.replies_of(num_clients) + 1e-9))

    def tolerance(self, num_clients: int) -> tuple[int, int] | None:
        """Returns N and f, where clients are drawn uniformly, see `Driver.tolerance`."""
        m = min(num_clients, self.replies_of(num_clients))
        f = self.aggregator.tolerates(m)
        known = self.aggregator.has_f or f > 0
        return (m, f) if known and isinstance(self.selection, UniformSampling) else None

    def as_sent(self, server: Server, update: Update) -> Update:
        """Returns the update: those of Byzantine clients are forged when the round has ended."""
        return update

    # ---- rounds ----------------------------------------------------------------------------------

    def model(self, arrays: ArrayRecord) -> GlobalModel:
        """Returns the server's model, version 0, and where clients choose the others beside it.

        Raises:
            ConfigError: there are to be several, and nothing draws them.
        """
        return first_models(self, super().model(arrays))

    def begin(self, server: Server) -> None:
        """Prepares for the first round."""
        super().begin(server)
        if self.rule.public_examples and self.exchange.public is None:
            raise ConfigError(
                f"{self.name} learns from examples of the server's own, and it has none: run the "
                "strategy within an Exchange that has `public`, for example "
                "fl.strategies.ServerExamples"
            )
        self.check_rounds(server.num_rounds)
        layout, known = server.model.layout, self.exchange.layout
        self.makes = RoundStep(self, layout, known)
        self.trained = self.makes.trained
        if not (self.rule.prunes or self.rule.knows_parts):  # which have others
            self.state = self.rule.init(server.w, self.trained)
        if server.model.clusters is not None:
            self.state = self.state._replace(theta=server.model.clusters.models)
        self.chooses = RoundSelection(
            self.selection, server.num_rounds, self.seed, self.keys, self.weighted_by_key
        )
        self.trial: Trial | None = None  # that the open round is
        self.failures: dict[int, float] = {}  # of the round, and after how many seconds
        self.awaited: dict[str, Task[Sent]] = {}
        self.replies: list[Update] = []
        self.wanted = 0  # replies that a round is to have
        self.waits_for = 0  # replies that end the round, as fewer may be there
        self.selected = 0  # clients that were asked, in the last round
        self.round_began = math.nan  # of the open round; NaN between rounds
        self.opens_s = math.inf  # when the next round is to open, after one of nobody
        self.summation = server.tasks.summation
        if self.summation is not None and not self._sums:
            raise ConfigError(
                f"the grid's machines add updates up, and {self.name} looks at more of them than "
                "their weighted mean: run it without a hierarchy"
            )
        division = Division()
        if isinstance(self.sub_models, SubModels):
            division = Parts(self.sub_models, self.exchange, server, self.seed)
            if self.rule.knows_parts:
                whole = Whole(layout if known is None else known, division.units, server.w)
                self.state = self.rule.init_parts(whole, division.examples(whole))
        elif self.rule.prunes:
            division = OnePart(layout, lambda: cast(Sparse, self.state))
        self.messages = RoundMessages(
            self.rule, division, lambda: self.state, self.makes.buffers, self.seed
        )
        self.prepared = -1  # for the round after this version
        self.noise.begin(self.makes.places)
        self.rates.begin()

    @property
    def is_open(self) -> bool:
        """Whether a round is going on."""
        return not math.isnan(self.round_began)

    def num_replies(self, server: Server) -> int:
        """Returns N for a round that begins now."""
        if server.version < self.rule.alone:
            return 1
        if self.rule.asks_everybody(self.state):
            return len(server.tasks.nodes())
        return self.noise.clients(self.replies_of(len(server.tasks.nodes())))

    def free_slots(self, server: Server) -> int:
        """Returns how many clients could be asked to train now: none during a round."""
        if self.is_open or len(server.tasks.nodes()) < self.min_available_nodes:
            return 0
        return self.chooses.free(server.tasks.idle())

    def dispatch(self, server: Server) -> None:
        """Begins a round if none is going on and enough clients are idle.

        Rounds that need no messages are over when they have begun, and the next one begins.
        """
        self._rest(server)
        while self._begins(server):
            if server.version >= server.num_rounds or self.finished(server):
                return
            self._rest(server)

    def lasting_parts(self, server: Server) -> Mapping[str, object]:
        """Returns what lasts of a run from one round to the next, if that is all in `lasting`.

        Elsewhere links, machines and the server's own examples remember something as well.
        """
        within = self.exchange
        links = (within.uplink, within.downlink, within.attack)
        examples = (within.trusted, within.proxy, within.public)
        others = (*links, *examples, self.sub_models, self.summation, server.model.clusters)
        if any(other is not None for other in others):
            return {}
        return {"strategy": self, "model": server.model, "server": server, "tasks": server.tasks}

    def _rest(self, server: Server) -> None:
        """Says so if no round is going on, and nothing of the last one can come any more."""
        tasks = server.tasks
        if tasks.snapshots is None or self.is_open:
            return
        if tasks.at_rest and self.chooses.at_rest:
            tasks.snapshots.rest()

    def _begins(self, server: Server) -> bool:
        """Begins a round if one can begin; returns whether it is over already."""
        tasks = server.tasks
        if self.is_open or not tasks.idle() or len(tasks.nodes()) < self.min_available_nodes:
            return False
        if server.version < self.rule.alone:
            self._open(server, Choice([min(tasks.idle())]), 1)
            return False
        trial = self.chooses.trial(tasks.idle())
        if trial is not None and trial.alone:
            self._open(server, Choice(trial.clients), len(trial.clients), trial)
            return False
        if trial is not None:
            self.chooses.time(self._train(server, trial.clients, len(trial.clients)))
        idle = self.chooses.eligible(tasks.idle())
        if not idle:
            return False
        n = self.num_replies(server)
        count = min(int(self.over_selection * n + 1e-9), len(idle))
        self.chooses.check_count(count)
        choice = self.chooses.choice(server, idle, count)
        if has_foreseen(self, server, choice, n):
            return True
        self._open(server, choice, n)
        return False

    def _train(self, server: Server, nodes: Sequence[int], waits_for: int) -> list[Task[Sent]]:
        """Sends the model to clients that the rule has train, of which so many make a step."""
        if self.exchange.public is not None and self.prepared != server.version:
            self.state = self.rule.prepared(self.state, self.exchange.public)
            self.prepared = server.version
        return self.messages.train(server, nodes, partial(self.told_clients, server, waits_for))

    def told_clients(self, server: Server, waits_for: int, n: int) -> dict[str, Any]:
        """Returns what n messages say beside what the rule does."""
        size = self.noise.told_size
        rates = self.rates.told(server.version, min(waits_for, n))
        return rates if size is None else {**rates, "batch-size": size}

    def _open(
        self, server: Server, choice: Choice, waits_for: int, trial: Trial | None = None
    ) -> None:
        """Begins a round with these clients, which ends with so many replies."""
        sent = self._train(server, choice.clients, waits_for)
        self.awaited = {task.message_id: task for task in sent}
        weights = None
        if choice.weights is not None:
            weights = dict(zip(choice.clients, choice.weights, strict=True))
        self.replies = []
        self.begin_round(len(self.awaited), waits_for, weights, trial)
        self.round_began = server.now
        if self.awaited:
            self.makes.fold(server)
            if self.summation is not None and trial is None:
                self.summation.begin(server.w.size + len(self.rule.needs) * self.trained)
        elif trial is not None:
            self.close(server)
        else:
            self.round_began, self.opens_s = math.nan, server.now + self.retry_s
            why = f"{self.name} has none of the {len(choice.clients)} clients train"
            if not choice.clients:
                why = f"selection: {type(self.selection).__name__} selects nobody"
            server.stay(NoStep(why))

    def begin_round(
        self,
        selected: int,
        waits_for: int,
        weights: dict[int, float] | None = None,
        trial: Trial | None = None,
    ) -> None:
        """Notes that a round of so many clients begins, which ends with so many replies."""
        self.makes.begin(weights)
        self.failures, self.noise.squares = {}, {}
        self.selected, self.trial = selected, trial
        self.wanted, self.waits_for = waits_for, min(waits_for, selected)
        self.opens_s = math.inf

    def receive(self, server: Server, update: Update) -> None:
        """Takes a reply, and ends the round if it was the last one needed."""
        name = update.task.message_id
        if self.chooses.has_timed(server, update):
            server.discard(update)
            return
        if self.awaited.pop(name, None) is None:
            self.chooses.late(update)
            server.discard(update)
            return
        self.messages.division.answered(update)
        if self.summation is not None and self.trial is None:
            self.summation.add(name)
        self.replies.append(self.makes.kept(server, update))
        if len(self.replies) >= self.waits_for or not self.awaited:
            self.close(server)

    def failed(self, server: Server, task: Task[Sent]) -> None:
        """Ends the round if nobody else is awaited."""
        self._unheard(task)
        seconds = server.now - task.sent_s
        seconds = math.inf if seconds >= server.tasks.ttl_s else seconds
        self.chooses.failed(server, task, seconds)
        if self.awaited.pop(task.message_id, None) is not None:
            self.failures[task.node] = seconds
            if not self.awaited:
                self.close(server)

    def leave_out(self, server: Server, task: Task[Sent], why: str) -> None:
        """Counts a reply of the round that is none among those that F tolerates."""
        super().leave_out(server, task, why)
        if task.message_id in self.awaited:
            self.makes.refused.append(why)

    def timer(self, server: Server) -> float:
        """Returns the deadline of the round that is going on, or when the next one opens."""
        if not self.is_open:
            return self.opens_s
        limit_s = self.deadline_s if self.trial is None else self.trial.within_s
        return math.inf if limit_s is None else self.round_began + limit_s

    def tick(self, server: Server) -> None:
        """Ends the round at its deadline, unless what came at that instant has ended it."""
        if self.is_open:
            self.close(server)

    def close(self, server: Server) -> None:
        """Ends the round: clients that are late are told so, and what has come makes a step."""
        missed = {task.node: server.now - self.round_began for task in self.awaited.values()}
        for task in self.awaited.values():
            self._unheard(task)
        if self.abort:
            for task in server.tasks:  # not those that have arrived at this very instant
                if task.message_id in self.awaited:
                    server.tasks.cancel(task)
        replies, self.replies, self.awaited = self.replies, [], {}
        self.round_began = math.nan
        if self.trial is not None:
            self.chooses.ended(server, replies, missed, self.failures, trial=True)
            for update in replies:
                server.discard(update)
        else:
            self.finish(server, replies, missed)

    def _unheard(self, task: Task[Sent]) -> None:
        self.messages.division.failed(task.node)

    def finish(
        self, server: Server, replies: Sequence[Update], missed: Mapping[int, float]
    ) -> None:
        """Makes the next version of the replies, or of nothing if they are too few."""
        summed = None  # in which order the machines of a hierarchy have added
        if self.summation is not None:
            summed = self.summation.close(whole=not self.rule.ends_at_edges(self.state))
            lost = frozenset(summed.lost)
            for update in [u for u in replies if u.task.message_id in lost]:
                server.discard(update)
            replies = [u for u in replies if u.task.message_id not in lost]
        replies = sorted(replies, key=lambda update: update.node)  # who came first does not matter
        if server.forging is not None:
            sent = server.forging.forged(server, replies, partial(self.combined_by, server))
            self.makes.refused += ["no payload holds it"] * (len(replies) - len(sent))
            replies = sent
        self.chooses.ended(server, replies, missed, self.failures, trial=False)
        usable = list(replies)
        try:
            self.check_enough(len(replies))
            state = self.makes.next(server, replies, usable, summed)
        except (NoStep, ConfigError) as error:
            self._abandon(server, usable, self.why_no_step(error, len(replies)))
            return
        if rates := self.rates.of(server.version, self.waits_for):
            server.tasks.control.measured(rates)
        clusters = self.rule.clusters(state)
        if server.step(state.w, usable, of_one_version=True, clusters=clusters):
            self.rates.stepped(rates)
            self.state = state._replace(w=server.w)
            self.results.update(self.latest)

    def why_no_step(self, error: NoStep | ConfigError, replies: int) -> NoStep:
        """Returns why so many replies make no step.

        Raises:
            ConfigError: they are all that there could be, and the rule cannot work with them.
        """
        if isinstance(error, NoStep):
            return error
        there = self.exchange.num_clients
        wanted = max(self.wanted, min(self.replies_of(there), there))
        if replies >= wanted:
            raise error
        few = f"{replies} of {wanted} replies"
        remedy = "min_available_nodes waits until more clients are there"
        return NoStep(f"{few}: {error}; {remedy}")

    def check_enough(self, replies: int) -> None:
        """Raises NoStep if so many replies are too few for a step."""
        # Who is busy with what has been given up cannot be asked, and is missing all the same.
        there = self.exchange.num_clients or self.wanted
        wanted = min(self.wanted, there) if self.rule.everybody else self.waits_for
        if replies < max(1, math.ceil(self.min_fraction * wanted - 1e-9)):
            if not replies and self.diverged[""]:
                raise self.why_in_vain()
            raise NoStep(f"{replies} replies of {self.selected} are too few")

    def _abandon(self, server: Server, replies: Sequence[Update], why: NoStep) -> None:
        for update in replies:
            server.discard(update)
        server.stay(why)

    # ---- what is usable, and what is known -------------------------------------------------------

    def unusable(self, update: Update) -> str | None:
        """Refuses a client that does not report what is read, or has no weight."""
        return self.refuses(update.metrics)

    def refuses(self, metrics: Mapping[str, Any]) -> str | None:
        """Returns why the rule, or another part, cannot use what a client reports."""
        for reader in self.readers.values():
            if (name := not_reported(metrics, reader.reads)) is not None:
                return f"it reports no finite {name!r}, which {type(reader).__name__} reads"
        if (why := self.rule.refuses(metrics)) is not None:
            return why
        if weight_of(metrics.get(self.weighted_by_key)) is None:
            weight = metrics.get(self.weighted_by_key)
            return f"its {self.weighted_by_key!r} is {shown(weight)}, no weight"
        return None

    # ---- evaluation on clients -------------------------------------------------------------------

    def evaluate_on_clients(self, server: Server) -> None:
        """Has clients evaluate the model after a round; the recorder sees what they report."""
        if not self.fraction_evaluate:
            return
        nodes = server.tasks.nodes()
        count = max(int(self.fraction_evaluate * len(nodes)), self.min_evaluate_nodes)
        chosen = server.sample(nodes, min(count, len(nodes)))
        if chosen:
            content = self.messages.evaluation(server, self.keys, self.evaluate_model)
            server.tasks.ask(content, chosen, server.tasks.ttl_s)

    def at_once(self, server: Server) -> int:
        """Returns N, or how many clients there are."""
        return min(self.num_replies(server), super().at_once(server))

    def stay(self, server: Server, task: Task[Sent], why: NoStep) -> None:
        """Does nothing: a round ends in any case, and then the model stays as it is."""
