"""What the work of a ClientApp costs that gives no plan."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from stand_ins import Client, fleet_of, grid_of, times

from fl.errors import ConfigError
from fl.execution.contract import Payload, Request, Result
from fl.flower.identity import node_id
from fl.simulation.cost import CostModel
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import Faults, GilbertElliott

FLEET = fleet_of([Client(flops=100.0), Client(flops=50.0)])
MODEL = RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros((2, 5))), "b": Array(np.zeros(5))})})


def request(message_type: str = "train", client: int = 0) -> Request:
    return Request(client, 0, Payload(MODEL, 0), message_type, "", 1.0)


def reporting(**metrics) -> Result:
    record = MetricRecord({name.replace("_", "-"): value for name, value in metrics.items()})
    return Result(content=RecordDict({"metrics": record}), slept_s=0.5, host_s=7.0)


def seconds(cost: CostModel, result: Result, message_type: str = "train", client: int = 0) -> float:
    return cost.seconds_of(FLEET, request(message_type, client), result)


@pytest.mark.parametrize(
    ("message_type", "flops_per_scalar"),
    [("train", 6), ("train.more", 6), ("evaluate", 2), ("query", 2)],
)
def test_by_default_an_example_costs_6_flops_per_scalar_in_training_and_2_otherwise(
    message_type, flops_per_scalar
) -> None:
    # 15 scalars, 20 examples, 100 FLOP/s; and half a second asleep.
    expected = flops_per_scalar * 15 * 20 / 100 + 0.5
    assert seconds(CostModel(), reporting(num_examples=20), message_type) == expected


def test_the_device_decides_how_long_flops_take() -> None:
    per_example = CostModel(flops_per_example=10.0)
    assert seconds(per_example, reporting(num_examples=20)) == 10 * 20 / 100 + 0.5
    assert seconds(per_example, reporting(num_examples=20), client=1) == 10 * 20 / 50 + 0.5


def test_jitter_and_slow_spells_apply_to_reported_examples() -> None:
    slow = GilbertElliott(p=1.0, r=1e-9, factor=3.0)
    fleet = fleet_of([Client(flops=100.0)], faults=Faults(slowdown=slow))
    cost = CostModel(flops_per_example=10.0)
    result = reporting(num_examples=20)
    assert cost.seconds_of(fleet, request(), result) == 3 * 2.0 + 0.5


@pytest.mark.parametrize(
    "result",
    [
        Result(content=RecordDict(), slept_s=0.5),
        Result(error=(2, "raised"), slept_s=0.5),
        reporting(loss=1.0),
        reporting(num_examples=-1),
        reporting(num_examples=float("nan")),
        reporting(num_examples=float("inf")),
        reporting(num_examples=10**400),
        reporting(num_examples=1e308),
        reporting(num_examples=[1, 2]),
    ],
    ids=[
        "nothing",
        "error",
        "other metrics",
        "negative",
        "nan",
        "infinite",
        "no float",
        "endless",
        "a list",
    ],
)
def test_whatever_reports_no_number_of_examples_costs_a_constant(result) -> None:
    assert seconds(CostModel(), result) == 1.0 + 0.5
    assert seconds(CostModel(seconds=4.0), result) == 4.0 + 0.5


def test_zero_examples_cost_no_work() -> None:
    assert seconds(CostModel(), reporting(num_examples=0)) == 0.5


def test_the_metric_can_have_another_name() -> None:
    cost = CostModel(flops_per_example=10.0, examples_key="samples")
    assert seconds(cost, reporting(samples=20)) == 2.5


def test_what_a_numpy_client_returns_counts_too() -> None:
    record = MetricRecord({"num_examples": 20})
    result = Result(content=RecordDict({"fitres.num_examples": record}))
    assert seconds(CostModel(flops_per_example=10.0), result) == 2.0


def test_host_time_counts_only_if_asked_for() -> None:
    assert seconds(CostModel(measured=2.0), reporting(num_examples=20)) == 2 * 7.0 + 0.5


@pytest.mark.parametrize("name", ["flops_per_example", "seconds", "measured"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_cost_that_cannot_be_is_refused(name, value) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value}.*finite and at least 0"):
        CostModel(**{name: value})


def test_the_grid_costs_tasks_without_a_plan() -> None:
    grid = grid_of(FLEET, flops=None, answer=lambda _: reporting(num_examples=20))
    grid.send_and_receive([Message(MODEL, node_id(client), "train") for client in range(2)])
    assert times(grid.trace, Event.COMPUTE_END) == {(0, 0): 18.5, (1, 0): 36.5}
