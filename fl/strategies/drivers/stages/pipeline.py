"""The driver of models that are cut into stages, each on a machine of its own.

The rule is `fl.strategies.pipeline_rule`; `PipelineRun` is machines and messages. This says who
holds what, and what comes after what.

There is no server in these methods. The process that runs the strategy hands activations from
machine to machine, and does the arithmetic of the optimizer, which every machine would do for its
own stage; on the simulator what it sends and receives costs nothing, and activations, gradients,
all-reduces and recoveries cost what they cost on the direct links between the machines. On a
deployment they travel through the SuperLink.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from torch import nn

from fl.checks import at_least, boolean, is_a, positive, share
from fl.collectives import Collective, RingAllReduce
from fl.compression import Channel, Shapes
from fl.errors import ConfigError, NoStep, SimulationError
from fl.flower.records import from_record, layout_of, to_record
from fl.randomness import uniform
from fl.stages import Cut, Ends
from fl.strategies.drivers.driver import RuleDriver, Traits
from fl.strategies.drivers.events.events import EvaluateFn, wait_for_nodes
from fl.strategies.drivers.exchange import Exchange
from fl.strategies.drivers.stages.pipeline_run import (
    Passage,
    PipelineRun,
    Place,
    StageGradient,
    StageTask,
)
from fl.strategies.drivers.tasks import TTL_S, Tasks
from fl.strategies.pipeline_rule import PipelineTraining, StageState
from fl.vectors.layout import FLOAT_BYTES, Layout
from fl.vectors.part import Part
from fl.vectors.rows import Row, as_row, as_tensor, mean

log = logging.getLogger("fl")


class Pipeline(RuleDriver):
    """Training through stages.

    The first S clients are the machines of pipeline 0's stages, the next S those of pipeline 1, and
    so on; whoever is left is a spare. The client with a first stage gives its examples. A step
    sends M micro-batches through each pipeline and back, one behind the other; a machine computes
    one thing at a time, in the order in which it comes. When all are back, the machines of a stage
    in several pipelines have the mean of their gradients by an all-reduce, and step.

    A machine that fails or is late is lost: its pipeline's part of the step is left out of the
    mean, and before the next step a spare takes its place, or the same client if it is there and
    nobody else is. If another pipeline has the stage, its state is sent from there; otherwise the
    rule's recovery says what becomes of it, and who sends what. If no pipeline is left, the step is
    taken again. Payloads that are lost are sent again.

    Split learning (Gupta, Raskar, arXiv:1810.06060; Vepakomma, Gupta, Swedish, Raskar,
    arXiv:1812.00564) is two stages, with `server`: the last client has the last stage, as a machine
    of the fleet like the others, and these have the first one in turn, with their own examples.
    With ends="together" it is U-shaped: the first machine has the last layers too, and labels stay
    with it; with ends="apart" they travel to the server.

    Args:
        rule: makes each stage's next parameters, and recovers lost ones.
        num_stages: S.
        steps: of a round.
        pipelines: P.
        micro_batches: M of each pipeline in a step; the client's batch_size is that of one.
        in_flight: most of them under way in a pipeline; None is all, as GPipe has it, S is as few
            as keep all machines busy.
        ends: which pieces the first stage holds, see `fl.stages.Cut.of`.
        boundaries: pieces at which the next spans begin, likewise.
        allreduce: by which a stage's machines come to have the mean; None is a ring.
        server: the last client has the last stage.
        turn_steps: after how many steps the next client that has no stage gets the first one, with
            its moments, and gives its examples; None never.
        drop: probability that the machine of a stage is lost before a step; another takes its place
            at once. The first stage's, which has the data, is not.
        patience: see `RuleDriver`.
        **driver: other arguments of `RuleDriver`.

    Raises:
        ConfigError: an argument is out of its range.
    """

    rules = PipelineTraining
    example = "PipelineTraining"
    rule: PipelineTraining

    def __init__(
        self,
        rule: PipelineTraining,
        *,
        num_stages: int,
        steps: int = 1,
        pipelines: int = 1,
        micro_batches: int = 4,
        in_flight: int | None = None,
        ends: Ends = "apart",
        boundaries: Sequence[int] | None = None,
        allreduce: Collective | None = None,
        server: bool = False,
        turn_steps: int | None = None,
        drop: float = 0.0,
        patience: float | None = 10.0,
        **driver: Any,
    ) -> None:
        super().__init__(rule, patience=patience, **driver)
        at_least("num_stages", num_stages, 2)
        for name, value in (
            ("steps", steps),
            ("pipelines", pipelines),
            ("micro_batches", micro_batches),
            ("in_flight", in_flight),
            ("turn_steps", turn_steps),
        ):
            if value is not None:
                at_least(name, value, 1)
        boolean("server", server)
        share("drop", drop)
        if server and pipelines > 1:
            raise ConfigError(
                f"server is true and pipelines is {pipelines}; the server's stage is that of one "
                "pipeline: set pipelines=1"
            )
        self.num_stages = num_stages
        self.steps = steps
        self.pipelines = pipelines
        self.micro_batches = micro_batches
        self.in_flight = in_flight
        self.ends_of_model: Ends = ends
        self.boundaries = boundaries
        self.allreduce = RingAllReduce() if allreduce is None else allreduce
        is_a("allreduce", self.allreduce, Collective)
        self.server = server
        self.turn_steps = turn_steps
        self.drop = drop

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        return Traits(meets="stages", sends="gradient", downlink=False)

    def ends(self, uplink: Channel | None, downlink: Channel | None) -> tuple[Any, Any]:
        """Returns none: what is compressed crosses edges, of which a machine knows nothing."""
        return None, None

    def check_clients(self, num_clients: int) -> None:
        """Raises ConfigError if there are fewer clients than places."""
        places = self.num_stages * self.pipelines
        if num_clients < places:
            raise ConfigError(
                f"num_stages is {self.num_stages} and pipelines is {self.pipelines}, which takes "
                f"{places} machines, and there are {num_clients} clients: set num_clients={places} "
                "or more"
            )

    def cut(self, model: nn.Module, input_shape: tuple[int, ...], *, tokens: bool) -> Cut:
        """Returns the stages of a model.

        Raises:
            ConfigError: it cannot be cut so, or lost stages could not be recovered.
        """
        made = Cut.of(
            model,
            input_shape,
            self.num_stages,
            tokens=tokens,
            ends=self.ends_of_model,
            boundaries=self.boundaries,
        )
        self.rule.recovery.check(made)
        return made

    def within(self, exchange: Exchange) -> Self:
        """Returns a copy within an exchange, see `Driver.within`.

        Raises:
            ConfigError: the compressor cannot carry activations.
        """
        channel = exchange.uplink
        if channel is not None and exchange.stages is not None:
            for span in exchange.stages.spans[:-1]:
                shapes = Shapes(((1, *span.output_shape),))
                if channel.init(shapes) or channel.init_receiver(shapes):
                    raise ConfigError(
                        f"compressor is {type(channel).__name__}, which remembers what of the last "
                        "vector did not travel, and activations of the next micro-batch are of "
                        "other examples: use compressor=bf16, qsgd or topk, and feedback=null"
                    )
        return super().within(exchange)

    # ---- Flower's Strategy -----------------------------------------------------------------------

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Runs the strategy for `num_rounds` rounds of `steps` steps.

        Args:
            grid: Flower's, simulated or real.
            initial_arrays: the initial model.
            num_rounds: rounds.
            timeout: not read: see `patience`.
            train_config: sent with every message.
            evaluate_config: not used: machines do not evaluate.
            evaluate_fn: called with number and model, for the first model and after every round.

        Raises:
            ConfigError: an argument is out of its range, or the exchange has no stages.
            SimulationError: machines do nothing but fail, or what is left cannot be recovered.
            Diverged: they do nothing but diverge.
        """
        at_least("num_rounds", num_rounds, 1)
        positive("timeout", timeout)
        self.exchange.check(grid)
        cut = self.exchange.stages
        if cut is None:
            raise ConfigError(
                "Pipeline does not know the stages: use "
                "Pipeline(...).within(Exchange(stages=Cut.of(model, ...)))"
            )
        layout = layout_of(initial_arrays)
        w = from_record(layout, initial_arrays)
        parts = _parts(layout, cut)
        tasks: Tasks[StageTask] = Tasks(grid, TTL_S, self.patience)
        recovery = self.rule.recovery
        run = PipelineRun(
            cut,
            [len(_taken(part, w)) for part in parts],
            tasks,
            self.exchange.uplink,
            self.seed,
            (self.configrecord_key, dict(train_config or {})),
            micro_batches=self.micro_batches,
            in_flight=self.in_flight,
            redundant=recovery.redundant,
            swapped=recovery.swaps,
        )
        training = _Training(self, run, [self.rule.init(_taken(part, w)) for part in parts])
        if self.exchange.initial is not None:
            training.draw = partial(_drawn, self.exchange.initial, layout, parts)
        result = Result()

        def evaluate(version: int) -> None:
            row = torch.empty(layout.size)
            for state, part in zip(training.states, parts, strict=True):
                part.put(row, as_tensor(state.w))
            record = to_record(layout, row)
            metrics = evaluate_fn(version, record) if evaluate_fn else None
            if metrics is not None:
                result.evaluate_metrics_serverapp[version] = metrics
            result.arrays = record

        evaluate(0)
        wait_for_nodes(tasks, self.min_available_nodes, self.retry_s)
        for version in range(1, num_rounds + 1):
            training.run.version = version
            while training.step < version * self.steps:
                training.advance()
            facts: dict[str, Any] = {name: float(run.facts[name]) for name in _FACTS}
            run.facts.clear()
            tasks.control.measured(facts)
            result.train_metrics_clientapp[version] = MetricRecord(facts)
            evaluate(version)
        return result


