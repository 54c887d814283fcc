"""Who decides whether clients train together, and that the decision is kept and told."""

import numpy as np
import pytest
from many_cases import for_each
from together import batch_key, train_many
from torch import nn

from fl import simulate
from fl.clients import Sgd, TrainingApp
from fl.clients.app import batching
from fl.clients.app.batching import compare
from fl.errors import ConfigError
from fl.execution import SerialExecutor
from fl.flower.records import from_record
from fl.simulation.world.fleets import uniform


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 4)
    )


def with_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 4))


def clock(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Makes the ways that are compared take so many seconds a call, one after the other."""
    now, calls = [0.0], iter(seconds)

    def way() -> int:
        now[0] += next(calls)
        return 1

    monkeypatch.setattr(batching.time, "perf_counter", lambda: now[0])
    clock.way = way


def test_structure_decides_by_default_and_the_user_may_overrule(federated, mlp):
    data = federated((8, 8))
    assert TrainingApp(mlp, data, Sgd(0.3)).choose_batching().together
    off = TrainingApp(mlp, data, Sgd(0.3), batching="off").choose_batching()
    assert (off.together, off.why) == (False, "batching is off")
    auto = TrainingApp(convolutional, data, Sgd(0.3)).choose_batching()
    assert not auto.together
    assert "Conv2d" in auto.why
    assert TrainingApp(convolutional, data, Sgd(0.3), batching="on").choose_batching().together
    with pytest.raises(ConfigError, match="batching is 'sometimes'; it must be one of auto, on"):
        TrainingApp(mlp, data, Sgd(0.3), batching="sometimes")


def test_convolutions_that_train_together_get_what_they_get_alone(
    federated, content_of, message_to, context_of
):
    data = federated((8, 5))
    app = TrainingApp(convolutional, data, Sgd(0.3), batch_size=4, batching="on")
    contents = [content_of(convolutional()) for _ in range(2)]
    messages = [message_to(content, i) for i, content in enumerate(contents)]
    together = train_many(app, messages, [context_of(i) for i in range(2)])
    for i, reply in enumerate(together):
        alone = app(messages[i], context_of(i))
        np.testing.assert_allclose(
            from_record(app.layout, reply.content["arrays"]),
            from_record(app.layout, alone.content["arrays"]),
            rtol=1e-4,
            atol=2e-6,
        )


@pytest.mark.parametrize(
    ("model", "why"), [(with_norm, "running_mean"), (with_dropout, "random"), (None, "one client")]
)
@for_each("mode", ["on", "measured"])
def test_what_cannot_train_together_does_not_whatever_the_mode(federated, mlp, mode, model, why):
    class Alone(Sgd):
        batchable = False

    rule = Sgd(0.3) if model else Alone(0.3)
    choice = TrainingApp(model or mlp, federated((8, 8)), rule, batching=mode).choose_batching()
    assert not choice.together
    assert why in choice.why
    assert choice.alone_s is None


@pytest.mark.parametrize(("alone", "together"), [(1.0, 3.0), (3.0, 1.0)])
def test_trial_chooses_the_faster_way_by_its_best_turn(monkeypatch, alone, together):
    clock(monkeypatch, 9.0, 8.0, alone, 7.0, 9.0, 8.0, together, 7.0)
    choice = compare(clock.way, clock.way)
    assert (choice.alone_s, choice.together_s) == (alone, together)
    assert choice.together == (together < alone)
    repeat = choice.summary()["repeat_with"]
    assert repeat == ("client.batching=on" if together < alone else "client.batching=off")


def test_trial_runs_once_and_binds_what_follows(federated, mlp, message_to, content_of, context_of):
    app = TrainingApp(mlp, federated((8, 0, 8)), Sgd(0.3), batching="measured")
    choice = app.choose_batching()
    assert choice.alone_s > 0 < choice.together_s
    assert app.choose_batching() is choice
    key = batch_key(app, message_to(content_of(mlp)), context_of())
    assert (key is not None) == choice.together


def test_choice_is_in_the_summary_and_workers_cannot_choose_for_themselves(federated, mlp):
    def server(grid, context, recorder):
        pass

    app = TrainingApp(mlp, federated((8, 8)), Sgd(0.3), batching="measured")
    fleet, serial = uniform(num_clients=2, seed=0), SerialExecutor()
    run = simulate(server, app, fleet, executor=serial, progress=False)
    assert run.summary["extra"]["batching"] == app.choose_batching().summary()
    with pytest.raises(ConfigError, match="every worker process makes its own ClientApp"):
        simulate(server, lambda: app, fleet, executor=serial, progress=False)
