"""Clients trained together get what they get alone."""

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from together import batch_key, train_many, why_alone
from torch import nn

from fl.clients import (
    APFL,
    AdamW,
    BlockWise,
    Conservative,
    ControlledMomentum,
    ControlVariates,
    Corrected,
    Direction,
    Ditto,
    DynamicRegularization,
    Finished,
    ForwardGradient,
    GlobalMomentum,
    Gradient,
    Hypergradient,
    MicroAdam,
    ModelContrast,
    Momentum,
    MoreauEnvelope,
    PerFedAvg,
    Proximal,
    ProximalOwn,
    ProxSkipShift,
    Rule,
    Sam,
    Sgd,
    SharedScaling,
    StepDecay,
    TrainingApp,
    TwoPoint,
)
from fl.clients.app.batched import (
    MAX_ROWS,
    PROGRAM_BYTES,
    form_programs,
    gains_from_batching,
    rows_per_program,
)
from fl.clients.app.inbox import MEMORY_KEY
from fl.clients.app.training import Training
from fl.errors import ConfigError
from fl.execution.contract import WORK_KEY
from fl.flower.records import from_record, stack, to_record, vector_record
from fl.models import MLP, CharLSTM, LeafCNN, LogisticRegression, ResNet8

# The same sums in another order: float32 rounding, grown over some tens of steps.
CLOSE = {"rtol": 1e-4, "atol": 2e-6}

UNEQUAL = (12, 7, 25, 1, 5, 10, 33, 6, 2, 16)
RULES = {
    "sgd": Sgd(0.3),
    "nesterov": Sgd(0.1, 0.9, True, 0.01, 1.0, step_schedule=StepDecay(3, 0.5)),
    "proximal": Corrected(Sgd(0.3), Proximal(0.5)),
    "adamw": AdamW(0.02),
    "conservative": Conservative(0.3),
    "adamw kept": AdamW(0.02, keep_moments=True),
    "gradient": Gradient(clip_norm=1.0),
    "direction, sam": Direction(Sam(0.3, rho=0.1)),
    "direction, momentum": Direction(Momentum(0.3, 0.8, 0.01, 1.0)),
    "microadam": MicroAdam(0.01, density=0.1, bucket=8, window=3),
    "microadam kept": MicroAdam(0.01, density=0.1, block=20, window=3, keep_state=True),
    "momentum": Momentum(0.3, 0.8, 0.01, 1.0),
    "sam": Sam(0.3, 0.5, rho=0.1),
    "scaffold": Corrected(Sgd(0.3, step_schedule=StepDecay(3, 0.5)), ControlVariates()),
    "scaffold option I": Corrected(Sgd(0.3, clip_norm=1.0), ControlVariates("I")),
    "scaffold, sgd momentum": Corrected(Sgd(0.1, 0.9, clip_norm=1.0), ControlVariates()),
    "scaffold, sam": Corrected(Sam(0.3, rho=0.1), ControlVariates()),
    "scaffold, adamw kept": Corrected(AdamW(0.02, keep_moments=True), ControlVariates()),
    "scaffold, microadam": Corrected(MicroAdam(0.01, density=0.1, bucket=8), ControlVariates()),
    "dynamic": Corrected(Sgd(0.3), DynamicRegularization()),
    "dynamic, sam": Corrected(Sam(0.3, 0.5, rho=0.1), DynamicRegularization()),
    "proxskip": Corrected(Sgd(0.3), ProxSkipShift()),
    "scaled": Corrected(Sgd(0.01, clip_norm=1.0), SharedScaling()),
    "contrast": Corrected(Sgd(0.3), ModelContrast(2.0)),
    "contrast, sam": Corrected(Sam(0.3, 0.5, rho=0.1), ModelContrast(2.0)),
    "global momentum": Corrected(Sgd(0.3), GlobalMomentum(variance_reduction=True)),
    "controlled momentum": Corrected(Sgd(0.3, 0.5), ControlledMomentum()),
    "hypergradient": Corrected(Sgd(0.1, 0.5), Hypergradient()),
    "ditto, nesterov": Corrected(Sgd(0.1, 0.9, True, clip_norm=1.0), Ditto(0.5)),
    "apfl": Corrected(Sgd(0.3), APFL(0.4, alpha_lr=0.1)),
    "moreau envelope": MoreauEnvelope(0.02, 0.05, 5.0, 3),
    "per-fedavg": PerFedAvg(0.2, 0.1),
    "per-fedavg exact": PerFedAvg(0.2, 0.1, "exact"),
    "proximal, own": Corrected(Sgd(0.3, 0.5), ProximalOwn(0.5)),
    "proximal, adamw": Corrected(AdamW(0.02, clip_norm=1.0), Proximal(0.5)),
    "proximal, momentum": Corrected(Momentum(0.3), Proximal(0.5, clip_first=True)),
    "proximal, sam": Corrected(Sam(0.3, 0.5, rho=0.1), Proximal(0.5)),
}


