"""Training through stages: equal to one machine's, whatever fails, at the cost of what crosses."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from stand_ins import Client, Scripted, ScriptedFaults, fleet_of

from fl import simulate
from fl.clients import Gradient, StageApp, TrainingApp
from fl.compression import EF21, Cast, TopK
from fl.data import Examples, FederatedData
from fl.data.federated import Partitions
from fl.errors import ConfigError, SimulationError
from fl.models import MLP, CharGPT, per_example_loss
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import TaskFaults
from fl.strategies import (
    CheckFree,
    CheckFreePlus,
    CopiedStage,
    DrawnAnew,
    Exchange,
    OuterAdam,
    OuterSgd,
    Pipeline,
    PipelineTraining,
    RedundantStages,
    RollBack,
)

B, M, W = 2, 2, 8  # examples of a micro-batch, micro-batches of a step, units of a layer


def table(partitions: int = 8, each: int = 5) -> FederatedData:
    rng = np.random.default_rng(7)
    n = partitions * each
    x = rng.standard_normal((n, 3)).astype(np.float32)
    return FederatedData(
        name="toy",
        train=Examples(x, rng.integers(0, 2, n)),
        test=Examples(x[:1], np.zeros(1, np.int64)),
        partitions=Partitions.contiguous([each] * partitions),
        num_classes=2,
        input_shape=(3,),
    )


def text(partitions: int = 8, each: int = 5) -> FederatedData:
    rng = np.random.default_rng(7)
    x = rng.integers(0, 7, (partitions * each, 5))
    return FederatedData(
        name="toy-text",
        train=Examples(x[:, :4].astype(np.uint8), x[:, 1:]),
        test=Examples(x[:1, :4].astype(np.uint8), x[:1, 1:]),
        partitions=Partitions.contiguous([each] * partitions),
        num_classes=7,
        input_shape=(4,),
        task="next-token",
    )


def mlp() -> MLP:
    torch.manual_seed(1)
    return MLP((3,), 2, hidden=(W, W, W))


def gpt(layers: int = 4) -> CharGPT:
    torch.manual_seed(0)
    return CharGPT((4,), 7, width=4, layers=layers, heads=2)


MODELS = {"apart": (mlp, table), "together": (gpt, text)}


def flat(model) -> np.ndarray:
    return np.concatenate([np.asarray(x).ravel() for x in model.values()])


@dataclass
class Ran:
    """What a run left: the model after every round with its time, counted facts, the trace."""

    models: list[dict[str, np.ndarray]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    facts: Counter[str] = field(default_factory=Counter)
    error: str = ""
    summary: object = None
    trace: object = None

    @property
    def last(self) -> np.ndarray:
        return flat(self.models[-1])

    def count(self, kind: Event) -> int:
        return int((self.trace.kind == kind).sum())


FAST = Client(flops=1e4, up_bps=1e6, latency_s=0.01)


def run(
    recovery=None,
    *,
    ends="apart",
    model=None,
    data=None,
    num_stages=4,
    rounds=3,
    optimizer=None,
    clients=None,
    channel=None,
    shuffle=False,
    availability=None,
    faults=None,
    clip_norm=None,
    micro_batches=M,
    **driver,
) -> Ran:
    make, examples = MODELS[ends]
    model, data = model or make(), data or examples()
    rule = PipelineTraining(
        RollBack(every=2) if recovery is None else recovery,
        OuterSgd(lr=0.1, momentum=0.0, nesterov=False) if optimizer is None else optimizer,
        clip_norm,
    )
    strategy = Pipeline(
        rule,
        num_stages=num_stages,
        ends=ends,
        micro_batches=micro_batches,
        retry_s=1.0,
        **driver,
    )
    app = TrainingApp(
        model, data, Gradient(), batch_size=B, local_epochs=None, local_steps=1, shuffle=shuffle
    )
    cut = strategy.cut(model, data.input_shape, tokens=data.task == "next-token")
    own = StageApp(app, cut, [app.layout.of_names(stage.entries) for stage in cut.stages])
    draws = {
        j: ArrayRecord((make if model is None else lambda: gpt(5))().state_dict()) for j in (1,)
    }
    strategy = strategy.within(
        Exchange(channel, layout=app.layout, stages=cut, initial=lambda j: draws[1])
    )
    places = num_stages * driver.get("pipelines", 1)
    clients = clients or [FAST] * places
    ran = Ran()

    def server(grid, context, recorder):
        def evaluate(version, arrays):
            ran.models.append({k: np.array(a.numpy()) for k, a in arrays.items()})
            ran.times.append(grid.clock.now())

        try:
            result = strategy.start(
                grid=grid,
                initial_arrays=ArrayRecord(model.state_dict()),
                num_rounds=rounds,
                evaluate_fn=evaluate,
            )
        except SimulationError as error:
            ran.error = str(error)
            return
        for facts in result.train_metrics_clientapp.values():
            ran.facts.update({k: int(v) for k, v in facts.items()})

    fleet = fleet_of(clients, availability=availability, faults=faults)
    done = simulate(server, own, fleet, num_partitions=8, executor="serial", progress=False, seed=3)
    ran.summary, ran.trace = done.summary, done.trace
    return ran


def in_one_place(model, data, optimizer, steps, *, heads=(0,), micro_batches=M):
    """Trains the whole model on the same examples by PyTorch's own optimizer."""
    x, y = zip(*(data.client(p) for p in heads), strict=True)
    for t in range(steps):
        optimizer.zero_grad()
        for own_x, own_y in zip(x, y, strict=True):
            for m in range(micro_batches):
                first = (t * micro_batches + m) * B
                rows = np.arange(first, first + B) % len(own_y)
                loss = per_example_loss(model(own_x[rows]), own_y[rows]).mean()
                (loss / micro_batches / len(heads)).backward()
        optimizer.step()
    return flat(model.state_dict())


