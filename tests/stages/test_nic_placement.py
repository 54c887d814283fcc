"""Holmes' placement against every placement there is, and a step's time by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from many_cases import for_each

from fl.errors import ConfigError
from fl.stages import Machines, NicAware

RULE = NicAware(
    stages=2,
    pipelines=2,
    num_layers=8,
    micro_batches=4,
    layer_flops=1e12,
    boundary_bytes=1e6,
    gradient_bytes=1e9,
)


def every_placement(rule, machines):
    shape = (rule.stages, rule.pipelines)
    for order in permutations(range(len(machines))):
        yield rule.scored(machines, np.array(order).reshape(shape))


def test_a_step_takes_what_it_does_by_hand():
    machines = Machines.of([(2, 80e9, 1e12), (2, 40e9, 3e12)], between_bps=8e9)
    placed = RULE.scored(machines, np.array([[0, 1], [2, 3]]))
    np.testing.assert_array_equal(placed.layers, [2, 6])  # in proportion to 1 and 3
    # 5 slots of 2 s, of which the second stage's have 8e6 bits at 8 Gbit/s more; then 6 GB to the
    # other one and back in halves, at 40 Gbit/s.
    assert placed.seconds == pytest.approx(5 * (2 + 1e-3) + 6e9 * 8 / 40e9)
    even = replace(RULE, even=True).scored(machines, placed.machines)
    np.testing.assert_array_equal(even.layers, [4, 4])
    assert even.seconds > placed.seconds


def test_stages_stay_in_a_cluster_and_boundaries_cross():
    machines = Machines.of([(2, 200e9, 1e13), (2, 100e9, 1e13)], between_bps=10e9)
    table = RULE.place(machines).machines
    assert all(len(set(machines.cluster[row])) == 1 for row in table)


def test_pipelines_stay_in_a_cluster_where_boundaries_outweigh_gradients():
    machines = Machines.of([(2, 200e9, 1e13), (2, 100e9, 1e13)], between_bps=10e9)
    rule = replace(RULE, boundary_bytes=1e10, gradient_bytes=1e6)
    table = rule.place(machines).machines
    assert all(len(set(machines.cluster[column])) == 1 for column in table.T)


@for_each("seed", range(12))
def test_it_is_the_best_of_all_placements_on_clusters_of_any_sizes(seed):
    rng = np.random.default_rng(seed)
    sizes = [(2, 2), (3, 1), (2, 1, 1)][seed % 3]
    nics = [(n, float(rng.uniform(20, 200)) * 1e9, float(rng.choice([5e12, 1e13]))) for n in sizes]
    machines = Machines.of(nics, between_bps=float(rng.uniform(5, 40)) * 1e9)
    rule = replace(
        RULE,
        boundary_bytes=float(10 ** rng.uniform(5, 9.5)),
        gradient_bytes=float(10 ** rng.uniform(7, 10)),
        even=bool(rng.random() < 0.5),
    )
    best = min(placed.seconds for placed in every_placement(rule, machines))
    assert rule.place(machines).seconds == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize(
    ("stages", "sizes"), [(3, (2, 2, 2)), (2, (2, 2, 2)), (3, (3, 2, 1)), (2, (4, 2))]
)
def test_it_is_the_best_of_all_placements_of_six_machines(stages, sizes):
    speeds = [(200e9, 1e13), (100e9, 1e13), (25e9, 5e12)]
    nics = [(n, *speed) for n, speed in zip(sizes, speeds, strict=False)]
    machines = Machines.of(nics, between_bps=10e9)
    rule = replace(RULE, stages=stages, pipelines=6 // stages, num_layers=12)
    best = min(placed.seconds for placed in every_placement(rule, machines))
    assert rule.place(machines).seconds == pytest.approx(best, rel=1e-12)


def test_what_does_not_fit_is_refused():
    machines = Machines.of([(3, 1e9, 1e12)], between_bps=1e9)
    with pytest.raises(ConfigError, match="there are 3 machines, but 2 stages of 2"):
        RULE.place(machines)
    with pytest.raises(ConfigError, match="num_layers is 1"):
        replace(RULE, num_layers=1)
    with pytest.raises(ConfigError, match="flops has shape"):
        Machines(np.zeros(2, np.int64), np.ones(3), np.ones((2, 2)))
