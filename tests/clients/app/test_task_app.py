"""The ClientApp of several learning tasks does for each what its part does alone."""

from dataclasses import replace

import numpy as np
import pytest
from many_cases import for_each
from together import batch_key, train_many

from fl.clients import AdamW, Sgd, TaskApp, TrainingApp
from fl.clients.app.inbox import MEMORY_KEY
from fl.errors import ConfigError
from fl.execution.contract import Payload
from fl.flower.records import from_record

SIZES = (12, 7, 25)


@pytest.fixture
def parts(federated, mlp, logistic):
    data = federated(SIZES)
    return {
        "deep": TrainingApp(mlp, data, AdamW(0.02, keep_moments=True), batch_size=5),
        "flat": TrainingApp(logistic, data, Sgd(0.1), batch_size=4, local_epochs=2),
    }


@pytest.fixture
def models(mlp, logistic):
    return {"deep": mlp, "flat": logistic}


@pytest.mark.parametrize("task", ["deep", "flat"])
@for_each("kind", ["train", "evaluate", "query"])
def test_a_message_is_answered_by_the_part_it_names(
    parts, models, content_of, message_to, context_of, task, kind
):
    app = TaskApp(parts)
    content = content_of(models[task], task=task)
    ours = app(message_to(content, 1, kind=kind), context_of(1))
    alone = parts[task](message_to(content, 1, kind=kind), context_of(1))
    assert dict(ours.content["metrics"]) == dict(alone.content["metrics"])
    if kind == "train":
        rows = [from_record(parts[task].layout, r.content["arrays"]) for r in (ours, alone)]
        assert np.array_equal(*rows)


def test_parts_keep_their_states_apart(parts, models, content_of, message_to, context_of):
    both = {"one": parts["deep"], "two": parts["deep"]}
    app, context, alone = TaskApp(both), context_of(0), context_of(0)
    content = {task: content_of(models["deep"], task=task) for task in both}
    app(message_to(content["one"], 0, 0), context)
    parts["deep"](message_to(content["one"], 0, 0), alone)
    assert set(context.state) == {f"one/{MEMORY_KEY}"}
    first = context.state[f"one/{MEMORY_KEY}"]
    app(message_to(content["two"], 0, 1), context)
    assert set(context.state) == {f"one/{MEMORY_KEY}", f"two/{MEMORY_KEY}"}
    assert context.state[f"one/{MEMORY_KEY}"] is first
    # The second task of "one" goes on with its own moments, as if "two" had not been.
    again = app(message_to(content["one"], 0, 2), context)
    expected = parts["deep"](message_to(content["one"], 0, 2), alone)
    layout = parts["deep"].layout
    assert np.array_equal(
        from_record(layout, again.content["arrays"]),
        from_record(layout, expected.content["arrays"]),
    )


def test_work_is_planned_by_the_part(parts, models, content_of):
    app = TaskApp(parts)
    for task, part in parts.items():
        content = content_of(models[task], task=task, local_steps=3)
        asked = Payload(content), "train", 2, 1e-9
        # One of the parts keeps something, which comes back with every reply.
        assert app.plan(*asked) == replace(part.plan(*asked), reply_bytes=None)
    assert app.memory_bytes() == max(part.memory_bytes() for part in parts.values())


def test_only_messages_of_one_task_train_together_and_give_what_they_give_alone(
    parts, models, content_of, message_to, context_of
):
    app = TaskApp(parts)
    contents = {task: content_of(models[task], task=task) for task in parts}
    keys = {
        task: {batch_key(app, message_to(contents[task], i), context_of(i)) for i in range(3)}
        for task in parts
    }
    assert len(keys["deep"]) == len(keys["flat"]) == 1
    assert keys["deep"] != keys["flat"]
    contexts = [context_of(i) for i in range(3)]
    together = train_many(app, [message_to(contents["deep"], i) for i in range(3)], contexts)
    for i, reply in enumerate(together):
        context = context_of(i)
        alone = app(message_to(contents["deep"], i), context)
        layout = parts["deep"].layout
        np.testing.assert_allclose(
            from_record(layout, reply.content["arrays"]),
            from_record(layout, alone.content["arrays"]),
            rtol=1e-4,
            atol=2e-6,
        )
        assert set(contexts[i].state) == set(context.state) == {f"deep/{MEMORY_KEY}"}


@pytest.mark.parametrize("config", [{}, {"task": "other"}, {"task": 3}])
def test_a_message_for_no_task_is_refused(
    parts, models, content_of, message_to, context_of, config
):
    app = TaskApp(parts)
    message = message_to(content_of(models["deep"], **config), 0)
    assert batch_key(app, message, context_of(0)) is None
    with pytest.raises(ConfigError, match="the tasks are deep, flat"):
        app(message, context_of(0))


@pytest.mark.parametrize(
    ("names", "words"), [([], "there are no tasks"), (["a/b"], "leave slashes out")]
)
def test_impossible_tasks_are_refused(parts, names, words):
    with pytest.raises(ConfigError, match=words):
        TaskApp(dict.fromkeys(names, parts["deep"]))