# ---- equal to one place --------------------------------------------------------------------------


@pytest.mark.parametrize("ends", MODELS)
def test_four_stages_train_as_one_machine_does(ends):
    make, examples = MODELS[ends]
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = in_one_place(model, examples(), optimizer, steps=6)
    ran = run(ends=ends, steps=2)
    np.testing.assert_allclose(ran.last, expected, rtol=1e-5, atol=1e-6)
    assert (
        np.abs(ran.last - np.concatenate([x.ravel() for x in ran.models[0].values()])).max() > 1e-3
    )


def test_adam_by_stages_is_adam():
    model = mlp()
    expected = in_one_place(model, table(), torch.optim.Adam(model.parameters(), lr=0.01), 3)
    ran = run(optimizer=OuterAdam(lr=0.01, beta2=0.999))
    np.testing.assert_allclose(ran.last, expected, rtol=1e-5, atol=1e-6)


def test_two_pipelines_take_the_mean_of_both_clients_gradients():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = in_one_place(model, table(), optimizer, 3, heads=(0, 4))
    ran = run(pipelines=2)
    np.testing.assert_allclose(ran.last, expected, rtol=1e-5, atol=1e-6)
    assert ran.count(Event.ALL_REDUCE) == 3 * 4 * 2  # of each stage, by each of its machines


def test_how_many_are_under_way_changes_times_and_no_bits():
    all_at_once, one = run(micro_batches=4), run(micro_batches=4, in_flight=1)
    np.testing.assert_array_equal(all_at_once.last, one.last)
    assert all_at_once.times[-1] < 0.6 * one.times[-1]


def test_a_shuffled_run_repeats_itself_and_differs_from_one_in_order():
    a, b, ordered = run(shuffle=True), run(shuffle=True), run()
    np.testing.assert_array_equal(a.last, b.last)
    assert np.abs(a.last - ordered.last).max() > 1e-5


# ---- split learning ------------------------------------------------------------------------------


