"""FLOPs of whole batches of every kind of model: counted in a training step, and by the profiler.

The model of costs counts one example, in evaluation, with a sum for a loss, and multiplies.
"""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from fl.models import (
    MLP,
    CharGPT,
    CharLSTM,
    LeafCNN,
    LogisticRegression,
    ResNet8,
    flops_per_example,
    timm,
    torchvision,
)
from fl.models.objective import per_example_loss

CASES = {
    "logistic": (lambda: LogisticRegression((60,), 10), (60,)),
    "mlp": (lambda: MLP((1, 8, 8), 10, hidden=[64, 32]), (1, 8, 8)),
    "mlp with dropout": (lambda: MLP((1, 8, 8), 10, hidden=[16], dropout=0.5), (1, 8, 8)),
    "leaf_cnn": (lambda: LeafCNN((1, 28, 28), 10, width=16), (1, 28, 28)),
    "resnet8": (lambda: ResNet8((3, 16, 16), 10), (3, 16, 16)),
    "resnet8 with BatchNorm": (lambda: ResNet8((3, 16, 16), 10, groups=None), (3, 16, 16)),
    "char_lstm": (lambda: CharLSTM((6,), 11, hidden=16), (6,)),
    "char_gpt": (lambda: CharGPT((16,), 11), (16,)),
    "timm": (lambda: timm((3, 32, 32), 10, name="resnet10t"), (3, 32, 32)),
    "torchvision": (lambda: torchvision((3, 32, 32), 10, name="resnet18"), (3, 32, 32)),
}
PACKAGES = ("timm", "torchvision")
PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::conv2d")


@pytest.fixture(params=CASES)
def case(request):
    if request.param in PACKAGES:
        pytest.importorskip(request.param)
    make, shape = CASES[request.param]
    dtype = torch.int64 if request.param.startswith("char") else torch.float32
    model = make()
    return (
        model,
        flops_per_example(model, shape, dtype),
        lambda n: torch.zeros((n, *shape), dtype=dtype),
    )


@pytest.mark.parametrize("batch", [2, 7, 32])
def test_a_training_step_has_the_flops_of_its_examples(case, batch):
    model, flops, inputs = case
    # An LSTM is one operation to oneDNN, of which the counter knows nothing.
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counted:
        logits = model.train()(inputs(batch))
        labels = torch.zeros(logits.shape[:-1], dtype=torch.int64)
        per_example_loss(logits, labels).mean().backward()
    assert counted.get_total_flops() == batch * flops.training


@pytest.mark.parametrize("batch", [2, 7, 32])
def test_the_profiler_counts_as_much_for_the_products_of_a_forward_pass(case, batch):
    # Its formulas are others than those of the counter, in C++. What it counts beside products is
    # left out of the model of costs: additions of residuals, and products by elements in gates.
    model, flops, inputs = case
    model.eval()
    with (
        torch.no_grad(),
        torch.backends.mkldnn.flags(enabled=False),
        profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiled,
    ):
        model(inputs(batch))
    counted = {event.key: event.flops for event in profiled.key_averages()}
    assert sum(counted.get(name, 0) for name in PRODUCTS) == batch * flops.forward
    beside = sum(n for name, n in counted.items() if name not in PRODUCTS)
    assert beside < 0.05 * batch * flops.forward
