"""Replays of coded work: when rounds end, and the published order on measured times."""

import os
from pathlib import Path

import numpy as np
import pytest

from fl.errors import ConfigError
from fl.simulation.world.measurements import read_worker_seconds
from fl.strategies.coded_times import fastest, replayed
from fl.strategies.gradient_coding import GradientCoding
from fl.strategies.sequential_gradient_coding import MSGC, SRSGC

TRACE = Path(os.environ.get("FL_DATA_DIR", ".")) / "traces" / "lambda_worker_seconds.npz"


def one_round(seconds, scheme, **how):
    """Returns seconds of a round, and whether it was waited out."""
    times = replayed(scheme, np.array([seconds]), 1, **how)
    return times.total_s, bool(times.waited_out[0])


def test_a_round_ends_with_its_last_worker_or_when_stragglers_are_told_from_others():
    scheme = GradientCoding(4, s=1)
    assert one_round([1.0, 1.2, 1.9, 1.5], scheme) == (1.9, False)  # nobody is a straggler
    assert one_round([1.0, 1.2, 9.0, 1.5], scheme) == (2.0, False)  # (1 + mu) times the first
    assert one_round([1.0, 1.2, 9.0, 1.5], scheme, mu=0.5) == (1.5, False)


def test_a_round_with_too_many_stragglers_is_waited_out():
    scheme = GradientCoding(4, code="cyclic", s=1)
    seconds = [1.0, 5.0, 9.0, 1.5]
    assert one_round(seconds, scheme) == (9.0, True)
    # The third of four is enough.
    assert one_round(seconds, scheme, wait_out="enough") == (5.0, True)
    # With mu = 0 that is the rule of the first n - s workers.
    assert one_round(seconds, scheme, mu=0.0, wait_out="enough") == (5.0, True)
    assert one_round([4.0, 1.0, 2.0, 3.0], scheme, mu=0.0, wait_out="enough") == (3.0, True)
    assert one_round([3.0, 3.0, 3.0, 3.0], scheme, mu=0.0, wait_out="enough") == (3.0, False)


def test_rounds_after_the_last_job_wait_only_for_those_that_still_work():
    scheme = SRSGC(4, code="cyclic", B=1, W=2, lam=2)  # s = 1
    # Two straggle in round 0, so that one repeats in round 1, the last: the others are idle.
    seconds = np.array([[9.0, 9.0, 1.0, 1.0], [2.5, 7.0, 7.0, 7.0]])
    times = replayed(scheme, seconds, 1)
    assert times.round_s.tolist() == [2.0, 2.5]
    calm = replayed(scheme, np.ones((2, 4)), 1)
    assert calm.round_s.tolist() == [1.0, 0.0]  # nothing is left to do


def test_schemes_on_the_stored_profile_take_what_the_authors_code_takes():
    """The profile at load 0 plus 1.0989 s per unit of load, 26 jobs, mu = 1.

    Expected: run with the classes of mamaj/Sequential-Gradient-Coding-2 on the same profile, whose
    GC of s = 15 accepts fewer than 15 stragglers.
    """
    if not TRACE.is_file():
        pytest.skip("FL_DATA_DIR has no traces/lambda_worker_seconds.npz")
    profile = read_worker_seconds(TRACE, 0.0).astype(np.float64)
    ours = {"n": 256, "code": "cyclic"}
    expected = [
        (GradientCoding(256, s=0), 1 / 256, 40.87, 26),
        (GradientCoding(256, code="cyclic", s=14), 16 / 256, 33.81, 2),
        (SRSGC(**ours, B=1, W=2, lam=27), 15 / 256, 33.50, 2),
        (SRSGC(**ours, B=2, W=3, lam=23), 13 / 256, 34.13, 4),
        (MSGC(**ours, B=1, W=2, lam=27), 56 / 7424, 34.72, 10),
    ]
    for scheme, load, seconds, waited in expected:
        times = replayed(scheme, profile + load * 1.0989, 26)
        assert round(times.total_s, 2) == seconds
        assert times.waited_out.sum() == waited


def test_the_fastest_parameters_are_those_whose_load_pays():
    """One worker straggles for 10 s in every round, another one in each: s = 1 waits for nobody."""
    seconds = np.ones((6, 6))
    seconds[np.arange(6), np.arange(6)] = 10.0
    candidates = [GradientCoding(6, s=s) for s in (0, 1, 2, 5)]
    best = fastest(candidates, seconds, 6, seconds_per_load=6.0)
    # Deadlines are at 2 (1 + 6 L): s = 1 has L = 1 / 3, s = 2 1 / 2, and s = 0 waits for 11 s.
    assert best.scheme == candidates[1]
    assert best.total_s == pytest.approx(6 * 2 * 3.0)
    cheap = fastest(candidates, np.ones((6, 6)), 6, seconds_per_load=6.0)
    assert cheap.scheme == candidates[0]


def test_too_short_profiles_are_refused():
    with pytest.raises(ConfigError, match=r"shape \(3, 4\); 3 jobs of this scheme take at least 4"):
        replayed(MSGC(4, lam=1), np.ones((3, 4)), 3)
    with pytest.raises(ConfigError, match="profile has 3 rounds, which are too few for 3 jobs"):
        fastest([MSGC(4, lam=1)], np.ones((3, 4)), 3, seconds_per_load=1.0)