def test_split_learning_hands_the_first_layers_on_and_trains_as_one_machine_on_everybodys_turn():
    data, model = table(), mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = zip(*(data.client(p) for p in range(3)), strict=True)
    for t, head in enumerate([0, 1, 2, 0]):
        rows = np.arange(t * B, t * B + B) % 5
        optimizer.zero_grad()
        per_example_loss(model(x[head][rows]), y[head][rows]).mean().backward()
        optimizer.step()
    ran = run(
        num_stages=2,
        server=True,
        turn_steps=1,
        micro_batches=1,
        rounds=4,
        clients=[Client(flops=1e4, up_bps=1e6)] * 4,
    )
    expected = flat(model.state_dict())
    np.testing.assert_allclose(ran.last, expected, rtol=1e-5, atol=1e-6)


def test_labels_travel_to_the_server_unless_the_ends_are_together():
    """Two cuts of one model: the middle stage's activations go both ways, and labels with them."""
    fleet = [Client(flops=1e4, up_bps=1e6)] * 2
    common = {"num_stages": 2, "micro_batches": 1, "rounds": 1, "clients": fleet}
    layers = {"model": mlp(), "data": table()}
    vanilla = run(RedundantStages(), boundaries=[2], **layers, **common)
    shaped = run(RedundantStages(), ends="together", boundaries=[1, 3], **layers, **common)
    activations = 4 * B * W
    assert vanilla.summary["totals"]["bytes_up"] == 2 * activations + 8 * B
    assert shaped.summary["totals"]["bytes_up"] == 4 * activations


# ---- compression ---------------------------------------------------------------------------------


def test_activations_and_their_gradients_cross_edges_as_the_compressor_makes_them():
    exact, half = (
        run(RedundantStages(), rounds=1),
        run(RedundantStages(), channel=Cast("bf16"), rounds=1),
    )
    labels = 8 * B * M
    assert exact.summary["totals"]["bytes_up"] == 2 * 3 * M * 4 * B * W + labels
    assert (
        half.summary["totals"]["bytes_up"] - labels
        < 0.55 * (exact.summary["totals"]["bytes_up"] - labels) + 100
    )
    assert 0 < np.abs(half.last - exact.last).max() < 1e-3


def test_a_compressor_that_remembers_is_refused():
    with pytest.raises(ConfigError, match="remembers what of the last"):
        run(channel=EF21(TopK(0.5)))


# ---- what is lost --------------------------------------------------------------------------------


def test_checkpoints_and_redundancy_lose_nothing_but_time():
    calm = run(RollBack(every=2), rounds=6)
    rolled = run(RollBack(every=2), rounds=6, drop=0.15)
    redundant = run(RedundantStages(), rounds=6, drop=0.08, seed=5)
    np.testing.assert_array_equal(rolled.last, calm.last)
    np.testing.assert_array_equal(redundant.last, calm.last)
    assert rolled.facts["repeated_steps"] > 0
    assert redundant.facts["recovered_stages"] > 0
    assert redundant.facts["repeated_steps"] == 0
    assert rolled.times[-1] > calm.times[-1]


def test_a_machine_that_crashes_is_replaced_by_a_spare_and_the_step_is_taken_again():
    spare = [Client(flops=1e4, up_bps=1e6)] * 5
    faults = ScriptedFaults(script={(2, 2): TaskFaults(crash_at=0.5)})
    calm, hit = run(rounds=4, clients=spare), run(rounds=4, clients=spare, faults=faults)
    np.testing.assert_array_equal(hit.last, calm.last)
    assert hit.facts["lost_machines"] == 1
    assert hit.facts["repeated_steps"] >= 1
    assert {2, 4} <= set(hit.trace.client[hit.trace.kind == Event.COMPUTE_END].tolist())


def test_a_stage_that_another_pipeline_has_is_copied_from_there_and_the_others_go_on():
    faults = ScriptedFaults(script={(2, 2): TaskFaults(crash_at=0.5)})
    ran = run(CheckFreePlusNever(), pipelines=2, rounds=4, faults=faults)
    assert ran.facts["lost_machines"] == 1
    assert ran.facts["recovered_stages"] == ran.facts["repeated_steps"] == 0


