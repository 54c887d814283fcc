"""Buckets of gradients: which there are, and when each can be on its way."""

from __future__ import annotations

import pytest

from fl.collectives import Bucket, Buckets
from fl.errors import ConfigError

MIB = 2**18  # numbers of 4 bytes


def f_last(buckets, plan, seconds, end, took):
    """Returns when the last bucket is reduced: f_k = max(r_k, f_{k-1}) + c_k."""
    f, all_f = 0.0, []
    for bucket, c in zip(plan, seconds, strict=True):
        f = max(f, buckets.ready_s(bucket, [(end, took)])) + c
        all_f.append(f)
    return all_f


@pytest.mark.parametrize(
    ("mib", "c", "expected"),
    [
        (1, [15, 15, 15, 15], [25, 40, 55, 70]),
        (4, [60], [100]),
        (1, [5, 5, 5, 5], [15, 25, 35, 45]),
    ],
)
def test_four_layers_of_ten_milliseconds(mib, c, expected):
    # The backward pass ends at 40 ms, and is all there is of the step.
    buckets = Buckets(mib=mib, first_mib=None, backward=1.0)
    plan = buckets.of([MIB] * 4)
    assert f_last(buckets, plan, c, 40.0, 40.0) == pytest.approx(expected)


def test_the_last_tensors_come_first_and_a_bucket_closes_when_it_has_reached_its_size():
    sizes = [30 * MIB, MIB, 24 * MIB, MIB // 2, MIB // 2, 10]
    plan = Buckets().of(sizes)
    total = sum(sizes)
    assert [round(b.share * total) for b in plan] == [MIB + 10, 25 * MIB, 30 * MIB]
    assert [round(b.left * total) for b in plan] == [55 * MIB, 30 * MIB, 0]
    assert sum(b.share for b in plan) == pytest.approx(1.0)
    # Without a small first one, all close at 25 MiB or later.
    assert len(Buckets(first_mib=None).of(sizes)) == 2
    assert Buckets().of([5]) == [Bucket(1.0, 0.0)]
    assert Buckets().of([5, 0, 0]) == [Bucket(1.0, 0.0)]


def test_a_bucket_is_ready_when_the_last_worker_has_it():
    buckets = Buckets(backward=0.5)
    # Half of the pass is left: 0.25 of the step before its end.
    assert buckets.ready_s(Bucket(0.5, 0.5), [(10.0, 4.0), (9.5, 1.0)]) == max(10 - 1, 9.5 - 0.25)
    assert buckets.ready_s(Bucket(0.5, 0.0), [(10.0, 4.0), (12.0, 1.0)]) == 12.0


@pytest.mark.parametrize("bad", [{"mib": 0}, {"first_mib": -1}, {"backward": 1.5}])
def test_a_size_out_of_range_is_refused(bad):
    ((key, value),) = bad.items()
    with pytest.raises(ConfigError, match=f"{key} is {value}"):
        Buckets(**bad)