_MOST_TRIES = 1000  # of steps, since the last one that had not been taken before
_FACTS = ("lost_machines", "recovered_stages", "repeated_steps", "lost_payloads")


class _Training:
    """Where a run of `Pipeline` is.

    Attributes:
        states: of the stages.
        step: steps taken, t.
        draw: returns a stage of another initial model, given how many were drawn before.
    """

    def __init__(self, driver: Pipeline, run: PipelineRun, states: Sequence[StageState]) -> None:
        self.driver = driver
        self.run = run
        self.states = list(states)
        self.step = 0
        self.draw: Any = None
        self._draws = 0
        self._tries = 0
        self._saved = (0, list(states))
        self._begun = False
        self._heads: dict[int, int] = {}  # whose turn it is, by pipeline
        self._turned = 0  # the step before which it was passed on last
        self._furthest = 0  # the most steps that were ever taken,
        self._since = 0  # and how many were tried since

    @property
    def _recovery(self) -> Any:
        return self.driver.rule.recovery

    # ---- a step ----------------------------------------------------------------------------------

    def advance(self) -> None:
        """Tries to take a step; a checkpoint may take it back by several."""
        run, driver, began = self.run, self.driver, self.run.now
        self._strike()
        complete = self._staffed()
        if not complete:
            run.wait(run.now + run.tasks.pause_s(driver.retry_s))
            return
        self._check_progress()
        ready_s = self._supplied(complete)
        there = run.hold(complete, self.step, [s.w for s in self.states], ready_s)
        back = run.micro_batches(there, self.step)
        gradients = run.gradients(list(back), self.step)
        if not gradients:
            run.facts["repeated_steps"] += 1
            if run.now == began:  # or it would be tried for ever at one instant
                run.wait(run.now + driver.retry_s)
            return
        run.wait(self._reduced(list(gradients)))
        why_not = self._stepped(gradients)
        run.tasks.control.stepped(run.version, why_not)
        if why_not is None:
            run.failures.clear()
        self._applied(back, gradients)
        self.step += 1
        run.whole &= {(p, i) for p in gradients for i in range(driver.num_stages)}
        self._save(min(gradients))

    def _check_progress(self) -> None:
        """Ends a run in which stages are lost faster than steps are taken."""
        self._since += 1
        if self.step > self._furthest:
            self._furthest, self._since = self.step, 0
        if self._since > _MOST_TRIES:
            raise SimulationError(
                f"{self._since} steps were tried since step {self._furthest} was reached, and "
                "stages were lost before the next one was: lower strategy.drop or the fleet's "
                "faults, set strategy.rule.recovery.every lower, or use "
                "strategy/recovery=checkfree_plus"
            )

    def _strike(self) -> None:
        """Loses machines by chance."""
        driver, run = self.driver, self.run
        self._tries += 1
        if not driver.drop:
            return
        for (p, i), node in sorted(run.at.items()):
            number = p * driver.num_stages + i
            if i and uniform(driver.seed, "lost stage", number, self._tries) < driver.drop:
                run.whole.discard((p, i))
                run.facts["lost_machines"] += 1
                run.tasks.control.absent(node, run.version)

    def _reduced(self, pipelines: Sequence[int]) -> float:
        """Has the machines of each stage all-reduce; returns when the last has, s."""
        run, driver = self.run, self.driver
        end = run.now
        if len(pipelines) > 1:
            for i, size in enumerate(run.sizes):
                nodes = [run.at[p, i] for p in pipelines]
                sizes = [FLOAT_BYTES * size] * len(nodes)
                end = max(end, run.tasks.peers.collect(nodes, sizes, driver.allreduce).finish_s)
        return end

    def _stepped(self, gradients: Mapping[int, Sequence[StageGradient]]) -> NoStep | None:
        """Steps all stages; returns why not, if one cannot."""
        after = []
        try:
            for i, state in enumerate(self.states):
                g = mean(np.stack([own[i].g for own in gradients.values()]).astype(np.float64))
                after.append(self.driver.rule.step(state, g))
        except NoStep as error:
            return error
        self.states = after
        return None

    def _applied(
        self,
        back: Mapping[int, Sequence[Passage]],
        gradients: Mapping[int, Sequence[StageGradient]],
    ) -> None:
        """Reports what has entered the model; the last machine of a route knows the loss."""
        last = self.run.cut.spans[-1].stage
        for p, own in gradients.items():
            losses = [m.loss for m in back[p] if m.loss is not None]
            told = {"train-loss": sum(losses) / len(losses)} if losses else {}
            for i, given in enumerate(own):
                metrics = told if i == last else {}
                self.run.tasks.control.applied(given.message_id, 0, metrics)

    # ---- machines --------------------------------------------------------------------------------

    def _staffed(self) -> list[int]:
        """Gives every place a machine, as far as there are some; returns pipelines without gaps."""
        run, driver = self.run, self.driver
        there = run.tasks.prompt()
        for place, node in list(run.at.items()):
            if node not in there:
                run.lose(place, "it is away")
        used = set(run.at.values())
        spare = sorted(
            (node for node in there if node not in used),
            key=lambda node: (run.failed.get(node, 0), node),
        )
        last = max(run.tasks.peers.nodes(), default=0) if driver.server else None
        complete = []
        for p in range(driver.pipelines):
            for i in range(driver.num_stages):
                if (p, i) in run.at:
                    continue
                if last is not None:
                    own = [n for n in spare if (n == last) == (i == driver.num_stages - 1)]
                else:
                    own = spare
                fitting = [n for n in own if i or n not in run.idle_heads]
                if not fitting:
                    break
                node = fitting[0]
                if i == 0:
                    node = next((n for n in fitting if n >= self._heads.get(p, 0)), node)
                spare.remove(node)
                run.at[p, i] = node
                if not self._begun:
                    run.whole.add((p, i))  # all know the initial model
            else:
                complete.append(p)
        self._begun = self._begun or bool(complete)
        return complete

    def _supplied(self, complete: Sequence[int]) -> dict[Place, float]:
        """Gets machines that lack their stage what they need; returns when they have it, s."""
        run, driver, recovery = self.run, self.driver, self._recovery
        ready_s: dict[Place, float] = {}
        stages = range(driver.num_stages)
        has = {i: [p for p in range(driver.pipelines) if (p, i) in run.whole] for i in stages}
        lost = [i for i in stages if not has[i]]
        vectors = [1 + len(state.moments) for state in self.states]
        sources: dict[int, Sequence[int]] = {}
        if lost:
            middle = run.cut.middle
            sources = {i: recovery.sources(i, lost, middle) for i in lost}
            if recovery.rolls_back():
                saved_step, saved = self._saved
                run.facts["repeated_steps"] += self.step - saved_step
                self.step, self.states = saved_step, list(saved)
            self.states = driver.rule.recover(self.states, lost, middle, self._drawn)
            run.facts["recovered_stages"] += len(lost)
            log.info("stages %s are recovered before step %d", lost, self.step)
        for p in complete:
            for i in stages:
                if (p, i) in run.whole:
                    continue
                if i in sources:
                    number = vectors[i] if recovery.sends_moments() else 1
                    givers = [(p, j) for j in sources[i]]
                else:
                    number, givers = vectors[i], [(has[i][0], i)]
                size = FLOAT_BYTES * run.sizes[i] * number
                ends = [run.carry(run.at[giver], run.at[p, i], size) for giver in givers]
                ready_s[p, i] = max(ends, default=run.now)
        if driver.turn_steps is not None:
            self._turn(complete, ready_s, FLOAT_BYTES * run.sizes[0] * vectors[0])
        return ready_s

    def _turn(self, complete: Sequence[int], ready_s: dict[Place, float], size: int) -> None:
        """Hands first stages on to the next clients, if it is time."""
        run, every = self.run, self.driver.turn_steps or 1
        due = self.step > self._turned and self.step % every == 0
        if due:
            self._turned = self.step
        server = max(run.tasks.peers.nodes()) if self.driver.server else None
        for p in complete:
            before = run.at[p, 0]
            if not due or self._heads.get(p) != before:  # the present one has just begun
                self._heads[p] = before
                continue
            taken = {*run.at.values(), *run.idle_heads, server}
            others = [node for node in sorted(run.tasks.prompt()) if node not in taken]
            after = next((n for n in others if n > before), others[0] if others else None)
            if after is not None:
                run.at[p, 0] = self._heads[p] = after
                ready_s[p, 0] = run.carry(before, after, size)

    def _drawn(self, i: int) -> Row:
        self._draws += 1
        if self.draw is None:
            raise ConfigError("recovery redraws a lost stage, and nobody can draw a model")
        row: Row = self.draw(self._draws, i)
        return row

    def _save(self, p: int) -> None:
        """Sends copies to where a recovery will want them."""
        run, recovery = self.run, self._recovery
        if recovery.shares_ends:
            run.carry(run.at[p, 0], run.at[p, run.cut.middle[0]], FLOAT_BYTES * run.sizes[0])
        if recovery.every is None or self.step % recovery.every:
            return
        self._saved = (self.step, list(self.states))
        last = self.driver.num_stages - 1
        ends = [
            run.carry(
                run.at[p, i],
                run.at[p, i + 1 if i == 0 else i - 1],
                FLOAT_BYTES * run.sizes[i] * (1 + len(self.states[i].moments)),
            )
            for i in range(last + 1)
        ]
        run.wait(max(ends))


def _parts(layout: Layout, cut: Cut) -> list[Part]:
    """Returns the stages' parts of a model.

    Raises:
        ConfigError: the stages are of another model.
    """
    entries = {entry for stage in cut.stages for entry in stage.entries}
    if entries != layout.names:
        odd = sorted(entries ^ layout.names)[0]
        raise ConfigError(f"{odd!r} is an entry of the model or of its stages, but not of both")
    return [Part(layout, stage.entries) for stage in cut.stages]


def _taken(part: Part, row: Row) -> Row:
    taken = as_row(part.take(as_tensor(row))).copy()
    taken.flags.writeable = False
    return taken


def _drawn(
    initial: Callable[[int], ArrayRecord], layout: Layout, parts: Sequence[Part], j: int, i: int
) -> Row:
    return _taken(parts[i], from_record(layout, initial(j)))
