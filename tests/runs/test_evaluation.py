"""Which models are evaluated, and what ends a run before its last round."""

from __future__ import annotations

import pytest
from every_strategy import ran

PLAIN = ("views=false", "target.value=2.0")


@pytest.mark.parametrize("strategy", ["fedavg", "fedbuff", "dpsgd", "diloco"])
def test_a_run_that_ends_at_its_target_is_the_beginning_of_one_that_goes_on(strategy):
    _, whole = ran(strategy, *PLAIN)
    loss = min(row["loss"] for row in whole.history[1:3])
    target = ["target.metric=loss", "target.mode=min", f"target.value={loss!r}", "target.stop=true"]
    _, ended = ran(strategy, *PLAIN, *target)
    assert ended.summary["status"] == "completed"
    assert 2 <= len(ended.history) < len(whole.history)
    for one, other in zip(ended.history, whole.history, strict=False):
        assert {**one, "wall_s": 0} == {**other, "wall_s": 0}
    assert ended.summary["target"]["reached"]
    assert ended.summary["totals"]["virtual_s"] == ended.history[-1]["time_s"]


def test_no_run_ends_before_it_has_trained():
    _, run = ran("fedavg", *PLAIN, "target.value=0.0", "target.stop=true")
    assert len(run.history) == 2
    assert run.summary["target"]["round"] == 0


def test_a_run_ends_when_nothing_has_become_better():
    more = ["target.metric=loss", "target.mode=max", "target.value=99"]  # and it falls
    _, run = ran("fedavg", "views=false", *more, "target.patience=2")
    assert len(run.history) == 3
    assert not run.summary["target"]["reached"]
