"""Two levels: sites average among themselves between the outer steps of all, and when."""

from __future__ import annotations

import numpy as np
import pytest
from islands import ADAMW, LAYOUT, MODEL, PLAIN, SGD, crashes, driven, of, references, run
from stand_ins import Client, fleet_of

from fl.compression import Cast
from fl.errors import ConfigError
from fl.models import flops_per_example
from fl.simulation.kernel.links import Links, PeerLinks
from fl.simulation.kernel.trace import Event
from fl.strategies import DiLoCo, EagerUpdates

STEP_FLOPS = 32 * flops_per_example(MODEL(), (1, 8, 8)).training
D = LAYOUT.size
NEAR_S, FAR_S = 0.25, 2.0  # of an all-reduce of two in a site, and of a hop of four between sites


def two_sites(step_s=(1.0, 1.0), faults=None):
    """Workers 0 and 2 are in site 0, 1 and 3 in site 1."""
    none, free = np.zeros(4), np.full(4, np.inf)
    near, far = 2 * 8 * 4 * D / 2 / NEAR_S, 8 * 4 * D / 4 / FAR_S
    edges = PeerLinks(
        Links(free, free, none, none),
        np.array([0, 1, 0, 1]),
        np.array([[near, far], [far, near]]),
        np.zeros((2, 2)),
    )
    clients = [Client(flops=STEP_FLOPS / s) for s in (*step_s, *step_s)]
    return fleet_of(clients, edges=edges, faults=faults)


def test_sites_average_every_step_and_all_take_an_outer_step_every_fourth():
    strategy = driven(DiLoCo(inner_steps=4, optimizer=PLAIN), workers=4, local_every=1)
    got = run(strategy, 3, workers=4, fleet=two_sites())
    workers = references(4, SGD)
    rows = [workers[0].w]
    for _ in range(3):
        for worker in workers:
            worker.w = rows[-1]
        for _ in range(4):
            for worker in workers:
                worker.train(1)
            for site in (workers[0::2], workers[1::2]):
                mean = np.mean([worker.w for worker in site], axis=0)
                for worker in site:
                    worker.w = mean
        delta = rows[-1] - np.mean([worker.w for worker in workers], axis=0)
        rows.append(rows[-1] - 0.5 * delta)
    np.testing.assert_allclose(got.rows, rows, atol=3e-5)


def test_of_one_level_it_is_the_method_itself_to_the_bit():
    rule = DiLoCo(inner_steps=4)
    one = run(driven(rule, workers=4), 2, workers=4, rule=ADAMW, fleet=two_sites())
    strategy = driven(rule, workers=4, local_every=4)
    other = run(strategy, 2, workers=4, rule=ADAMW, fleet=two_sites())
    np.testing.assert_array_equal(one.rows, other.rows)
    assert one.times == other.times


def test_a_site_does_not_wait_for_another_between_the_steps_of_all():
    """Site 0 averages 1 s after its last one, site 1 1.5 s; then a ring of 6 hops between sites."""
    strategy = driven(DiLoCo(inner_steps=4), workers=4, local_every=1)
    got = run(strategy, 2, workers=4, fleet=two_sites((1.0, 1.5)), batch_size=32)
    phase = 4 * 1.5 + 3 * NEAR_S + 6 * FAR_S
    assert got.times == pytest.approx([0.0, phase, 2 * phase])
    ends = {c: [] for c in range(4)}
    for event in of(got.run.trace, Event.ALL_REDUCE):
        ends[event["client"]].append((event["time_s"], event["bytes"]))
    assert [t for t, _ in ends[2][:3]] == pytest.approx([1.25, 2.5, 3.75])
    assert [t for t, _ in ends[3][:3]] == pytest.approx([1.75, 3.5, 5.25])
    assert ends[0][0][1] == 4 * D  # half of the payload, twice
    assert ends[0][3] == (pytest.approx(phase), 6 * D)


@pytest.mark.slow
def test_a_worker_that_crashes_is_missed_in_its_site_and_enters_with_the_next_outer_step():
    strategy = driven(DiLoCo(inner_steps=2, optimizer=PLAIN), workers=4, local_every=1)
    fleet = two_sites(faults=crashes((0, 1)))  # after the first local average
    got = run(strategy, 3, workers=4, fleet=fleet)
    islands = [got.result.train_metrics_clientapp[v]["islands"] for v in range(4)]
    assert islands == [0, 3, 4, 4]
    a, b, c, d = references(4, SGD)
    start = a.w
    for worker in (a, b, c, d):
        worker.train(1)
    for one, other in ((a, c), (b, d)):
        one.w = other.w = (one.w + other.w) / 2
    for worker in (b, c, d):
        worker.train(1)
    expected = start - 0.5 * (start - np.mean([b.w, c.w, d.w], axis=0))
    np.testing.assert_allclose(got.rows[1], expected, atol=3e-5)


@pytest.mark.parametrize(
    ("of", "why"),
    [
        ({"local_every": 3}, "local_every is 3, and inner_steps 4: it must divide them"),
        ({"local_every": 0}, "local_every is 0"),
        ({"local_every": 2, "drop": 0.1}, "local_every is 2 and drop is 0.1"),
        ({"local_every": 2, "compressor": Cast("bf16")}, "local_every is 2 and compressor is Cast"),
    ],
)
def test_levels_that_cannot_be_are_refused(of, why):
    with pytest.raises(ConfigError, match=why):
        driven(DiLoCo(inner_steps=4), **of)
    with pytest.raises(ConfigError, match="local_every is 2 and rule is EagerUpdates"):
        driven(EagerUpdates(inner_steps=4), local_every=2)
