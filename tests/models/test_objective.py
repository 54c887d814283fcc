import math

import pytest
import torch
from torch.func import grad, vmap

from fl.data import load_digits
from fl.errors import ConfigError
from fl.models import LogisticRegression, correct, evaluate, per_example_loss


def by_hand(logits: list[float], y: int) -> float:
    return math.log(sum(math.exp(z) for z in logits)) - logits[y]


def test_the_loss_of_an_example_is_its_negative_log_likelihood():
    logits, y = [[1.0, -2.0, 0.5], [0.0, 3.0, 0.0]], [2, 0]
    loss = per_example_loss(torch.tensor(logits), torch.tensor(y))
    assert loss.tolist() == pytest.approx([by_hand(z, t) for z, t in zip(logits, y, strict=True)])


def test_the_loss_of_a_sequence_is_the_mean_over_its_positions():
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([[0, 1, 2], [3, 3, 0]])
    expected = [
        sum(by_hand(logits[b, t].tolist(), int(y[b, t])) for t in range(3)) / 3 for b in range(2)
    ]
    assert per_example_loss(logits, y).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_masked_loss_is_that_of_logits_which_are_zero_for_other_classes():
    """As HeteroFL's code: masked_fill, then the cross-entropy of all logits."""
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    classes, y = torch.tensor([True, False, True, False]), torch.tensor([0, 2, 2, 0, 2])
    loss = per_example_loss(logits, y, classes)
    expected = torch.nn.functional.cross_entropy(
        logits.masked_fill(~classes, 0), y, reduction="none"
    )
    torch.testing.assert_close(loss, expected)
    (g,) = torch.autograd.grad(loss.sum(), logits)
    assert not g[:, ~classes].any()
    assert g[:, classes].all()


def test_large_logits_do_not_overflow():
    assert per_example_loss(torch.tensor([[1e4, 0.0]]), torch.tensor([1])).tolist() == [1e4]


def test_correct_is_one_zero_or_the_share_of_positions():
    logits = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    assert correct(logits, torch.tensor([0, 1])).tolist() == [1.0, 0.0]
    sequences = logits.repeat(2, 2, 1)  # (2, 4, 2), class 0 everywhere
    y = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]])
    assert correct(sequences, y).tolist() == [0.75, 0.0]


@pytest.mark.parametrize("shape", [(5,), (5, 3)], ids=["classes", "tokens"])
def test_gradients_of_many_clients_are_softmax_minus_one_hot(shape):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, *shape, 6, generator=generator)
    y = torch.randint(6, (4, *shape), generator=generator)
    found = vmap(grad(lambda z, t: per_example_loss(z, t).sum()))(logits, y)
    positions = shape[1] if len(shape) > 1 else 1
    expected = (logits.softmax(-1) - torch.nn.functional.one_hot(y, 6)) / positions
    torch.testing.assert_close(found, expected)
    hits = vmap(correct)(logits, y)
    torch.testing.assert_close(hits[2], correct(logits[2], y[2]))


def test_a_model_that_knows_nothing_loses_log_c():
    source = load_digits()
    assert source.scaling is not None
    x = torch.from_numpy(source.scaling(source.test.x))
    y = torch.from_numpy(source.test.y)
    model = LogisticRegression((1, 8, 8), 10)
    with torch.no_grad():
        model.linear.bias[4] = 1e-6  # says 4 to everything
    found = evaluate(model, (x, y), batch_size=100)
    assert found.loss == pytest.approx(math.log(10), rel=1e-6)
    assert found.score == (y == 4).double().mean().item()


def test_evaluation_does_not_depend_on_the_batch_size():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(103, 7, generator=generator), torch.randint(3, (103,), generator=generator)
    model = LogisticRegression((7,), 3, init="glorot")
    whole = evaluate(model, (x, y), batch_size=103)
    for size in (1, 10, 1000):
        part = evaluate(model, (x, y), batch_size=size)
        assert part.score == whole.score
        assert part.loss == pytest.approx(whole.loss, rel=1e-6)


def test_evaluation_switches_dropout_off_and_leaves_the_model_as_it_was():
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
    examples = torch.ones(50, 4), torch.zeros(50, dtype=torch.int64)
    assert evaluate(model, examples) == evaluate(model, examples)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    evaluate(model, examples)
    assert not model.training


@pytest.mark.parametrize(("n", "batch_size"), [(0, 10), (5, 0)])
def test_evaluating_nothing_is_refused(n, batch_size):
    examples = torch.ones(n, 4), torch.zeros(n, dtype=torch.int64)
    with pytest.raises(ConfigError, match=f"{n} examples in batches of {batch_size}"):
        evaluate(LogisticRegression((4,), 2), examples, batch_size)


@pytest.mark.parametrize("batched", [False, True])
def test_the_loss_of_labels_is_torchs_binary_cross_entropy_and_so_is_its_gradient(batched):
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(4, 6, 3, generator=generator)
    y = torch.randint(2, (4, 6, 3), generator=generator).float()
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none")
    expected, slope = theirs.mean(dim=-1), (logits.sigmoid() - y) / 3

    def total(z, t):
        return per_example_loss(z, t).sum()

    if batched:
        torch.testing.assert_close(vmap(per_example_loss)(logits, y), expected)
        torch.testing.assert_close(vmap(grad(total))(logits, y), slope)
    else:
        torch.testing.assert_close(per_example_loss(logits[0], y[0]), expected[0])
        torch.testing.assert_close(grad(total)(logits[0], y[0]), slope[0])
    assert per_example_loss(torch.tensor([[1e4, -1e4]]), torch.tensor([[0.0, 0.0]])) == 5e3


def test_labels_are_correct_where_the_logit_has_their_sign():
    logits = torch.tensor([[2.0, -1.0, 3.0, -4.0]])
    assert correct(logits, torch.tensor([[1.0, 1.0, 1.0, 0.0]])).tolist() == [0.75]
