"""Schemes of coded work: every job is decoded in time, whatever stragglers a scheme admits."""

import numpy as np
import pytest

from fl.errors import ConfigError
from fl.strategies.gradient_coding import GradientCoding
from fl.strategies.sequential_gradient_coding import MSGC, SRSGC

JOBS = 9


def parameters(kind, n, ranges):
    """Returns all schemes of a kind with these parameters that there can be."""
    for B, W, lam in ranges:
        yield kind(n, code="cyclic", B=B, W=W, lam=lam)


SCHEMES = [
    *(GradientCoding(6, s=s) for s in (0, 1, 2, 5)),
    *(GradientCoding(5, code="cyclic", s=s) for s in (1, 3)),
    *parameters(SRSGC, 5, [(1, 2, 0), (1, 2, 3), (1, 3, 2), (2, 3, 4), (2, 5, 3), (3, 4, 2)]),
    SRSGC(6, B=1, W=2, lam=3),
    *parameters(MSGC, 5, [(1, 2, 0), (1, 2, 2), (1, 2, 5), (1, 3, 4), (2, 3, 2), (3, 5, 1)]),
    MSGC(6, B=2, W=4, lam=2),
    MSGC(4, B=2, W=3, lam=4),
]


def names(scheme):
    """Returns a short name of a test."""
    values = (f"{k}={v}" for k, v in vars(scheme).items() if k in ("n", "s", "B", "W", "lam"))
    return "-".join([type(scheme).__name__, *values, scheme.code[:6]])


def sent(scheme, gradients):
    """Returns what worker i sends for part p, of gradients of the chunks, shape (n, parts)."""
    parts = range(scheme.parts)
    return np.stack(
        [(scheme.coefficients(p) * gradients[scheme.chunks(p)]).sum(axis=1) for p in parts], axis=1
    )


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
def test_every_job_is_decoded_in_time_whatever_stragglers_are_admitted(scheme):
    """Rounds lose as many results as the scheme admits, drawn in many ways."""
    lost = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        known, decoded = scheme.init(), set()
        gradients = rng.standard_normal((JOBS, scheme.num_chunks))
        for r in range(JOBS + scheme.delay):
            work = scheme.assign(known, JOBS)
            missing = np.zeros(scheme.n, bool)
            for i in rng.permutation(np.flatnonzero(work.busy)):
                worse = missing | (np.arange(scheme.n) == i)
                if rng.random() < 0.8 and scheme.admits(known, work, worse):
                    missing = worse
            lost += missing.sum()
            known = scheme.after(known, work, missing)
            for job in set(known.received) - decoded:
                if scheme.decodable(known, job):
                    a = scheme.decode(known, job)
                    assert not a[known.received[job] < 0].any()
                    total = (a * sent(scheme, gradients[job])).sum()
                    assert np.isclose(total, gradients[job].sum(), rtol=0, atol=1e-8)
                    decoded.add(job)
            if r >= scheme.delay:
                assert r - scheme.delay in decoded
        assert decoded == set(range(JOBS))
    assert lost or getattr(scheme, "lam", getattr(scheme, "s", 0)) == 0


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
def test_a_minitask_is_of_a_part_that_its_worker_has_not_sent_of_that_job(scheme):
    known = scheme.init()
    for _ in range(JOBS + scheme.delay):
        work = scheme.assign(known, JOBS)
        for i, m in np.argwhere(work.jobs >= 0).tolist():
            job, part = int(work.jobs[i, m]), int(work.parts[i, m])
            assert job in range(JOBS)
            assert known.received[job][i, part] < 0 if job in known.received else True
        assert ((work.jobs < 0) == (work.parts < 0)).all()
        known = scheme.after(known, work, np.zeros(scheme.n, bool))


@pytest.mark.parametrize("scheme", SCHEMES, ids=names)
def test_a_worker_computes_its_load_in_the_middle_of_a_run(scheme):
    """The share of the data in a round without stragglers, from where the chunks lie."""
    known = scheme.init()
    for _ in range(JOBS):
        work = scheme.assign(known, JOBS)
        last = (work.jobs >= 0).sum(axis=1) * scheme.pieces / scheme.num_chunks
        known = scheme.after(known, work, np.zeros(scheme.n, bool))
    if isinstance(scheme, MSGC) and scheme.lam == scheme.n:
        assert (last == (scheme.W - 1) / (scheme.n * (scheme.W - 1))).all()  # nothing to repeat
    else:
        assert last == pytest.approx(np.full(scheme.n, scheme.load))
    held = np.concatenate([scheme.chunks(p).ravel() for p in range(scheme.parts)])
    assert set(held.tolist()) == set(range(scheme.num_chunks))


