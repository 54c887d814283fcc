"""Recoveries of lost stages by themselves, in closed form."""

import numpy as np
import pytest

from fl.errors import SimulationError
from fl.strategies import (
    CheckFree,
    CheckFreePlus,
    CopiedStage,
    DrawnAnew,
    OuterAdam,
    OuterSgd,
    PipelineTraining,
    RedundantStages,
    RollBack,
    StageState,
)

MIDDLE = range(1, 7)  # of seven stages, the first with the ends


def state(value, omega=1.0, n=3, t=5):
    """Returns a stage after five steps of Adam."""
    moments = {"m": np.full(n, 0.1), "v": np.full(n, 0.2)}
    return StageState(np.full(n, value, np.float32), moments, t, omega)


def states(omegas=(1.0,) * 7):
    """Returns stages 0..6 with values 0, 10, ..., 60; the first is larger than the others."""
    return [state(10.0 * i, omega, 5 if i == 0 else 3) for i, omega in enumerate(omegas)]


def recovered(recovery, lost, before=None, drawn=None):
    rule = PipelineTraining(recovery, OuterAdam())
    return rule.recover(before or states(), lost, MIDDLE, drawn or (lambda i: None))


def test_checkfree_weights_neighbours_by_the_norms_of_their_gradients():
    after = recovered(CheckFree(), [3], states((1, 1, 3.0, 9, 1.0, 1, 1)))[3]
    np.testing.assert_allclose(after.w, (3.0001 * 20 + 1.0001 * 40) / 4.0002, rtol=1e-6)
    squared = recovered(CheckFree(exponent=2.0), [3], states((1, 1, 3.0, 9, 1.0, 1, 1)))[3]
    np.testing.assert_allclose(squared.w, (9 * 20 + 40) / 10, rtol=1e-4)


def test_equal_norms_capped_norms_and_exponent_zero_give_the_plain_mean():
    unequal = states((1, 1, 3.0, 9, 2.0, 1, 1))
    for recovery, before in (
        (CheckFree(), None),
        (CheckFree(omega_cap=1.0), unequal),
        (CheckFree(exponent=0.0), unequal),
    ):
        np.testing.assert_allclose(recovered(recovery, [3], before)[3].w, 30.0, rtol=1e-6)


def test_identical_neighbours_are_recovered_exactly():
    before = states((1, 1, 0.3, 1, 0.7, 1, 1))
    before[2] = before[2]._replace(w=before[4].w)
    np.testing.assert_array_equal(recovered(CheckFree(), [3], before)[3].w, before[4].w)


def test_a_recovered_stage_begins_anew_with_a_larger_rate_that_does_not_grow():
    once = recovered(CheckFree(lr_factor=1.2), [3])
    twice = recovered(CheckFree(lr_factor=1.2), [3], once)[3]
    assert (twice.t, twice.factor) == (0, 1.2)
    assert all(not x.any() for x in twice.moments.values())
    assert [s.factor for s in once] == [1, 1, 1, 1.2, 1, 1, 1]
    assert once[4] is not None
    assert once[4].t == 5


def test_the_factor_is_one_on_the_learning_rate():
    rule = PipelineTraining(RollBack(), OuterAdam(lr=0.1, weight_decay=0.2), clip_norm=None)
    faster = PipelineTraining(RollBack(), OuterAdam(lr=0.12, weight_decay=0.2), clip_norm=None)
    g = np.array([1.0, -2.0, 0.5])
    stepped = rule.step(state(10.0)._replace(factor=1.2), g)
    np.testing.assert_allclose(stepped.w, faster.step(state(10.0), g).w, rtol=1e-6)


def test_norms_are_taken_before_clipping_and_steps_after():
    rule = PipelineTraining(RollBack(), OuterSgd(lr=1.0, momentum=0.0, nesterov=False), clip_norm=1)
    begun = rule.init(np.zeros(2, np.float32))
    after = rule.step(begun, np.array([3.0, 4.0]))
    assert after.omega == 5.0
    np.testing.assert_allclose(after.w, [-0.6, -0.8], rtol=1e-6)


def test_the_nearest_stands_in_for_a_neighbour_that_is_lost_as_well():
    after = recovered(CheckFree(), [3, 4])
    np.testing.assert_allclose(after[3].w, (20 + 50) / 2, rtol=1e-6)
    np.testing.assert_allclose(after[4].w, (20 + 50) / 2, rtol=1e-6)
    with pytest.raises(SimulationError, match="no stage that is like it is left"):
        recovered(CheckFree(), [1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize(("lost", "twin"), [(1, 2), (2, 1), (5, 6), (6, 5)])
def test_checkfree_plus_copies_twins(lost, twin):
    assert CheckFreePlus().sources(lost, {lost}, MIDDLE) == (twin,)
    np.testing.assert_array_equal(recovered(CheckFreePlus(), [lost])[lost].w, states()[twin].w)


def test_checkfree_plus_averages_between_the_twins():
    np.testing.assert_allclose(recovered(CheckFreePlus(), [3])[3].w, 30.0, rtol=1e-6)


def test_the_first_stage_has_a_copy_with_checkfree_plus_alone():
    after = recovered(CheckFreePlus(), [0])[0]
    np.testing.assert_array_equal(after.w, states()[0].w)
    assert after.t == 0
    with pytest.raises(SimulationError, match="the only copy"):
        recovered(CheckFreePlus(), [0, 1])
    for recovery in (CheckFree(), CopiedStage()):
        with pytest.raises(SimulationError, match="checkfree_plus"):
            recovered(recovery, [0])


def test_baselines():
    np.testing.assert_array_equal(recovered(CopiedStage(), [3])[3].w, states()[2].w)
    np.testing.assert_array_equal(recovered(CopiedStage(), [1])[1].w, states()[2].w)
    drawn = np.full(3, -1.0, np.float32)
    np.testing.assert_array_equal(recovered(DrawnAnew(), [3], drawn=lambda i: drawn)[3].w, drawn)
    assert recovered(RedundantStages(), [3])[3].t == 5
    with pytest.raises(SimulationError, match="both copies"):
        recovered(RedundantStages(), [3, 4])
    with pytest.raises(SimulationError, match="both copies"):
        recovered(RedundantStages(), [0, 6])  # the last has the first one's
