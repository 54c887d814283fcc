"""A micro-batch's way through the stages: failures neither lose nor repeat it."""

from __future__ import annotations

import numpy as np

from fl.stages import MicroBatch, Pass


def test_nothing_fails_and_it_goes_forward_and_back():
    progress, way = MicroBatch.begin(3), []
    while (work := progress.next()) is not None:
        way.append((work.stage, work.backward))
        progress = progress.done(work, peer=10 * work.stage + work.backward)
    assert way == [(0, False), (1, False), (2, False), (2, True), (1, True), (0, True)]
    assert progress.complete


def test_a_backward_pass_needs_its_input_and_the_gradient_of_the_stage_after():
    progress = MicroBatch((1, 2, 3), (None, None, 4), loss=True)
    assert progress.next() == Pass(1, True, (1, 4))
    assert MicroBatch((1, 2, 3), (None, 5, 4), loss=True).next() == Pass(0, True, (5,))


def test_lost_activations_are_made_again_from_the_last_that_are_there():
    progress = MicroBatch((1, 2, 3, 4), (None, None, None, None), loss=True)
    assert progress.without(3).next() == Pass(2, False, (2,))
    assert progress.without(2).without(3).next() == Pass(1, False, (1,))
    assert progress.without(4).next() == Pass(3, True, (3,))  # the loss is known


def test_a_lost_gradient_is_made_again_alone():
    progress = MicroBatch((1, 2, 3), (7, 8, 9), loss=True)
    assert progress.without(8).next() == Pass(1, True, (1, 9))
    assert progress.without(5) is progress


def test_ten_thousand_failures_lose_no_micro_batch_and_count_none_twice():
    """What peers have added up is kept here apart, and forgotten with the peer."""
    rng = np.random.default_rng(0)
    num_stages, num_peers, batch = 4, 12, 8
    failures = steps = 0
    while failures < 10_000:
        steps += 1
        progress = [MicroBatch.begin(num_stages) for _ in range(batch)]
        summed = {p: [[] for _ in range(num_stages)] for p in range(num_peers)}
        kept = {p: set() for p in range(num_peers)}  # what it could send
        while open_ := [m for m in range(batch) if not progress[m].complete]:
            m = int(rng.choice(open_))
            work = progress[m].next()
            peer = int(rng.integers(num_peers // num_stages)) * num_stages + work.stage
            wanted = {work.stage - 1: "a"} if work.stage else {}
            if work.backward and work.stage < num_stages - 1:
                wanted[work.stage + 1] = "g"
            sent = {(stage, what, m) for stage, what in wanted.items()}
            assert sent <= set().union(*(kept[p] for p in work.sources), set())
            if rng.random() < 0.25:
                lost = int(rng.integers(num_peers))
                failures += 1
                progress = [each.without(lost) for each in progress]
                summed[lost] = [[] for _ in range(num_stages)]
                kept[lost] = set()
                continue
            progress[m] = progress[m].done(work, peer)
            kept[peer].add((work.stage, "g" if work.backward else "a", m))
            if work.backward:
                summed[peer][work.stage].append(m)
        for stage in range(num_stages):
            counted = sorted(m for own in summed.values() for m in own[stage])
            assert counted == list(range(batch))
    assert steps > 10
