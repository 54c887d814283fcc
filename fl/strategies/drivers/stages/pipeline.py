"""The driver of models that are cut into stages, each on a machine of its own.

The rule is `fl.strategies.pipeline_rule`. `StageTraining` says who holds what, and what comes after
what; `PipelineRun` is machines and messages.

There is no server in these methods. The process that runs the strategy hands activations from
machine to machine, and does the arithmetic of the optimizer, which every machine would do for its
own stage; on the simulator what it sends and receives costs nothing, and activations, gradients,
all-reduces and recoveries cost what they cost on the direct links between the machines. On a
deployment they travel through the SuperLink.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from torch import nn

from fl.checks import at_least, boolean, is_a, positive, share
from fl.collectives import Collective, RingAllReduce
from fl.compression import Channel, Shapes
from fl.errors import ConfigError
from fl.flower.records import from_record, layout_of, to_record
from fl.stages import Cut, Ends
from fl.strategies.drivers.driver import RuleDriver, Traits
from fl.strategies.drivers.events.events import EvaluateFn, wait_for_nodes
from fl.strategies.drivers.exchange import Exchange
from fl.strategies.drivers.stages.pipeline_run import PipelineRun, StageTask
from fl.strategies.drivers.stages.pipeline_training import StageTraining
from fl.strategies.drivers.tasks import TTL_S, Tasks
from fl.strategies.pipeline_rule import PipelineTraining
from fl.vectors.layout import Layout
from fl.vectors.part import Part
from fl.vectors.rows import Row, as_row, as_tensor


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
        training = StageTraining(self, run, [self.rule.init(_taken(part, w)) for part in parts])
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


_FACTS = ("lost_machines", "recovered_stages", "repeated_steps", "lost_payloads")


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
