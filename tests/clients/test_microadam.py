"""MicroAdam against torch's Adam, against a step-by-step NumPy derivation, and its memory."""

import math

import numpy as np
import pytest
import torch

from fl.clients import MicroAdam, Received


class Given:
    """A batch whose gradient is given, whatever the weights are."""

    examples = 1

    def __init__(self, g):
        self.g = g

    def grad(self, w):
        return self.g.to(w.dtype), torch.zeros((), dtype=w.dtype)


def gradients(steps, p, seed=0):
    """Gradients that bfloat16 holds exactly."""
    torch.manual_seed(seed)
    return torch.randn(steps, p).to(torch.bfloat16).to(torch.float64)


def run(rule, w, gs, tasks=1):
    memory, states = rule.first_memory(w, rule.scalars({})), []
    for task in np.array_split(np.arange(len(gs)), tasks):
        received = Received(w, {}, memory, rule.scalars({}))
        state = rule.init(received)
        for t, i in enumerate(task):
            w, state, _ = rule.step(w, state, received, Given(gs[i]), t)
            states.append(state)
        memory = rule.finish(w, state, received, len(task)).memory
    return w, states


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_with_everything_kept_it_is_torchs_adam(weight_decay):
    # Density 1 and a window as long as the run: no residual, no sum cut short.
    gs, w = gradients(8, 50), torch.randn(50, dtype=torch.float64)
    rule = MicroAdam(0.01, density=1.0, window=8, block=16, weight_decay=weight_decay)
    parameter = torch.nn.Parameter(w.clone())
    optimizer = torch.optim.AdamW([parameter], 0.01, weight_decay=weight_decay)
    for g in gs:
        parameter.grad = g.clone()
        optimizer.step()
    torch.testing.assert_close(run(rule, w, gs)[0], parameter.detach(), rtol=1e-9, atol=1e-11)


def bf16(x):
    return torch.tensor(x, dtype=torch.float64).to(torch.bfloat16).double().numpy()