ESTIMATORS = {
    "two points": TwoPoint(2, density=0.5),
    "blocks": BlockWise(),
    "forward": ForwardGradient(2),
}


@pytest.fixture
def both(message_to, context_of):
    """Runs messages alone and together; returns both lists of replies and of contexts."""

    def run(app, contents, clients=None, dispatch=0, contexts=None):
        clients = range(len(contents)) if clients is None else clients
        messages = [message_to(c, i, dispatch) for c, i in zip(contents, clients, strict=True)]
        alone, together = contexts or (
            [context_of(i) for i in clients],
            [context_of(i) for i in clients],
        )
        keys = {batch_key(app, m, c) for m, c in zip(messages, together, strict=True)}
        assert len(keys) == 1
        assert None not in keys
        singles = [app(m, c) for m, c in zip(messages, alone, strict=True)]
        return (singles, train_many(app, messages, together)), (alone, together)

    return run


def rows(app, replies):
    return stack(app.layout, [reply.content["arrays"] for reply in replies])


def assert_same(app, singles, many):
    np.testing.assert_allclose(rows(app, many), rows(app, singles), **CLOSE)
    for one, other in zip(singles, many, strict=True):
        assert list(one.content) == list(other.content)
        ours, theirs = one.content["metrics"], other.content["metrics"]
        assert list(ours) == list(theirs)
        for key in ours:
            assert type(ours[key]) is type(theirs[key])
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4)
        assert one.metadata.reply_to_message_id == other.metadata.reply_to_message_id
        for name in set(one.content) - {"arrays", "metrics"}:
            np.testing.assert_allclose(
                other.content[name]["vector"].numpy(), one.content[name]["vector"].numpy(), **CLOSE
            )


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("batch_size", [4, pytest.param(10, marks=pytest.mark.slow), None])
def test_clients_of_unequal_size_train_together_as_alone(
    federated, mlp, content_of, both, rule, batch_size
):
    app = TrainingApp(mlp, federated(UNEQUAL), rule, batch_size=batch_size, local_epochs=2)
    content = content_of(mlp, **dict.fromkeys(rule.requires, 0.3))
    for name in rule.needs:
        content[name] = vector_record(torch.linspace(-0.1, 0.1, app.layout.size))
    contexts = None
    for dispatch in range(
        1 if rule.returns_only_the_model else 2
    ):  # the second time with what the first has left
        (singles, many), contexts = both(app, [content] * 10, dispatch=dispatch, contexts=contexts)
        assert_same(app, singles, many)


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_clients_that_estimate_train_together_as_alone(federated, mlp, content_of, both, estimator):
    rule = Conservative(0.05) if isinstance(estimator, ForwardGradient) else Momentum(0.05)
    app = TrainingApp(mlp, federated(UNEQUAL), rule, estimator=estimator, batch_size=10)
    (singles, many), _ = both(app, [content_of(mlp)] * 10)
    np.testing.assert_allclose(rows(app, many), rows(app, singles), rtol=1e-3, atol=1e-4)
    assert not np.allclose(rows(app, many), rows(app, [singles[0]] * 10), rtol=1e-3, atol=1e-4)


