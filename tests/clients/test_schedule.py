import pytest
import torch

from fl.clients import AdamW, CosineDecay, ExponentialDecay, Sgd, StepDecay, Warmup
from fl.errors import ConfigError
from fl.strategies import OuterAdam, OuterSgd, OverlapLocalSGD, SlowMo


@pytest.mark.parametrize(
    ("schedule", "oracle"),
    [
        (StepDecay(every=3, gamma=0.5), lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5)),
        (ExponentialDecay(0.9), lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)),
    ],
)
def test_decay_is_that_of_torch(schedule, oracle):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = oracle(optimizer)
    for index in range(12):
        assert schedule(index) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_cosine_starts_at_one_halves_midway_and_stays_at_its_floor():
    schedule = CosineDecay(period=10, floor=0.2)
    assert schedule(0) == 1.0
    assert schedule(5) == pytest.approx(0.6)
    assert schedule(10) == pytest.approx(0.2)
    assert schedule(11) == schedule(1000) == schedule(10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepDecay(every=0), "every is 0"),
        (lambda: StepDecay(every=1, gamma=0.0), "gamma is 0.0"),
        (lambda: ExponentialDecay(float("nan")), "gamma is nan"),
        (lambda: CosineDecay(period=0), "period is 0"),
        (lambda: Warmup(steps=1, then=3), "then is 3"),
        (lambda: Sgd(0.1, step_schedule=5), "step_schedule is 5"),
        (lambda: AdamW(round_schedule=5), "round_schedule is 5"),
        (lambda: SlowMo(step_schedule=5), "step_schedule is 5"),
        (lambda: OverlapLocalSGD(round_schedule=5), "round_schedule is 5"),
        (lambda: OuterSgd(schedule=5), "schedule is 5"),
        (lambda: OuterAdam(schedule=5), "schedule is 5"),
        (lambda: CosineDecay(period=1, floor=1.5), r"floor is 1.5; it must be in \[0, 1\]"),
    ],
)
def test_a_schedule_refuses_what_is_none(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
