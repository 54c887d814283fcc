"""What `fl.models.without_compiler` relies on, and that nothing is lost without the compiler."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from fl.models.without_compiler import CHECKED_WITH

OF_A_CLIENT = """
import sys
import torch
from torch import nn
from fl.clients.app.batched import grad, grad_and_value, vmap
from fl.models import flops_per_example

w = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
loss = lambda w: (w ** 3).sum()
g, value = vmap(grad_and_value(loss))(w)
h = vmap(grad(lambda w: grad(loss)(w).sum()))(w)
flops = flops_per_example(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), (3,))
print("torch._dynamo" in sys.modules, g.tolist(), value.tolist(), h.tolist(), *flops)
"""
FOR_WHO_COMPILES = """
print(torch._dynamo.config.recompile_limit > 0, torch._dynamo is sys.modules["torch._dynamo"])
compiled = torch.compile(loss, backend="eager")
print(vmap(grad(loss))(w).equal(g), compiled(w).equal(loss(w)))
"""


def test_the_version_was_checked():
    assert version("torch").partition("+")[0] in CHECKED_WITH, (
        "see whether torch._functorch.eager_transforms._autograd_grad, torch._compile and "
        "torch.utils.flop_counter are as fl/models/without_compiler.py says, then add the version"
    )


@pytest.mark.slow
def test_gradients_and_flops_do_without_the_compiler_and_whoever_asks_finds_it():
    done = subprocess.run(
        [sys.executable, "-c", OF_A_CLIENT + FOR_WHO_COMPILES],
        capture_output=True,
        text=True,
        check=True,
    )
    # d/dw w^3 = 3 w^2, and of its sum 6 w; 2 * 3 * 5 and 2 * 5 * 2 operations forwards, twice that
    # backwards but for the inputs' gradient.
    assert done.stdout.splitlines() == [
        "False [[3.0, 12.0], [27.0, 48.0]] [9.0, 91.0] [[6.0, 12.0], [18.0, 24.0]] 50 70",
        "True True",
        "True True",
    ]