def test_clients_with_references_train_together_as_alone(federated, mlp, content_of, both):
    rule = Corrected(Sgd(0.3), ProxSkipShift(variance_reduction=True))
    app = TrainingApp(mlp, federated(UNEQUAL), rule, batch_size=4, local_epochs=2)
    contexts, moved = None, []
    for dispatch, reference in enumerate((True, False, True, False)):
        told = {"proxskip-p": 0.3, "proxskip-reference": reference}
        content = content_of(mlp, **told)
        (singles, many), contexts = both(app, [content] * 10, dispatch=dispatch, contexts=contexts)
        if not reference:  # for which nothing is sent
            assert_same(app, singles, many)
        moved.append(len(many[0].content["arrays"]) > 0)
    assert moved == [False, True, False, True]


def test_clients_that_leave_out_small_last_batches_train_together_as_alone(
    federated, mlp, content_of, both
):
    data = federated(UNEQUAL)
    app = TrainingApp(mlp, data, Sgd(0.3), batch_size=4, local_epochs=2, drop_last=True)
    (singles, many), _ = both(app, [content_of(mlp)] * 10)
    assert_same(app, singles, many)
    steps = [reply.content["metrics"]["steps"] for reply in many]
    assert steps == [2 * max(n // 4, 1) for n in UNEQUAL]


def test_logistic_regression_of_equal_clients_matches_a_plain_torch_loop(
    federated, logistic, content_of, message_to, context_of, torch_loop
):
    import copy

    data = federated((20,) * 6)
    app = TrainingApp(logistic, data, Sgd(0.3, 0.9), batch_size=8, local_epochs=3)
    content = content_of(logistic)
    replies = train_many(
        app, [message_to(content, i) for i in range(6)], [context_of(i) for i in range(6)]
    )
    for i, reply in enumerate(replies):
        expected = torch_loop(
            copy.deepcopy(logistic),
            data,
            lambda p: torch.optim.SGD(p, 0.3, 0.9),
            i,
            batch_size=8,
            epochs=3,
        )
        np.testing.assert_allclose(
            from_record(app.layout, reply.content["arrays"]), expected, **CLOSE
        )


def test_each_message_keeps_its_own_model_configuration_and_work(federated, mlp, content_of, both):
    app = TrainingApp(mlp, federated(UNEQUAL), Sgd(0.3), correction=Proximal(0.1), batch_size=4)
    contents = []
    for i in range(10):
        torch.manual_seed(i // 2)
        content = content_of(
            MLP((6,), 4, hidden=(5,)),
            lr=0.1 + 0.05 * (i % 3),
            proximal_mu=0.3 * (i % 2),
            local_epochs=1 + i % 4,
            deadline_s=1.0,
        )
        content[WORK_KEY] = ConfigRecord({"steps": 3 + i})
        contents.append(content)
    (singles, many), _ = both(app, contents)
    assert len({reply.content["metrics"]["steps"] for reply in many}) > 3
    assert_same(app, singles, many)


def test_one_client_may_appear_more_than_once(federated, mlp, content_of, both):
    # a population larger than the number of partitions
    app = TrainingApp(mlp, federated((12, 7)), Sgd(0.3), batch_size=4)
    (singles, many), _ = both(app, [content_of(mlp)] * 5, clients=[0, 1, 2, 3, 4])
    assert_same(app, singles, many)


def test_results_do_not_depend_on_the_company(federated, mlp, content_of, message_to, context_of):
    app = TrainingApp(mlp, federated(UNEQUAL), Sgd(0.3), batch_size=4, local_epochs=2)
    content = content_of(mlp)

    def train(clients):
        replies = train_many(
            app, [message_to(content, i) for i in clients], [context_of(i) for i in clients]
        )
        return dict(zip(clients, rows(app, replies), strict=True))

    everyone = train(range(10))
    for company in ([3, 1, 4], [9, 8, 7, 6, 5, 0], [2]):
        for client, row in train(company).items():
            np.testing.assert_allclose(row, everyone[client], **CLOSE)


def test_the_same_company_gives_the_same_bits(federated, mlp, content_of, message_to, context_of):
    data = federated(UNEQUAL)

    def train():
        app = TrainingApp(mlp, data, Sgd(0.3, 0.9), batch_size=4, local_epochs=2)
        replies = train_many(
            app,
            [message_to(content_of(mlp), i) for i in range(10)],
            [context_of(i) for i in range(10)],
        )
        return rows(app, replies).tobytes(), [r.content["metrics"] for r in replies]

    assert train() == train()


def test_small_programs_give_what_large_ones_give(federated, mlp, content_of, both, monkeypatch):
    monkeypatch.setattr("fl.clients.app.batched.MAX_ROWS", 3)
    app = TrainingApp(mlp, federated(UNEQUAL), AdamW(0.02, keep_moments=True), batch_size=4)
    (singles, many), (alone, together) = both(app, [content_of(mlp)] * 10)
    assert_same(app, singles, many)
    (singles, many), _ = both(app, [content_of(mlp)] * 10, dispatch=1, contexts=(alone, together))
    assert_same(app, singles, many)


@pytest.mark.parametrize(
    ("rule", "config", "kept"),
    [
        (AdamW(0.02, keep_moments=True), {}, ["m", "v", "steps"]),
        (AdamW(0.02), {"first_step": 4}, ["m", "v", "steps"]),
        (Momentum(0.3), {}, ["m"]),
        (Corrected(Momentum(0.3), ControlVariates()), {}, ["m", "c_i"]),
    ],
    ids=["adamw", "adamw that goes on", "momentum", "momentum and control variates"],
)
def test_memory_goes_through_a_batch(federated, mlp, content_of, both, rule, config, kept):
    app = TrainingApp(mlp, federated(UNEQUAL), rule, batch_size=4)
    content = content_of(mlp, **config)
    for name in rule.needs:
        content[name] = vector_record(torch.linspace(-0.1, 0.1, app.layout.size))
    contents = [content] * 10
    _, (alone, together) = both(app, contents)
    # In the second task some clients are new, and have no memory yet.
    for contexts in (alone, together):
        for i in (2, 5):
            del contexts[i].state[MEMORY_KEY]
    (singles, many), _ = both(app, contents, dispatch=1, contexts=(alone, together))
    assert_same(app, singles, many)
    for one, other in zip(alone, together, strict=True):
        ours, theirs = one.state[MEMORY_KEY], other.state[MEMORY_KEY]
        assert list(ours) == list(theirs) == kept
        for name in ours:
            np.testing.assert_allclose(theirs[name].numpy(), ours[name].numpy(), **CLOSE)
            assert theirs[name].dtype == ours[name].dtype


class Scaffold(Rule):
    """SCAFFOLD, option II, with everything a rule can have."""

    needs = ("c",)
    uploads = ("c-change",)

    def scalars(self, config):
        return {"lr": float(config.get("lr", 0.2))}

    def first_memory(self, w, scalars):
        return {"c_i": torch.zeros_like(w)}

    def init(self, received):
        return {"examples": torch.zeros(())}

    def step(self, w, state, received, batch, t):
        g, loss = batch.grad(w)
        lr = received.scalars["lr"]
        w = w - lr * (g - received.memory["c_i"] + received.server["c"])
        return w, {"examples": state["examples"] + batch.examples}, loss + 0 * batch.loss(w)

    def finish(self, w, state, received, steps):
        old, c = received.memory["c_i"], received.server["c"]
        new = old - c + (received.w - w) / (steps * received.scalars["lr"])
        return Finished(w, {"c-change": new - old}, {"c_i": new, "examples": state["examples"]})


@pytest.mark.parametrize("shared", [True, False])
def test_a_rule_with_server_vector_memory_and_uploads_trains_together(
    federated, mlp, content_of, both, shared
):
    app = TrainingApp(mlp, federated(UNEQUAL), Scaffold(), batch_size=4, local_epochs=2)
    d = app.layout.size
    vectors = [torch.linspace(-0.1, 0.1, d) * (1 if shared else i) for i in range(10)]
    common = vector_record(vectors[1])
    contents = []
    for i in range(10):
        content = content_of(mlp)
        content["c"] = common if shared else vector_record(vectors[i])
        contents.append(content)
    contexts = None
    for dispatch in range(2):
        (singles, many), contexts = both(app, contents, dispatch=dispatch, contexts=contexts)
        assert_same(app, singles, many)
        for i, (one, other) in enumerate(zip(*contexts, strict=True)):
            ours, theirs = one.state[MEMORY_KEY], other.state[MEMORY_KEY]
            np.testing.assert_allclose(theirs["c_i"].numpy(), ours["c_i"].numpy(), **CLOSE)
            # Padding is not counted.
            assert theirs["examples"].numpy() == ours["examples"].numpy() == 2 * UNEQUAL[i]


def test_token_models_without_recurrence_train_together(content_of, both):
    from fl.data import Examples, FederatedData
    from fl.data.federated import Partitions

    class Bigram(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 5)
            self.norm = nn.LayerNorm(5)
            self.out = nn.Linear(5, 7)

        def forward(self, x):
            return self.out(self.norm(self.embedding(x)))

    rng = np.random.default_rng(0)
    x = rng.integers(0, 7, (30, 9)).astype(np.uint8)
    y = rng.integers(0, 7, (30, 9))
    data = FederatedData(
        "text",
        Examples(x, y),
        Examples(x[:1], y[:1]),
        Partitions.contiguous((4, 9, 1, 16)),
        7,
        (9,),
        "next-token",
    )
    torch.manual_seed(0)
    model = Bigram()
    app = TrainingApp(model, data, Sgd(0.5), batch_size=4)
    (singles, many), _ = both(app, [content_of(model)] * 4)
    assert_same(app, singles, many)


def test_clients_without_work_are_answered_in_their_place(
    federated, mlp, content_of, message_to, context_of
):
    app = TrainingApp(mlp, federated((5, 0, 7, 0)), Sgd(0.3), batch_size=4)
    messages = [message_to(content_of(mlp), i) for i in range(4)]
    replies = train_many(app, messages, [context_of(i) for i in range(4)])
    assert [r.content["metrics"]["num-examples"] for r in replies] == [5, 0, 7, 0]
    assert [r.metadata.reply_to_message_id for r in replies] == ["0.0", "1.0", "2.0", "3.0"]
    assert train_many(app, [], []) == []


def test_replies_of_one_program_are_rows_of_one_matrix(
    federated, mlp, content_of, message_to, context_of
):
    app = TrainingApp(mlp, federated((8,) * 5), Sgd(0.3), batch_size=4)
    arrays = to_record(app.layout, app.layout.flatten(mlp.state_dict()))
    replies = train_many(
        app,
        [message_to(content_of(arrays), i) for i in range(5)],
        [context_of(i) for i in range(5)],
    )
    matrix = rows(app, replies)
    for i, reply in enumerate(replies):
        assert np.shares_memory(from_record(app.layout, reply.content["arrays"]), matrix[i])


def test_a_rule_that_vmap_cannot_take_says_so(federated, mlp, content_of, message_to, context_of):
    class Branching(Sgd):
        batchable = False

    app = TrainingApp(mlp, federated((8, 8)), Branching(0.1))
    message = message_to(content_of(mlp))
    assert why_alone(app, message, context_of()) == "Branching trains one client at a time"
    with pytest.raises(ConfigError, match="Branching trains one client at a time"):
        train_many(app, [message, message_to(content_of(mlp), 1)], [context_of(), context_of(1)])


# ---- forming programs ----------------------------------------------------------------------------


def task(examples: int, steps: int, batch_size: int | None = 10) -> Training:
    row, rows = np.zeros(1, np.float32), np.arange(examples)
    return Training(0, 0, "0.0", rows, row, {}, {}, None, {}, steps, batch_size, None)


def test_programs_hold_one_width_and_most_steps_first():
    sizes = [3, 40, 4, 9, 5, 10, 8, 1, 100, 2]
    tasks = [task(n, -(-n // 10)) for n in sizes]
    programs = form_programs(tasks, MAX_ROWS)
    assert sorted(i for members in programs for i in members) == list(range(10))
    widths = [{min(16, 1 << (min(sizes[i], 10) - 1).bit_length()) for i in p} for p in programs]
    assert all(len(w) == 1 for w in widths)
    for members in programs:
        steps = [tasks[i].steps for i in members]
        assert steps == sorted(steps, reverse=True)
        for i in range(1, len(members)):
            if steps[i] == steps[i - 1]:
                assert members[i] > members[i - 1]


@pytest.mark.parametrize("batch_size", [1, 3, 10, 32, None])
def test_less_than_half_of_the_examples_computed_are_padding(batch_size):
    rng = np.random.default_rng(0)
    sizes = np.ceil(rng.pareto(0.8, 200) * 3 + 1e-9).astype(int).clip(1, 5000)
    tasks = [task(int(n), -(-int(n) // (batch_size or int(n))), batch_size) for n in sizes]
    computed = real = 0
    for members in form_programs(tasks, MAX_ROWS):
        n = sizes[members]
        for t in range(tasks[members[0]].steps):
            left = n - t * batch_size if batch_size else n
            lengths = np.minimum(left[left > 0], batch_size or left.max())
            computed += lengths.max() * len(lengths)
            real += lengths.sum()
    assert real == sizes.sum()
    assert computed < 2 * real


def test_a_program_is_bounded_in_memory_and_number():
    assert rows_per_program(1) == MAX_ROWS
    assert rows_per_program(50_890) * 50_890 * 4 <= PROGRAM_BYTES
    assert rows_per_program(10**9) == 1
    tasks = [task(5, 1)] * (2 * MAX_ROWS + 1)
    assert [len(p) for p in form_programs(tasks, rows_per_program(1))] == [341, 342, 342]


# ---- what gains ----------------------------------------------------------------------------------


class OwnParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.inner = nn.Linear(2, 2)

    def forward(self, x):
        return self.inner(x) * self.scale


@pytest.mark.parametrize(
    ("model", "gains", "reason"),
    [
        (MLP((28, 28), 10), True, ""),
        (LogisticRegression((60,), 10), True, ""),
        (nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3), nn.GELU(), nn.Linear(3, 2)), True, ""),
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0)), True, ""),
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1)), False, "dropout '1' draws numbers"),
        (nn.Sequential(nn.Linear(3, 3), nn.RReLU()), False, "RReLU '1' draws numbers"),
        (LeafCNN((1, 28, 28), 10, width=10), False, "Conv2d 'features.0'"),
        (ResNet8((3, 32, 32), 10), False, "Conv2d 'stem.0'"),
        (CharLSTM((80,), 50, hidden=8, layers=1), False, "LSTM 'lstm'"),
        (MLP((784,), 10, hidden=(512, 512)), False, "669706 parameters are more than 150000"),
        (nn.MultiheadAttention(4, 2), False, "attention ''"),
        (OwnParameter(), False, "OwnParameter ''"),
    ],
)
def test_gains_follow_from_the_structure(model, gains, reason):
    got, why = gains_from_batching(model)
    assert got is gains
    assert why.startswith(reason)


class HiddenDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 4)

    def forward(self, x):
        return nn.functional.dropout(self.inner(x), 0.5, self.training)


class HiddenBranch(HiddenDropout):
    def forward(self, x):
        x = self.inner(x)
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("kind", [HiddenDropout, HiddenBranch])
def test_code_that_vmap_cannot_take_is_found_out_and_trains_alone(
    federated, content_of, message_to, context_of, kind
):
    assert gains_from_batching(kind()) == (True, "")
    app = TrainingApp(kind, federated((8, 8)), Sgd(0.1))
    message = message_to(content_of(kind()))
    assert batch_key(app, message, context_of()) is None
    assert why_alone(app, message, context_of()).startswith("vmap cannot take the model: ")
    assert app(message, context_of()).content["metrics"]["steps"] == 1


def test_one_request_gives_the_bits_of_one_message(
    federated, mlp, content_of, message_to, context_of
):
    app = TrainingApp(mlp, federated((8, 8)), AdamW(0.02, keep_moments=True), batch_size=3)
    message, (ours, theirs) = message_to(content_of(mlp), 1), (context_of(1), context_of(1))
    for _ in range(2):  # the second goes on from what the first has left
        (reply,), expected = train_many(app, [message], [ours]), app(message, theirs)
        assert reply.content == expected.content
        assert ours.state == theirs.state
