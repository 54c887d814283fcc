"""Adapters against the algebra that they stand for."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fl.errors import ConfigError
from fl.models import MLP, CharGPT, LoRA, PaCA, build, merged
from fl.models.adapters import LowRank, PartialColumns

ADAPTERS = [LoRA(3, alpha=6.0), LoRA(3, alpha=6.0, freeze_A=True), PaCA(3, alpha=6.0)]
N, M = 5, 4


def layer_of(adapter, seed=0):
    """Returns an adapted linear layer, n = 5 inputs and m = 4 outputs."""
    torch.manual_seed(seed)
    return adapter(nn.Sequential(nn.Linear(N, M)))[0]


def trained(module):
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def randomly_moved(module, seed=1):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in trained(module).values():
            parameter.add_(torch.randn_like(parameter))
    return module


def step(layer, lr=0.1):
    """Takes a step of SGD and returns G = dL/dW at its beginning, shape (m, n)."""
    torch.manual_seed(2)
    x, y = torch.randn(7, N), torch.randn(7, M)
    out = layer(x)
    out.retain_grad()
    (0.5 * (out - y) ** 2).sum().backward()
    G = out.grad.T @ x
    with torch.no_grad():
        for parameter in trained(layer).values():
            parameter -= lr * parameter.grad
            parameter.grad = None
    return G


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_begins_as_the_model_that_it_adapts(adapter):
    plain = build(MLP, (6,), 3, seed=0)
    adapted = build(MLP, (6,), 3, 0, adapter)
    x = torch.randn(4, 6)
    torch.testing.assert_close(adapted(x), plain(x), rtol=0, atol=0)
    state = adapted.state_dict()
    for name, value in plain.state_dict().items():  # under their own names
        torch.testing.assert_close(state[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("adapter", "numbers"), [(ADAPTERS[0], 3 * (N + M)), (ADAPTERS[1], 3 * M), (ADAPTERS[2], 3 * M)]
)
def test_so_many_numbers_are_trained(adapter, numbers):
    assert sum(p.numel() for p in trained(layer_of(adapter)).values()) == numbers


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_merged_model_is_plain_and_computes_the_same(adapter):
    torch.manual_seed(0)
    model = randomly_moved(adapter(MLP((6,), 3, hidden=(5,))))
    plain, x = merged(model), torch.randn(8, 6)
    assert {type(m) for m in plain.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    assert plain.state_dict().keys() == MLP((6,), 3, hidden=(5,)).state_dict().keys()
    torch.testing.assert_close(plain(x), model(x), rtol=1e-5, atol=1e-5)


def test_the_first_step_of_lora_leaves_A_and_moves_B_along_the_gradient():
    """T1: dA = s B^T G = 0, and B = -lr s G A^T."""
    layer = layer_of(LoRA(3, alpha=6.0))
    A = layer.A.detach().clone()
    G = step(layer, lr=0.1)
    torch.testing.assert_close(layer.A.detach(), A, rtol=0, atol=0)
    torch.testing.assert_close(layer.B.detach(), -0.1 * 2.0 * G @ A.T)


def test_A_begins_uniform_within_one_over_the_root_of_n():
    torch.manual_seed(0)
    A = LowRank(nn.Linear(400, 2), 100, 1.0, freeze_A=False).A
    assert A.abs().max() <= 1 / math.sqrt(400)
    assert A.square().sum().item() == pytest.approx(100 / 3, rel=0.05)  # E|A|^2 = r / 3


def products(layers):
    """Returns the mean of the clients' changes of W, and that of their averaged factors."""
    mean = copy.deepcopy(layers[0])
    with torch.no_grad():
        for name, parameter in trained(mean).items():
            parameter.copy_(torch.stack([trained(one)[name] for one in layers]).mean(0))
    changes = torch.stack([one.merged() - one.weight for one in layers])
    return changes.detach().mean(0), (mean.merged() - mean.weight).detach()


def test_what_averaged_factors_miss_is_their_covariance():
    """T2: mean(B_i A_i) - mean B mean A = mean((B_i - mean B)(A_i - mean A))."""
    layers = [randomly_moved(layer_of(LoRA(3, alpha=6.0)), seed) for seed in range(4)]
    exact, averaged = products(layers)
    A, B = (torch.stack([getattr(one, x).detach() for one in layers]) for x in "AB")
    missed = ((B - B.mean(0)) @ (A - A.mean(0))).mean(0)
    torch.testing.assert_close(exact - averaged, 2.0 * missed, rtol=1e-4, atol=1e-5)
    assert missed.norm() > 0.1


@pytest.mark.parametrize("adapter", ADAPTERS[1:])
def test_averaging_is_exact_where_A_is_common(adapter):
    layers = [randomly_moved(layer_of(adapter), seed) for seed in range(4)]
    exact, averaged = products(layers)
    torch.testing.assert_close(exact, averaged, rtol=1e-5, atol=1e-6)


def test_averaged_factors_depend_on_the_gauge_and_products_do_not():
    """T3: (B R, A) and R^-1 in A's place is the same update of one client."""
    layers = [randomly_moved(layer_of(LoRA(3)), seed) for seed in range(2)]
    before = products(layers)
    R = torch.linalg.qr(torch.randn(3, 3)).Q
    with torch.no_grad():
        layers[0].B.copy_(layers[0].B @ R)
        layers[0].A.copy_(R.T @ layers[0].A)
    after = products(layers)
    torch.testing.assert_close(after[0], before[0], rtol=1e-4, atol=1e-5)
    assert (after[1] - before[1]).norm() > 0.1