class CheckFreePlusNever(RedundantStages):
    """A recovery that must not be asked."""

    def sources(self, i, lost, middle):
        raise AssertionError("another pipeline has the stage")


def test_machines_that_go_away_for_a_while_are_waited_for():
    away = Scripted(4, {1: [0.05, 40.0]})
    ran = run(rounds=3, availability=away)
    np.testing.assert_array_equal(ran.last, run(rounds=3).last)
    assert ran.times[-1] > 40.0


def test_a_machine_that_goes_away_without_a_task_of_its_own_is_an_event_of_the_trace():
    ran = run(rounds=2, availability=Scripted(5, {1: [0.4529, 1e9]}), clients=[FAST] * 5)
    assert ran.facts["lost_machines"] == ran.count(Event.ABSENT) == 1  # just after the first step
    assert ran.count(Event.DEPARTURE) == ran.count(Event.CRASH) == 0


def test_losses_that_outrun_checkpoints_end_the_run(monkeypatch):
    monkeypatch.setattr("fl.strategies.drivers.stages.pipeline_training._MOST_TRIES", 20)
    ran = run(RollBack(every=50), rounds=1, steps=60, drop=0.5, seed=7)
    assert "21 steps were tried since step" in ran.error


def test_with_checkfree_a_loss_moves_the_lost_stage_alone():
    """The first step after a loss differs from the calm run's by what the neighbours made of it."""

    def stages(recovery, drop, seed=0):
        return run(recovery, ends="together", num_stages=5, rounds=2, drop=drop, seed=seed)

    lost = next(
        ran
        for seed in range(40)
        if (ran := stages(CheckFree(), 0.1, seed)).facts["recovered_stages"] == 1
    )
    assert lost.facts["repeated_steps"] == 0
    calm = stages(CheckFree(), 0.0)
    far = {k for k, x in calm.models[-1].items() if np.abs(x - lost.models[-1][k]).max() > 5e-3}
    assert len({k.split(".")[1] for k in far if k.startswith("blocks")}) == 1


def test_swapped_ends_cost_something_where_nothing_is_lost():
    plain = run(CheckFree(), ends="together", num_stages=5)
    swapped = run(CheckFreePlus(), ends="together", num_stages=5)
    assert np.abs(plain.last - swapped.last).max() > 1e-6
    assert (
        swapped.summary["totals"]["bytes_up"] > plain.summary["totals"]["bytes_up"]
    )  # the copy of the first stage


def test_redrawing_takes_a_stage_of_another_model():
    ran = run(DrawnAnew(), ends="together", model=gpt(5), num_stages=6, rounds=3, drop=0.3)
    assert ran.facts["recovered_stages"] > 0


# ---- what does not go ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recovery", "ends", "layers", "says"),
    [
        (CheckFree(), "apart", 4, "set ends=together"),
        (CheckFreePlus(), "together", 3, "needs 4 middle stages"),
        (CopiedStage(), "together", 5, "tensors of other shapes"),
    ],
)
def test_stages_that_could_not_be_recovered_are_refused(recovery, ends, layers, says):
    with pytest.raises(ConfigError, match=says):
        run(recovery, ends=ends, model=mlp() if ends == "apart" else gpt(layers))


def test_too_few_clients_are_refused():
    rule = PipelineTraining(RollBack())
    with pytest.raises(ConfigError, match="takes 8 machines"):
        Pipeline(rule, num_stages=4, pipelines=2).check_clients(7)
    with pytest.raises(ConfigError, match="set pipelines=1"):
        Pipeline(rule, num_stages=2, pipelines=2, server=True)


def test_nothing_is_trained_before_the_stages_are_known():
    with pytest.raises(ConfigError, match="does not know the stages"):
        Pipeline(PipelineTraining(RollBack()), num_stages=2).start(
            grid=None, initial_arrays=ArrayRecord(mlp().state_dict())
        )
