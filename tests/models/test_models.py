import inspect
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

import fl
from fl.errors import ConfigError
from fl.models import (
    MLP,
    CharGPT,
    CharLSTM,
    LeafCNN,
    LogisticRegression,
    ResNet8,
    build,
    per_example_loss,
)
from fl.runs.making import make

CONF = Path(fl.__file__).parent / "conf" / "model"
OTHERS = ("huggingface", "timm", "torchvision")  # of packages that need not be installed
CONFIGS = sorted(path for path in CONF.glob("*.yaml") if path.stem not in OTHERS)
IMAGE = (3, 12, 20)
TOKENS = (7,)

EXAMPLES = [
    (LogisticRegression, IMAGE, {}),
    (MLP, IMAGE, {"hidden": [5, 4]}),
    (LeafCNN, IMAGE, {"width": 16}),
    (ResNet8, IMAGE, {"channels": [4, 6, 8]}),
    (CharLSTM, TOKENS, {"hidden": 6, "embedding": 3}),
    (CharGPT, TOKENS, {"width": 8, "heads": 2}),
]
every_model = pytest.mark.parametrize(
    ("model", "shape", "config"), EXAMPLES, ids=[e[0].__name__ for e in EXAMPLES]
)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def batch(shape: tuple[int, ...], n: int, classes: int = 10):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (n, *shape) if shape == TOKENS else (n,), generator=generator)
    if shape == TOKENS:
        return torch.randint(classes, (n, *shape), generator=generator), y
    return torch.randn(n, *shape, generator=generator), y


def conv(inputs: int, outputs: int, side: int) -> int:
    return inputs * outputs * side**2


def test_logistic_regression_has_a_weight_per_input_and_class_and_a_bias():
    assert parameters(LogisticRegression((60,), 10)) == 610  # as published for FedProx
    assert parameters(LogisticRegression((1, 8, 8), 10)) == 65 * 10


def test_mlp_has_the_parameters_of_its_widths():
    assert parameters(MLP((1, 28, 28), 10)) == 785 * 64 + 65 * 10
    assert parameters(MLP((1, 28, 28), 10, hidden=[200, 100])) == 785 * 200 + 201 * 100 + 101 * 10
    assert parameters(MLP((4,), 3, hidden=[])) == 5 * 3


def test_leaf_cnn_has_the_published_number_of_parameters():
    assert parameters(LeafCNN((1, 28, 28), 10, width=512)) == 1_663_370  # arXiv:1602.05629
    expected = conv(3, 32, 5) + 32 + conv(32, 64, 5) + 64 + (64 * 8 * 8 + 1) * 2048 + 2049 * 10
    assert parameters(LeafCNN((3, 32, 32), 10)) == expected
    # 9x13 pixels are pooled to 2x3.
    assert parameters(LeafCNN((1, 9, 13), 2, width=3)) == (
        conv(1, 32, 5) + 32 + conv(32, 64, 5) + 64 + (64 * 2 * 3 + 1) * 3 + 4 * 2
    )


def test_resnet8_has_the_parameters_of_eight_layers():
    expected = conv(3, 16, 3) + 2 * 16  # stem
    expected += 2 * (conv(16, 16, 3) + 2 * 16)
    for a, b in ((16, 32), (32, 64)):
        expected += conv(a, b, 3) + conv(b, b, 3) + conv(a, b, 1) + 3 * 2 * b
    assert parameters(ResNet8((3, 32, 32), 10)) == expected + 65 * 10


def test_char_lstm_has_the_parameters_of_its_layers():
    V, E, H = 65, 8, 256
    # Four gates, each with weights of input and state and, in torch, two biases.
    layers = 4 * H * (E + H + 2) + 4 * H * (H + H + 2)
    assert parameters(CharLSTM((80,), V)) == V * E + layers + (H + 1) * V
    assert parameters(CharLSTM((20,), V)) == parameters(CharLSTM((80,), V))


