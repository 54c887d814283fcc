"""A cut model computes what the model computes, and its stages hold and cost what it does."""

import itertools

import pytest
import torch
from many_cases import for_each
from torch import nn

from fl.errors import ConfigError
from fl.models import MLP, CharGPT, CharLSTM, LeafCNN, ResNet8, flops_per_example, pieces_of
from fl.stages import Cut
from fl.stages.cut import _balanced

MODELS = {
    "char_gpt": (lambda: CharGPT((6,), 11, width=8, layers=4, heads=2), (6,), True, "together"),
    "char_lstm": (lambda: CharLSTM((6,), 11, embedding=4, hidden=8), (6,), True, "apart"),
    "mlp": (lambda: MLP((3, 2), 4, hidden=(8, 7, 6)), (3, 2), False, "apart"),
    "leaf_cnn": (lambda: LeafCNN((1, 8, 8), 3, width=16), (1, 8, 8), False, "apart"),
    "resnet8": (lambda: ResNet8((3, 8, 8), 5, channels=(4, 8, 8)), (3, 8, 8), False, "apart"),
    "sequential": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        (4,),
        False,
        "apart",
    ),
}


def made(name: str) -> tuple[nn.Module, tuple[int, ...], bool, str]:
    make, shape, tokens, ends = MODELS[name]
    torch.manual_seed(0)
    return make(), shape, tokens, ends


def batch(shape: tuple[int, ...], tokens: bool, n: int = 3) -> torch.Tensor:
    return torch.randint(0, 11, (n, *shape)) if tokens else torch.randn(n, *shape)


@pytest.mark.parametrize("name", MODELS)
def test_pieces_one_after_the_other_are_the_model(name: str) -> None:
    model, shape, tokens, _ = made(name)
    x = batch(shape, tokens)
    y = x
    for piece in pieces_of(model):
        y = piece.run(y)
    assert torch.equal(y, model(x))


@pytest.mark.parametrize("name", MODELS)
@for_each("num_stages", [2, 3])
def test_spans_along_the_route_are_the_model_and_each_entry_has_one_stage(
    name: str, num_stages: int
) -> None:
    model, shape, tokens, ends = made(name)
    if name == "sequential" and num_stages == 3:
        pytest.skip("its middle piece has no parameters")
    cut = Cut.of(model, shape, num_stages, tokens=tokens, ends=ends)
    state = model.state_dict()
    x = batch(shape, tokens)
    y = x
    for k, span in enumerate(cut.spans):
        own = {e: state[e] for e in cut.stages[span.stage].entries}
        assert y.shape[1:] == span.input_shape
        y = cut.forward(k, own, y)
        assert y.shape[1:] == span.output_shape
    assert torch.equal(y, model(x))
    dealt = [e for stage in cut.stages for e in stage.entries]
    assert sorted(dealt) == sorted(state)
    assert sum(s.parameters for s in cut.stages) == sum(p.numel() for p in model.parameters())


def test_operations_of_the_spans_add_up_to_those_of_the_model() -> None:
    model, shape, tokens, ends = made("mlp")
    cut = Cut.of(model, shape, 4, tokens=tokens, ends=ends)
    whole = flops_per_example(model, shape)
    assert sum(span.flops.forward for span in cut.spans) == whole.forward
    assert sum(span.flops.backward for span in cut.spans) == whole.backward
    # 2 a b forward; backward the weights' gradient and, but for the first, the inputs'.
    assert [span.flops for span in cut.spans] == [
        (2 * 6 * 8, 2 * 6 * 8),
        (2 * 8 * 7, 4 * 8 * 7),
        (2 * 7 * 6, 4 * 7 * 6),
        (2 * 6 * 4, 4 * 6 * 4),
    ]
    assert [span.output_bytes for span in cut.spans] == [32, 28, 24, 16]


def test_balanced_runs_are_the_best_of_all() -> None:
    costs = [3, 1, 4, 1, 5, 9, 2, 6]
    for count in range(1, len(costs) + 1):
        starts = _balanced(costs, count)

        def largest(begin: list[int]) -> int:
            return max(sum(costs[a:b]) for a, b in itertools.pairwise([*begin, len(costs)]))

        every = itertools.combinations(range(1, len(costs)), count - 1)
        assert len(starts) == count
        assert largest(starts) == min(largest([0, *inner]) for inner in every)


def test_boundaries_are_where_they_are_said_to_be() -> None:
    model, shape, tokens, ends = made("char_gpt")
    cut = Cut.of(model, shape, 2, tokens=tokens, ends=ends, boundaries=[3, 4])
    assert [(s.stage, s.first, s.last) for s in cut.spans] == [(0, 0, 3), (1, 3, 4), (0, 4, 6)]
    assert cut.stages[1].entries == tuple(n for n in model.state_dict() if n.startswith("blocks.2"))
    assert cut.stages[0].spans == (0, 2)
    assert cut.middle == range(1, 2)


@pytest.mark.parametrize(
    ("make", "shape", "options", "says"),
    [
        (lambda: nn.LSTM(3, 3), (3, 3), {"num_stages": 2}, "nothing says of which steps"),
        (lambda: MLP((3,), 2), (3,), {"num_stages": 3}, "2 pieces that can be apart"),
        (lambda: MLP((3,), 2), (3,), {"num_stages": 1}, "num_stages"),
        (
            lambda: ResNet8((3, 8, 8), 5, groups=None),
            (3, 8, 8),
            {"num_stages": 2},
            "running_mean",
        ),
        (
            lambda: CharGPT((6,), 11, width=8, heads=2),
            (6,),
            {"num_stages": 2, "tokens": True},
            "ends=together",
        ),
        (
            lambda: MLP((3,), 2, hidden=(4, 4)),
            (3,),
            {"num_stages": 2, "boundaries": [3]},
            r"boundaries is \[3\]",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_reason(make, shape, options, says) -> None:
    with pytest.raises(ConfigError, match=says):
        Cut.of(make(), shape, **options)
