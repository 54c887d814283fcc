import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, roc_auc_score
from torch import nn

from fl.errors import ConfigError
from fl.models import Measures, evaluate, per_example_loss
from fl.models.metrics import (
    auc,
    confusion,
    label_auc,
    label_f1,
    macro_f1,
    mean_average_precision,
    mean_of_each,
    micro_f1,
)


@pytest.mark.parametrize("C", [2, 3, 7])
def test_f1_and_auc_are_those_of_scikit_learn(C):
    rng = np.random.default_rng(C)
    scores, y = rng.normal(size=(200, C)), rng.integers(0, C, 200)
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    theirs = (
        roc_auc_score(y, shares[:, 1]) if C == 2 else roc_auc_score(y, shares, multi_class="ovr")
    )
    assert auc(scores, y) == pytest.approx(theirs)
    assert macro_f1(scores, y) == pytest.approx(f1_score(y, scores.argmax(1), average="macro"))


def test_equal_scores_count_half_and_one_class_alone_has_no_area():
    scores = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 2.0]])
    assert auc(scores, np.array([0, 1, 1])) == (0.5 + 1) / 2
    assert math.isnan(auc(scores, np.array([1, 1, 1])))
    assert mean_of_each([{"auc": math.nan}, {"auc": 0.25}], ["auc"]) == {"auc": 0.25}


def test_what_regression_reports_is_in_the_unit_of_its_target():
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 2.0)
    nn.init.constant_(model.bias, 0.0)
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([1.0, -1.0])  # errors -1 and 3
    assert per_example_loss(model(x), y).tolist() == [1, 9]
    found = Measures("regression", unit=10.0)(model, (x, y))
    assert found == {"mae": 20, "loss": 5, "rmse": pytest.approx(10 * math.sqrt(5))}


def test_what_is_asked_for_comes_beside_what_always_is():
    model = nn.Linear(3, 4)
    examples = torch.randn(50, 3), torch.randint(0, 4, (50,))
    plain, more = Measures()(model, examples), Measures(more=("f1", "auc"))(model, examples)
    assert plain == dict(zip(("loss", "accuracy"), evaluate(model, examples), strict=True))
    assert [*more] == [*Measures(more=("f1", "auc")).names]
    assert more["loss"] == pytest.approx(plain["loss"], rel=1e-12)
    assert more["accuracy"] == plain["accuracy"]


def test_perplexity_of_a_model_that_knows_nothing_is_the_vocabulary():
    tokens = torch.zeros((2, 5), dtype=torch.int64)
    model = nn.Embedding.from_pretrained(torch.zeros(6, 6))
    found = Measures("next-token", ("perplexity",))(model, (tokens, tokens))
    assert found["perplexity"] == pytest.approx(6)


@pytest.mark.parametrize(("task", "name"), [("regression", "f1"), ("classification", "bleu")])
def test_a_metric_that_does_not_fit_the_task_is_refused(task, name):
    with pytest.raises(ConfigError, match=f"metrics has '{name}'"):
        Measures(task, (name,))


def test_metrics_of_labels_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    scores, y = rng.normal(size=(200, 5)).round(1), rng.random((200, 5)) < 0.3  # with equal scores
    taken = scores > 0
    assert label_f1(scores, y) == pytest.approx(f1_score(y, taken, average="macro"))
    assert micro_f1(scores, y) == pytest.approx(f1_score(y, taken, average="micro"))
    assert label_auc(scores, y) == pytest.approx(roc_auc_score(y, scores))
    assert mean_average_precision(scores, y) == pytest.approx(average_precision_score(y, scores))


def test_of_labels_that_nobody_has_nothing_is_said():
    scores, y = np.full((3, 2), -1.0), np.zeros((3, 2), bool)
    for metric in (label_f1, micro_f1, label_auc, mean_average_precision):
        assert math.isnan(metric(scores, y))
    asked = Measures("multi-label", ("f1", "f1_micro", "auc", "map"))
    model = nn.Embedding.from_pretrained(torch.tensor([[-1.0, -1.0]]))
    found = asked(model, (torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2)))
    assert found == {"accuracy": 1.0, "loss": pytest.approx(math.log1p(math.exp(-1)))}


def test_the_confusion_matrix_is_that_of_scikit_learn():
    model = nn.Linear(3, 4)
    x, y = torch.randn(50, 3), torch.randint(0, 4, (50,))
    theirs = confusion_matrix(y, model(x).argmax(dim=1), labels=range(4))
    assert (confusion(model, (x, y), 4) == theirs).all()