@pytest.mark.parametrize(("width", "layers", "heads"), [(64, 2, 4), (128, 4, 4), (384, 6, 6)])
def test_char_gpt_has_the_parameters_of_its_blocks(width, layers, heads):
    V, T = 65, 64
    block = 3 * width**2 + width**2 + 8 * width**2 + 2 * width
    model = CharGPT((T,), V, width, layers, heads)
    assert parameters(model) == layers * block + (V + T + 1) * width
    deviation = model.blocks[0].down.weight.std().item()
    assert deviation == pytest.approx(0.02 / math.sqrt(2 * layers), rel=0.05)


def test_char_gpt_is_causal():
    torch.manual_seed(0)
    model = CharGPT((7,), 10, width=8, heads=2)
    x = torch.randint(10, (3, 7))
    changed = x.clone()
    changed[:, 4] = (x[:, 4] + 1) % 10
    before, after = model(x), model(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amax(-1).min() > 1e-5


def test_char_gpt_is_torchs_transformer():
    torch.manual_seed(0)
    width, heads, T = 8, 2, 7
    model = CharGPT((T,), 10, width, 1, heads)
    theirs = nn.TransformerEncoderLayer(
        width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True, bias=False
    )
    ours = model.blocks[0]
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": ours.asked.weight,
            "self_attn.out_proj.weight": ours.attended.weight,
            "linear1.weight": ours.up.weight,
            "linear2.weight": ours.down.weight,
            "norm1.weight": ours.attention_norm.weight,
            "norm2.weight": ours.norm.weight,
        }
    )
    x = torch.randn(3, T, width)
    mask = nn.Transformer.generate_square_subsequent_mask(T)
    torch.testing.assert_close(ours(x), theirs(x, mask, is_causal=True), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [({"width": 9, "heads": 2}, "multiple of heads"), ({"layers": 0}, "layers is 0")],
)
def test_char_gpt_refuses_sizes_that_do_not_fit(sizes, words):
    with pytest.raises(ConfigError, match=words):
        CharGPT((7,), 10, **sizes)


@every_model
def test_logits_have_one_row_per_example(model, shape, config):
    x, y = batch(shape, 5)
    logits = model(input_shape=shape, num_classes=10, **config)(x)
    assert tuple(logits.shape) == (*y.shape, 10)
    assert logits.dtype == torch.float32


@every_model
def test_examples_do_not_influence_each_other(model, shape, config):
    x, _ = batch(shape, 5)
    built = model(input_shape=shape, num_classes=10, **config)
    for p in built.parameters():
        nn.init.normal_(p, std=0.1)
    torch.testing.assert_close(built(x)[3], built(x[3:4])[0])


@every_model
def test_every_parameter_gets_a_gradient(model, shape, config):
    built = build(lambda **k: model(**k, **config), shape, 10, seed=0)
    x, y = batch(shape, 6)
    # The zero start of logistic regression has gradients too.
    per_example_loss(built(x), y).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in built.parameters())


@every_model
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_many_models_train_as_one_program(model, shape, config):
    models = [build(lambda **k: model(**k, **config), shape, 10, seed=s) for s in range(3)]
    x, y = batch(shape, 12)
    x, y = x.reshape(3, 4, *x.shape[1:]), y.reshape(3, 4, *y.shape[1:])
    stacked, buffers = stack_module_state(models)

    def loss(parameters, buffers, x, y):
        logits = functional_call(models[0], (parameters, buffers), (x,))
        return per_example_loss(logits, y).mean()

    together = vmap(grad(loss))(stacked, buffers, x, y)
    for i, single in enumerate(models):
        per_example_loss(single(x[i]), y[i]).mean().backward()
        for name, parameter in single.named_parameters():
            torch.testing.assert_close(together[name][i], parameter.grad, rtol=1e-4, atol=1e-6)