def test_paca_is_ffa_lora_whose_A_selects_columns():
    paca = layer_of(PaCA(3, alpha=6.0))
    ffa = layer_of(LoRA(3, alpha=6.0, freeze_A=True))
    assert (paca.weight == ffa.weight).all()
    ffa.A.data = nn.functional.one_hot(paca.columns, N).float()
    for _ in range(3):
        step(paca), step(ffa)
    torch.testing.assert_close(paca.D, ffa.B)
    others = [i for i in range(N) if i not in paca.columns.tolist()]
    torch.testing.assert_close(paca.merged()[:, others], paca.weight[:, others], rtol=0, atol=0)
    assert len(others) == 2


def test_paca_of_all_columns_trains_the_layer_as_if_nothing_were_frozen():
    paca, plain = layer_of(PaCA(N, alpha=float(N))), nn.Linear(N, M)
    plain.load_state_dict({name: paca.state_dict()[name] for name in ("weight", "bias")})
    plain.bias.requires_grad_(False)
    for _ in range(5):
        step(paca, 0.01), step(plain, 0.01)
    torch.testing.assert_close(paca.merged(), plain.weight)
    assert (plain.weight - paca.weight).norm() > 0.1


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_equal_seeds_make_equal_adapters_and_the_base_of_no_adapter(adapter):
    one, same, other = (build(MLP, (6,), 3, seed, adapter) for seed in (0, 0, 1))
    for a, b, c in zip(*(m.parameters() for m in (one, same, other)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert a.numel() == c.numel()
    if isinstance(adapter, PaCA):
        assert (one.layers[0].columns == same.layers[0].columns).all()
        assert "layers.0.columns" not in one.state_dict()


def test_layers_are_chosen_by_name_and_others_may_be_trained_as_they_are():
    adapter = LoRA(2, layers=["blocks.*.asked"], trained=["norm.weight"])
    model = build(CharGPT, (8,), 11, 0, adapter)
    expected = {f"blocks.{i}.asked.{x}" for i in range(2) for x in "AB"} | {"norm.weight"}
    assert set(trained(model)) == expected
    assert model(torch.zeros(1, 8, dtype=torch.int64)).shape == (1, 8, 11)


def test_a_tied_weight_stays_tied_and_its_other_use_does_not_see_the_adapter():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.head.weight = self.tokens.weight

    model = randomly_moved(LoRA(2)(Tied()))
    assert model.head.weight is model.tokens.weight
    assert set(trained(model)) == {"head.A", "head.B"}
    plain = merged(model)
    torch.testing.assert_close(plain.tokens.weight, model.tokens.weight, rtol=0, atol=0)
    torch.testing.assert_close(plain.head.weight, model.head.merged())


@pytest.mark.parametrize(
    ("adapter", "key"),
    [
        (lambda: LoRA(0), "rank is 0"),
        (lambda: LoRA(alpha=-1.0), "alpha is -1.0"),
        (lambda: LoRA(layers="asked"), "layers is 'asked'"),
        (lambda: LoRA(layers=["head"])(MLP((6,), 3)), "layers has 'head'"),
        (lambda: PaCA(trained=["head"])(MLP((6,), 3)), "trained has 'head'"),
        (lambda: LoRA(base="none.safetensors")(MLP((6,), 3)), "base is 'none.safetensors'"),
        (lambda: LoRA(layers=[]), "layers is [] and trained is []"),
        (lambda: PaCA(7)(MLP((6,), 3)), "rank is 7, and layer 'layers.0' has 6 inputs"),
    ],
)
def test_what_cannot_be_is_refused_by_key_and_value(adapter, key):
    with pytest.raises(ConfigError) as refused:
        adapter()
    assert str(refused.value).startswith(key)


def test_a_base_that_is_not_finite_is_refused_by_its_file_and_the_entry(tmp_path):
    model, path = MLP((6,), 3), str(tmp_path / "diverged.safetensors")
    with torch.no_grad():
        model.layers[0].bias[1] = torch.nan
    save_file(model.state_dict(), path)
    with pytest.raises(ConfigError, match=r"^base is '.*diverged\.safetensors'.*layers\.0\.bias"):
        LoRA(2, base=path)(MLP((6,), 3))


def test_ffa_moves_weights_within_the_row_space_of_A_only():
    layer = layer_of(LoRA(2, freeze_A=True))
    for _ in range(3):
        step(layer)
    change = (layer.merged() - layer.weight).detach()
    A = layer.A.detach()
    outside = change @ (torch.eye(N) - torch.linalg.pinv(A) @ A)
    assert outside.norm() < 1e-5 * change.norm()
    assert change.norm() > 0


def test_a_partial_layer_takes_inputs_of_any_leading_shape():
    layer = PartialColumns(nn.Linear(N, M), 2, 1.0)
    assert layer(torch.zeros(3, 2, N)).shape == (3, 2, M)


def test_a_base_is_read_from_a_file_and_one_of_another_model_is_refused(tmp_path):
    trained_before, path = MLP((6,), 3, hidden=(5,)), str(tmp_path / "model.safetensors")
    save_file(trained_before.state_dict(), path)
    x = torch.randn(4, 6)
    adapted = build(partial(MLP, hidden=(5,)), (6,), 3, 0, LoRA(3, base=path))
    torch.testing.assert_close(adapted(x), trained_before(x), rtol=0, atol=0)
    with pytest.raises(ConfigError) as refused:
        build(partial(MLP, hidden=(4,)), (6,), 3, 0, LoRA(3, base=path))
    assert str(refused.value).startswith(f"base is {path!r}")