def derived(w, gs, lr, b1, b2, eps, m, density, block, q):
    """The algorithm box of arXiv:2405.15593, section 3, entry by entry."""
    p = len(w)
    blocks = -(-p // block)
    length = -(-p // blocks)
    k = math.ceil(density * length)
    slots, residual = {}, np.zeros(p)
    for t, g in enumerate(gs, start=1):
        a = g + residual
        sent = {}
        for start in range(0, p, length):
            part = np.abs(a[start : start + length])
            for i in np.argsort(-part, kind="stable")[:k]:
                sent[start + i] = bf16(a[start + i])
        slots[(t - 1) % m] = (t, sent)
        for i, value in sent.items():
            a[i] -= value
        residual = np.zeros(p)
        for start in range(0, p, q):
            bucket = a[start : start + q]
            full = np.concatenate([bucket, np.zeros(q - len(bucket))])
            low, high = bf16(full.min()), bf16(full.max())
            u = (high - low) / 15 or 1.0
            code = np.clip(np.floor((bucket - low) / u + 0.5), 0, 15)
            residual[start : start + q] = low + code * ((high - low) / 15)
        mhat, vhat = np.zeros(p), np.zeros(p)
        for written, entries in slots.values():
            for i, value in entries.items():
                mhat[i] += b1 ** (t - written) * value
                vhat[i] += b2 ** (t - written) * value**2
        mhat *= (1 - b1) / (1 - b1**t)
        vhat *= (1 - b2) / (1 - b2**t)
        w = w - lr * mhat / (np.sqrt(vhat) + eps)
    return w, residual


@pytest.mark.parametrize(("density", "block", "q", "m"), [(0.1, 40, 8, 3), (0.3, 13, 16, 5)])
def test_it_follows_the_paper_step_by_step(density, block, q, m):
    gs, w = gradients(12, 101), torch.randn(101, dtype=torch.float64)
    rule = MicroAdam(0.01, 0.9, 0.99, window=m, density=density, block=block, bucket=q)
    got, states = run(rule, w, gs)
    expected, residual = derived(w.numpy(), gs.numpy(), 0.01, 0.9, 0.99, 1e-8, m, density, block, q)
    np.testing.assert_allclose(rule.residual(states[-1], w).numpy(), residual, atol=1e-12)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_nothing_is_lost_but_the_rounding_of_the_residual():
    # a = sent + D(e) + rounding, with |rounding| <= half a level, and what bfloat16 costs a range.
    p = 3000
    gs, w = gradients(6, p), torch.zeros(p, dtype=torch.float64)
    rule = MicroAdam(0.01, density=0.05, window=2, block=500, bucket=64)
    _, states = run(rule, w, gs)
    before = torch.zeros(p, dtype=torch.float64)
    for t, (g, state) in enumerate(zip(gs, states, strict=True)):
        a = g + before
        after = rule.residual(state, w)
        starts = torch.arange(6)[:, None] * 500
        places = (state.indices[t % 2].long() + starts).reshape(-1)
        sent = torch.zeros(p, dtype=torch.float64)
        sent[places] = state.values[t % 2].double().reshape(-1)
        assert len(set(places.tolist())) == 6 * 25
        width = ((state.high - state.low).double() / 15).repeat_interleave(64)[:p]
        slack = torch.maximum(state.high.abs(), state.low.abs()).double().repeat_interleave(64)[:p]
        assert ((a - sent - after).abs() <= width / 2 + slack / 256).all()
        unsent = torch.ones(p, dtype=bool)
        unsent[places] = False
        largest = a.abs().view(6, 500)
        for block in range(6):
            chosen = ~unsent.view(6, 500)[block]
            assert largest[block][chosen].min() >= largest[block][~chosen].max()
        before = after


def test_entries_outside_the_window_are_not_moved():
    p = 200
    g = torch.zeros(p, dtype=torch.float64)
    g[:3] = torch.tensor([3.0, -2.0, 1.0])
    w = torch.ones(p, dtype=torch.float64)
    moved, _ = run(MicroAdam(0.1, density=0.01, block=200), w, [g, g])
    assert moved[0] < 1
    assert (moved[3:] == 1).all()


def test_after_the_window_the_second_moment_is_biased_low_by_a_known_factor():
    # Constant gradients of 1, all kept: vhat = (1 - b2^m) / (1 - b2^t), mhat likewise.
    steps, m = 400, 10
    rule = MicroAdam(1.0, density=1.0, window=m, eps=0.0)
    w = torch.zeros(4, dtype=torch.float64)
    gs = [torch.ones(4, dtype=torch.float64)] * steps
    before, _ = run(rule, w, gs[:-1])
    after, _ = run(rule, w, gs)
    mhat = (1 - 0.9**m) / (1 - 0.9**steps)
    vhat = (1 - 0.999**m) / (1 - 0.999**steps)
    torch.testing.assert_close(before - after, torch.full_like(w, mhat / math.sqrt(vhat)))


def test_the_state_takes_less_than_a_byte_a_parameter():
    p = 100_000
    state = MicroAdam().init(Received(torch.zeros(p), {}, {}, {}))
    held = sum(tensor.nbytes for tensor in state)
    k = math.ceil(0.01 * 4000)
    assert held == 4 * 10 * 25 * k + math.ceil(p / 64) * (32 + 4)
    assert held < 0.97 * p
    assert MicroAdam().vectors == 1


def test_kept_state_goes_on_where_it_stopped():
    gs, w = gradients(9, 60), torch.randn(60, dtype=torch.float64)
    kept = MicroAdam(0.01, density=0.1, window=4, bucket=8, keep_state=True)
    whole, _ = run(kept, w, gs)
    parts, _ = run(kept, w, gs, tasks=3)
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)
    fresh, _ = run(MicroAdam(0.01, density=0.1, window=4, bucket=8), w, gs, tasks=3)
    assert not torch.allclose(fresh, whole, atol=1e-4)


def test_a_bucket_of_equal_entries_is_kept_exactly():
    rule = MicroAdam(density=0.01, block=64, bucket=64)
    g = torch.full((64,), 0.5, dtype=torch.float64)
    _, states = run(rule, torch.zeros(64, dtype=torch.float64), [g])
    residual = rule.residual(states[0], g)
    assert residual[1:].tolist() == pytest.approx([0.5] * 63, abs=0.5 / 15)
    zero = torch.zeros(64, dtype=torch.float64)
    _, states = run(rule, zero, [zero])
    assert (rule.residual(states[0], zero) == 0).all(), "no drift where there is no gradient"


def test_the_residual_brings_every_entry_its_turn():
    # One of two entries is sent; without the residual the smaller would never move.
    w, g = torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 0.3], dtype=torch.float64)
    rule = MicroAdam(0.01, density=0.5, bucket=2, window=10)
    _, states = run(rule, w, [g] * 20)
    sent = [int(state.indices[t % 10, 0, 0]) for t, state in enumerate(states)]
    assert sent[:3] == [0, 0, 0]
    # In the long run an entry is sent as often as its share of the gradient: 0.3 of 1.3.
    assert sent.count(1) == pytest.approx(20 * 0.3 / 1.3, abs=1.5)


@pytest.mark.parametrize(
    "wrong",
    [{"density": 0}, {"density": 1.1}, {"window": 0}, {"block": 40000}, {"bucket": 7}, {"eps": -1}],
)
def test_a_parameter_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MicroAdam(**wrong)