@every_model
def test_the_seed_decides_the_start_and_leaves_the_global_generator_alone(model, shape, config):
    def make(seed: int) -> torch.Tensor:
        built = build(lambda **k: model(**k, **config), shape, 10, seed)
        return torch.cat([p.flatten() for p in built.parameters()])

    state = torch.get_rng_state()
    first, again, other = make(0), make(0), make(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (model is LogisticRegression)  # which starts at zero


def test_glorot_weights_fill_their_interval_and_biases_are_zero():
    torch.manual_seed(0)
    model = LogisticRegression((60,), 10, init="glorot")
    bound = math.sqrt(6 / (60 + 10))
    weights = model.linear.weight.detach()
    assert 0.98 * bound < weights.abs().max() <= bound
    assert weights.var().item() == pytest.approx(bound**2 / 3, rel=0.15)
    assert not model.linear.bias.any()
    zeros = LogisticRegression((60,), 10)
    assert not any(p.any() for p in zeros.parameters())


def test_resnet_blocks_halve_the_image_twice():
    model = ResNet8((1, 8, 8), 2, channels=[2, 4, 6])
    assert tuple(model.blocks(model.stem(torch.zeros(1, 1, 8, 8))).shape) == (1, 6, 2, 2)
    # Identity shortcut where nothing changes: with the residual at zero a block is a ReLU.
    for p in model.blocks[0].residual.parameters():
        nn.init.zeros_(p)
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(model.blocks[0](x), x.relu())


def test_mlp_is_linear_layers_with_relu_between():
    model = MLP((2,), 1, hidden=[2])
    first, last = model.layers[0], model.layers[2]
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        first.bias.copy_(torch.tensor([0.5, 0.25]))
        last.weight.copy_(torch.tensor([[2.0, 10.0]]))
        last.bias.copy_(torch.tensor([-1.0]))
    # max(1 + 0.5, 0) x 2 + max(-3 + 0.25, 0) x 10 - 1, and with both signs turned.
    assert model(torch.tensor([[1.0, 3.0], [-1.0, -3.0]])).tolist() == [[2.0], [31.5]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogisticRegression((4,), 2, init="ones"), "init='ones': must be"),
        (lambda: MLP((4,), 2, hidden=[8, 0]), r"hidden=\[8, 0\]"),
        (lambda: LeafCNN((60,), 10), r"input_shape=\(60,\): .*use model=mlp"),
        (lambda: LeafCNN((1, 3, 8), 10), "at least 4x4"),
        (lambda: ResNet8((60,), 10), r"input_shape=\(60,\): .*use model=mlp"),
        (lambda: ResNet8((3, 8, 8), 10, groups=3), r"channels=\[16, 32, 64\] with groups=3"),
        (lambda: ResNet8((3, 8, 8), 10, channels=[8, 8]), "need three"),
        (lambda: CharLSTM((1, 28, 28), 10), r"\(1, 28, 28\): .*data=shakespeare"),
    ],
)
def test_inputs_that_a_model_cannot_take_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_model_of_the_configuration_can_be_built(path):
    config = OmegaConf.load(path)
    factory = make(OmegaConf.create({"model": config}), "model")
    parameters = set(inspect.signature(factory.func).parameters)
    assert set(factory.keywords) == parameters - {"input_shape", "num_classes"}
    shapes = {"char_gpt": (80,), "char_lstm": (80,), "quadratic_game": (7, 6)}
    shape = {**shapes, "robust_least_squares": (40,)}.get(path.stem, (1, 28, 28))
    assert isinstance(build(factory, shape, 10, seed=0), nn.Module)
    assert not any(OmegaConf.is_config(value) for value in factory.keywords.values())
    first, *lines = path.read_text().splitlines()
    assert first.removeprefix("# FL_DATA_DIR=... fl ").removeprefix("# fl ") != first
    assert f"model={path.stem}" in first
    plain = ("#", "_target_", "_convert_")
    assert all(line.startswith(plain) or " # " in line for line in lines)
