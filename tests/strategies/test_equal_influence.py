"""Which methods let all clients count the same, whatever their speed and their losses.

Client i's loss is |w - c_i|^2 / 2, so where all count equally the model's fixed point is the mean
of the c_i.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
from quadratics import run
from stand_ins import Scripted, driven

from fl.simulation.world.faults import Faults, TaskFaults
from fl.strategies import FAVAS, AsyncFedAvg, FedFix

TEN = list(range(10))
ONE_TO_FIVE = [1 + 4 * i / 9 for i in range(10)]  # s a task; client 0 is the fastest

# Weights by task times end at 4.67 with nine tasks in flight and at 5.72 with one; what is left
# here is O(1 / N) of the estimated intervals, with N some 400 contributions of each client.
TOLERANCE = 0.05


@dataclass(frozen=True)
class EverySecondTask(Faults):
    """Client 1 loses every second task, by any one of the fields of `TaskFaults`."""

    fault: TaskFaults = field(default_factory=TaskFaults)

    def draw(self, seed: int, client: int, dispatch: int) -> TaskFaults:
        return self.fault if client == 1 and dispatch % 2 else TaskFaults()


SLOW = partial(pytest.param, marks=pytest.mark.slow)
LOSSES = {
    "crash": {"faults": EverySecondTask(detection_s=0.0, fault=TaskFaults(crash_at=0.9))},
    "lost reply": {"faults": EverySecondTask(fault=TaskFaults(lose_upload=True)), "timeout": 2.0},
    "away half of the time": {
        "availability": Scripted(2, {1: [10.25 * k for k in range(1, 500)]}),
        "faults": Faults(detection_s=0.0),
    },
}


def late_mean(ran):
    models = np.array(ran.models)[:, 0]
    return models[len(models) // 3 :].mean()


def of_two(name, num_clients=2):
    if name == "fedfix":
        return driven(FedFix, num_clients=num_clients, interval_s=0.4, eta=0.1)
    return driven(AsyncFedAvg, num_clients=num_clients, eta=0.1)


@pytest.mark.parametrize("concurrency", [SLOW(1), SLOW(2), 5, SLOW(10)])
def test_asynchronous_fedavg_has_fedavgs_fixed_point_at_every_concurrency(concurrency):
    strategy = driven(AsyncFedAvg, num_clients=10, eta=0.1, concurrency=concurrency)
    ran = run(strategy, TEN, ONE_TO_FIVE, num_rounds=4000, w0=4.5)
    assert late_mean(ran) == pytest.approx(4.5, abs=TOLERANCE)


@dataclass(frozen=True)
class SlowClientsFail(Faults):
    """Clients 5 to 9 lose every second task, so that both speed and losses are against them."""

    def draw(self, seed: int, client: int, dispatch: int) -> TaskFaults:
        return TaskFaults(crash_at=0.5 if client >= 5 and dispatch % 2 else None)


@pytest.mark.parametrize("concurrency", [SLOW(1), 4, SLOW(10)])
def test_losses_of_the_slow_do_not_move_the_fixed_point(concurrency):
    strategy = driven(AsyncFedAvg, num_clients=10, eta=0.1, concurrency=concurrency)
    faults = SlowClientsFail(detection_s=0.0)
    ran = run(strategy, TEN, ONE_TO_FIVE, num_rounds=4000, w0=4.5, faults=faults)
    assert late_mean(ran) == pytest.approx(4.5, abs=0.1)  # weights by task times: 4.92, 4.66, 4.00


@pytest.mark.parametrize("concurrency", [SLOW(1), 4, SLOW(10)])
def test_fedfix_has_fedavgs_fixed_point_at_every_concurrency(concurrency):
    strategy = driven(FedFix, num_clients=10, interval_s=3.0, eta=0.1, concurrency=concurrency)
    ran = run(strategy, TEN, ONE_TO_FIVE, num_rounds=2000, w0=4.5)
    assert late_mean(ran) == pytest.approx(4.5, abs=0.1)  # weights by ticks spanned: 4.78 to 5.17


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["async_fedavg", SLOW("fedfix")])
def test_of_two_equal_clients_the_one_that_loses_tasks_counts_as_much_as_the_other(name, loss):
    ran = run(of_two(name), [0.0, 1.0], [1.0, 1.0], num_rounds=3000, w0=0.5, **LOSSES[loss])
    applied = [client for _, client, _ in ran.applied()]
    assert applied.count(1) < 0.75 * applied.count(0)  # or there is nothing to weigh out
    assert late_mean(ran) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", ["async_fedavg", "fedfix"])
def test_a_client_that_joins_late_counts_like_the_others_from_the_first(name):
    # Constant slopes of -1, and one task takes 1 s: a change of weight d moves by eta d LR.
    joins = Scripted(3, {2: [300.25]}, offline=[2])
    strategy = of_two(name, num_clients=3)
    ran = run(
        strategy,
        [0.0] * 3,
        [1.0] * 3,
        num_rounds=1500,
        gradient=lambda client, w: 0 * w - (client == 2),
        availability=joins,
    )
    moves = np.diff(np.array(ran.models)[:, 0])
    own = moves[moves > 0]
    assert len(own) > 50
    assert own.max() <= 1.3 * np.median(own)


@pytest.mark.parametrize("alpha", ["expected", SLOW("stochastic")])
@pytest.mark.parametrize("loss", ["crash", SLOW("lost reply")])
def test_favas_lets_a_client_that_loses_answers_count_as_much_as_the_other(loss, alpha):
    strategy = driven(
        FAVAS, contacted=1, local_steps=4, waiting_s=1.0, interaction_s=1.0, alpha=alpha
    )
    # Steps small enough that the fourth moves a client nearly as far as the first.
    ran = run(strategy, [0.0, 1.0], [1.0, 1.0], num_rounds=6000, w0=0.5, lr=0.02, **LOSSES[loss])
    applied = [client for _, client, _ in ran.applied()]
    assert applied.count(1) < 0.75 * applied.count(0)
    assert late_mean(ran) == pytest.approx(0.5, abs=0.03)  # by answers alone: 0.33
