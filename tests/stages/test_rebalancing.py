"""Rebalancing: where it comes to rest, what it never does, and what a stage's work costs."""

from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np
import pytest
from many_cases import for_each

from fl.errors import ConfigError
from fl.stages import Move, Rebalancing, TransformerStage, pipeline_rate


def settled(rule, stages, rates, most=200):
    """Moves peers until nobody moves; a stage's load is what a unit of work takes it."""
    stages = [set(stage) for stage in stages]
    for _ in range(most):
        of = [math.fsum(rates[p] for p in stage) for stage in stages]
        queues = [{p: 1 / of[s] / len(stage) for p in stage} for s, stage in enumerate(stages)]
        move = rule.move(queues, rates)
        if move is None:
            return stages
        stages[move.source].remove(move.peer)
        stages[move.target].add(move.peer)
    raise AssertionError("it does not come to rest")


@for_each("num_peers, num_stages", [*product(range(3, 12), (2, 3))])
def test_equal_peers_come_to_rest_at_the_best_rate_from_wherever_they_begin(num_peers, num_stages):
    rates = dict.fromkeys(range(num_peers), 1.0)
    best = num_peers // num_stages
    for sizes in product(range(1, num_peers), repeat=num_stages):
        if sum(sizes) != num_peers:
            continue
        cuts = np.cumsum((0, *sizes))
        begin = [range(a, b) for a, b in pairwise(cuts)]
        stages = settled(Rebalancing(), begin, rates)
        assert min(map(len, stages)) == best


def test_no_move_makes_the_slowest_stage_slower_and_all_of_them_end():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rates = dict(enumerate(rng.uniform(0.5, 4.0, 10).tolist()))
        begin = np.array_split(rng.permutation(10), [1, 3])
        before = pipeline_rate([[rates[p] for p in stage] for stage in begin])
        stages = settled(Rebalancing(), [stage.tolist() for stage in begin], rates)
        assert pipeline_rate([[rates[p] for p in stage] for stage in stages]) >= before
        assert all(stages)


def test_equal_stages_of_equal_peers_stay_whatever_waits_where():
    rng = np.random.default_rng(1)
    rates = dict.fromkeys(range(6), 1.0)
    noisy = [
        [{s * 2 + i: float(rng.integers(9)) for i in range(2)} for s in range(3)] for _ in "ab"
    ]
    for queues in noisy:
        assert Rebalancing().move(queues, rates) is None
        assert Rebalancing(gain=None).move(queues, rates) is not None  # as in the paper


def test_the_papers_rule_moves_the_idlest_peer_of_the_idlest_stage_to_the_busiest():
    queues = [{0: 3.0, 1: 1.0}, {2: 9.0}, {3: 2.0, 4: 4.0}]
    assert Rebalancing(gain=None).move(queues, {}) == Move(1, 0, 1)


def test_the_last_peer_of_a_stage_stays_and_a_stage_without_one_comes_first():
    rule = Rebalancing(gain=None)
    assert rule.move([{0: 0.0}, {1: 5.0, 2: 5.0}], {}) is None
    assert rule.move([{0: 99.0, 1: 98.0}, {}], {}) == Move(1, 0, 1)
    assert rule.busiest([{0: 99.0}, {}]) == 1
    assert Rebalancing().move([{0: 1.0, 1: 0.0}, {}], {0: 1.0, 1: 1.0}) == Move(1, 0, 1)


def test_an_endless_period_is_one_and_none_is_not():
    assert Rebalancing(every_s=math.inf).every_s == math.inf
    with pytest.raises(ConfigError, match="every_s"):
        Rebalancing(every_s=0.0)


def test_a_layer_costs_what_its_matrices_and_its_attention_do():
    h, s, f = 8, 5, 4 * 8
    matrices = [(h, h)] * 4 + [(h, f), (f, h)]
    multiplied = sum(s * a * b for a, b in matrices) + 2 * s * s * h  # scores, and what they weigh
    stage = TransformerStage(width=h, sequence=s, micro_batch=3, layers=2)
    assert stage.work.forward_flops == 3 * 2 * 2 * multiplied
    assert stage.work.backward_flops == 3 * stage.work.forward_flops
    assert stage.parameters == 2 * sum(a * b for a, b in matrices)
    assert stage.work.boundary_bytes == 3 * s * h
    assert TransformerStage(width=h, sequence=s, layers=2, shared=True).parameters == 12 * h * h


def test_compute_over_bytes_grows_with_the_width():
    per_byte = [
        (w := TransformerStage(width=h, sequence=1).work).forward_flops / w.boundary_bytes
        for h in (1024, 2048, 4096)
    ]
    np.testing.assert_allclose(np.diff(np.log2(per_byte)), 1.0, atol=1e-3)