def test_loads_are_those_of_the_published_runs():
    """n = 256; the table of the authors' notebook."""
    multiplexed = MSGC(256, code="cyclic", B=1, W=2, lam=27)
    assert (multiplexed.load, multiplexed.delay) == (pytest.approx(0.0075431, abs=5e-8), 1)
    repeating = SRSGC(256, code="cyclic", B=2, W=3, lam=23)
    assert (repeating.tolerated, repeating.delay) == (12, 2)
    assert repeating.load == pytest.approx(0.0507813, abs=6e-8)
    assert GradientCoding(256, s=15).load == 0.0625
    assert GradientCoding(256, s=0).load == pytest.approx(0.0039063, abs=6e-8)
    # Without redundancy the load is that of uncoded work.
    assert MSGC(8, B=2, W=4, lam=0).load == pytest.approx(1 / 8)


def test_m_sgc_repeats_a_lost_part_of_d1_before_the_coded_one():
    """(B, W) = (1, 2): minitask 0 is D1 of job r, minitask 1 is D2 of job r - 1, or its D1."""
    scheme = MSGC(4, B=1, W=2, lam=1)
    known = scheme.init()
    first = scheme.assign(known, 3)
    assert first.jobs.tolist() == [[0, -1]] * 4
    known = scheme.after(known, first, np.array([False, True, False, False]))
    second = scheme.assign(known, 3)
    assert second.jobs.tolist() == [[1, 0]] * 4
    assert second.parts.tolist() == [[0, 1], [0, 0], [0, 1], [0, 1]]


def test_sr_sgc_has_those_with_the_lowest_numbers_repeat_and_only_as_many_as_are_needed():
    scheme = SRSGC(6, code="cyclic", B=1, W=2, lam=3)  # s = 2
    known = scheme.init()
    work = scheme.assign(known, 5)
    missing = np.array([False, True, False, True, True, False])
    assert scheme.admits(known, work, missing)
    known = scheme.after(known, work, missing)
    assert not scheme.decodable(known, 0)
    assert scheme.assign(known, 5).jobs[:, 0].tolist() == [1, 0, 1, 1, 1, 1]
    # A straggler of the last round that straggles again: no burst of one round.
    assert not scheme.admits(known, scheme.assign(known, 5), missing)


def test_sr_sgc_is_gradient_coding_while_no_more_than_s_are_missing():
    repeating = SRSGC(6, code="cyclic", B=1, W=2, lam=3)
    plain = GradientCoding(6, code="cyclic", s=2)
    rng = np.random.default_rng(0)
    one, other = repeating.init(), plain.init()
    for _ in range(JOBS):
        work = repeating.assign(one, JOBS)
        assert np.array_equal(work.jobs, plain.assign(other, JOBS).jobs)
        missing = np.isin(np.arange(6), rng.choice(6, 2, replace=False))
        assert repeating.admits(one, work, missing)
        assert plain.admits(other, work, missing)
        one, other = repeating.after(one, work, missing), plain.after(other, work, missing)
        job = one.round - 1
        assert np.array_equal(repeating.decode(one, job), plain.decode(other, job))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: GradientCoding(4, s=4), "s is 4; it must be below"),
        (lambda: GradientCoding(4, code="mds"), "code is 'mds'; it must be one of fractional"),
        (lambda: SRSGC(4, B=2, W=4), "B is 2; it must divide W - 1, which is 3"),
        (lambda: SRSGC(4, B=2, W=2), "W is 2; it must be above B, 2"),
        (lambda: SRSGC(4, B=1, W=2, lam=5), "lam is 5; it must be at most .* 4"),
        (lambda: MSGC(4, B=0, W=2), "B is 0"),
        (lambda: MSGC(4, lam=-1), "lam is -1"),
        (lambda: MSGC(4, lam=2), "groups of 3 do not make up 4 workers"),
    ],
)
def test_parameters_out_of_their_range_are_refused(make, why):
    with pytest.raises(ConfigError, match=why):
        make()
