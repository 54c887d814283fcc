"""Muon: its orthogonal steps against a singular value decomposition, and what AdamW trains."""

from functools import partial

import pytest
import torch
from torch import nn

from fl.clients import Corrected, Muon, Proximal, Received, TrainingApp
from fl.clients.muon import Stretch, orthogonalised, parts_of
from fl.data import federate, load_digits, partition
from fl.errors import ConfigError
from fl.models import MLP, CharGPT, LeafCNN, LogisticRegression, build
from fl.vectors.layout import Layout

STEPS = (  # of microsoft/dion, which facebookresearch/MuLoCo has too
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def random(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (5, 9), (9, 5), (1, 4), (4, 1)])
def test_singular_values_go_through_the_polynomials_and_singular_vectors_stay(rows, columns):
    m = random(rows, columns)
    u, s, v = torch.linalg.svd(m, full_matrices=False)
    s = s / (torch.linalg.norm(m) + 1e-7)
    for a, b, c in STEPS:
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(orthogonalised(m), u @ torch.diag(s) @ v)
    assert ((s > 0.7) & (s < 1.2)).all()


def test_the_scale_does_not_matter_an_orthogonal_matrix_stays_and_zero_is_no_trouble():
    m = random(5, 7)
    torch.testing.assert_close(orthogonalised(m), orthogonalised(1e3 * m), rtol=1e-5, atol=1e-6)
    q = torch.linalg.qr(random(6, 6)).Q
    got = orthogonalised(q)
    torch.testing.assert_close(got / (got * q).sum() * (q * q).sum(), q)
    assert (orthogonalised(torch.zeros(3, 4)) == 0).all()


class Given:
    """A batch whose gradient is given, whatever the weights are."""

    def __init__(self, g):
        self.g = g

    def grad(self, w):
        return self.g, torch.zeros((), dtype=w.dtype)


def test_matrices_step_by_muon_and_the_rest_by_torchs_adamw():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(3, 2)).double()
    layout = Layout.of(model.float())
    rule = Muon(0.02, mu=0.8, weight_decay=0.1, beta2=0.95, adamw_factor=0.5, clip_norm=None)
    rule = rule.for_model(model, layout)
    assert rule.parts == (Stretch(24, (6, 4)), Stretch(6), Stretch(18, (3, 6)), Stretch(3 + 6 + 2))
    w = random(1, 59).ravel()
    gs = [random(1, 59, seed).ravel() for seed in range(1, 6)]
    received = Received(w, {}, {}, rule.scalars({}))
    state, got = rule.init(received), w
    for t, g in enumerate(gs):
        got, state, _ = rule.step(got, state, received, Given(g), t)
    assert state.m.shape == (59,)
    assert state.v.shape == (17,)

    rest = torch.cat([torch.arange(24, 30), torch.arange(48, 59)])
    other = nn.Parameter(w[rest].clone())
    adamw = torch.optim.AdamW([other], 0.01, (0.9, 0.95), weight_decay=0.1)
    for g in gs:
        other.grad = g[rest]
        adamw.step()
    torch.testing.assert_close(got[rest], other.detach())
    for at, (out, into) in ((slice(0, 24), (6, 4)), (slice(30, 48), (3, 6))):
        matrix, momentum = w[at].view(out, into), torch.zeros(out, into).double()
        for g in gs:
            momentum = 0.8 * momentum + g[at].view(out, into)
            step = orthogonalised(momentum) * (out / into) ** 0.5
            matrix = (1 - 0.02 * 0.1) * matrix - 0.02 * step
        torch.testing.assert_close(got[at], matrix.ravel())


def names(model):
    """Returns the names of a model's matrices."""
    layout = Layout.of(model)
    sizes = {part.shape for part in parts_of(model, layout) if part.shape}
    return {e.name for e in layout.trainable if (e.shape[0], e.size // e.shape[0]) in sizes}


def test_embeddings_and_the_last_layer_are_no_matrices_and_kernels_are():
    gpt = partial(CharGPT, width=8, layers=2, heads=2)
    within = {f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("asked", "attended")}
    within |= {f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("up", "down")}
    assert names(build(gpt, (16,), 11, 0)) == within
    cnn = build(LeafCNN, (1, 28, 28), 10, 0)
    first, *_, last = (e for e in Layout.of(cnn).trainable if len(e.shape) > 1)
    assert Stretch(first.size, (first.shape[0], 25)) in parts_of(cnn, Layout.of(cnn))
    assert last.name not in names(cnn)
    linear = build(LogisticRegression, (1, 8, 8), 10, 0)  # whose only matrix is its last
    assert parts_of(linear, Layout.of(linear)) == (Stretch(640, (10, 64)), Stretch(10))
    norm = nn.LayerNorm(3)
    with pytest.raises(ConfigError, match="LayerNorm, which has no matrix"):
        parts_of(norm, Layout.of(norm))


def test_an_app_tells_its_rule_what_the_matrices_are_also_of_one_that_is_corrected():
    data = federate(load_digits, partial(partition.iid, num_partitions=2, seed=0))
    model = partial(build, partial(MLP, hidden=(6,)), (1, 8, 8), 10, 0)
    for rule in (Muon(), Corrected(Muon(), Proximal(0.1))):
        app = TrainingApp(model, data, rule)
        fitted = app.rule if isinstance(rule, Muon) else app.rule.optimizer
        assert fitted.parts == (Stretch(384, (6, 64)), Stretch(6 + 60 + 10))


@pytest.mark.parametrize(("key", "value"), [("mu", 1.0), ("adamw_factor", 0.0), ("beta2", 1.0)])
def test_hyperparameters_out_of_range_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"{key} is {value}"):
        Muon(**{key: value})
