"""Training on another device than the host's memory.

PyTorch's `meta` device has shapes and no numbers, and refuses to be mixed with another device: a
tensor that was left in the host's memory ends the training with an error. The one thing that cannot
be done with it is to bring the result home, which is the last thing that a task does.
"""

import pytest
import torch
from together import train_many
from torch import nn

from fl.clients import (
    AdamW,
    Corrected,
    Gradient,
    MicroAdam,
    Momentum,
    Proximal,
    Sam,
    Sgd,
    TrainingApp,
)
from fl.clients.app.batched import gains_from_batching, rows_per_program
from fl.errors import ConfigError
from fl.models import LeafCNN, ResNet8

RULES = {
    "sgd": Sgd(0.3, 0.9),
    "proximal": Corrected(Sgd(0.3), Proximal(0.5)),
    "adamw": AdamW(0.02, keep_moments=True),
    "gradient": Gradient(),
    "microadam": MicroAdam(0.01, density=0.1, bucket=8, window=3, keep_state=True),
    "momentum": Momentum(0.3, 0.8),
    "sam": Sam(0.3, rho=0.1),
}
GPU = torch.device("cuda")
TAKEN_HOME = "Cannot copy out of meta tensor"


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_one_task_is_done_on_the_device_and_its_outcome_taken_home(
    federated, mlp, content_of, message_to, context_of, rule
):
    app = TrainingApp(mlp, federated((12, 7)), rule, batch_size=4, device="meta")
    with pytest.raises(NotImplementedError, match=TAKEN_HOME):
        app(message_to(content_of(mlp)), context_of())


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_tasks_of_a_program_are_done_on_the_device_and_their_outcomes_taken_home(
    federated, mlp, content_of, message_to, context_of, rule
):
    app = TrainingApp(mlp, federated((12, 7, 3)), rule, batch_size=4, device="meta", batching="on")
    messages = [message_to(content_of(mlp), i) for i in range(3)]
    with pytest.raises(NotImplementedError, match=TAKEN_HOME):
        train_many(app, messages, [context_of(i) for i in range(3)])


@pytest.mark.parametrize("together", [False, True])
def test_what_a_rule_kept_is_taken_to_the_device(
    federated, mlp, content_of, message_to, context_of, together
):
    data, rule = federated((12, 7)), AdamW(0.02, keep_moments=True)
    contexts = [context_of(i) for i in range(2)]
    host = TrainingApp(mlp, data, rule, batch_size=4)
    train_many(host, [message_to(content_of(mlp), i) for i in range(2)], contexts)
    app = TrainingApp(mlp, data, rule, batch_size=4, device="meta", batching="on")
    messages = [message_to(content_of(mlp), i, 1) for i in range(2)]
    with pytest.raises(NotImplementedError, match=TAKEN_HOME):
        train_many(app, messages, contexts) if together else app(messages[0], contexts[0])


def test_clients_evaluate_on_the_device(federated, mlp, content_of, message_to, context_of):
    app = TrainingApp(mlp, federated((12, 7)), Sgd(0.3), device="meta")
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
        app(message_to(content_of(mlp), kind="evaluate"), context_of())


def test_on_a_gpu_everything_trains_together_but_what_draws_numbers():
    for model in (LeafCNN((1, 28, 28), 10), ResNet8((3, 32, 32), 10), nn.MultiheadAttention(4, 2)):
        assert gains_from_batching(model, GPU) == (True, "")
    for drawing in (nn.Dropout(0.1), nn.RReLU()):
        assert not gains_from_batching(nn.Sequential(nn.Linear(3, 3), drawing), GPU)[0]
    assert rows_per_program(50_890, GPU) > 100 > rows_per_program(50_890)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:-1"])
def test_a_device_that_is_not_there_is_refused_with_a_remedy(federated, mlp, device):
    with pytest.raises(ConfigError, match=f"client.device is '{device}'.*use 'cpu'"):
        TrainingApp(mlp, federated((4,)), Sgd(0.1), device=device)
