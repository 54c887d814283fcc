"""What `fl.flower.private` relies on: the versions of Flower, and what each private part means."""

import gc
import inspect
import weakref
from importlib.metadata import version

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.server import Server, SimpleClientManager
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedAvgM, Strategy

from fl.flower.content import content_of
from fl.flower.private import (
    CHECKED_WITH,
    Run,
    copied,
    empty_run,
    give_id,
    message_of,
    older_conversions,
    older_server,
    promised,
    reply_metadata,
    restore,
    set_fields,
    set_identity,
    state_of,
    trusted_record,
    view_of,
    wrapping,
)

FIELDS = [name for name in inspect.signature(Metadata).parameters] + ["delivered_at"]


@pytest.fixture(autouse=True)
def identity():
    set_identity(run_id=5, node_id=1)


def metadata(**fields) -> Metadata:
    known = {
        "run_id": 5,
        "message_id": "2.7",
        "src_node_id": 1,
        "dst_node_id": 3,
        "reply_to_message_id": "",
        "group_id": "4",
        "created_at": 10.0,
        "ttl": 60.0,
        "message_type": "train",
        "src_task_id": 11,
        "dst_task_id": 13,
    }
    return Metadata(**known | fields)


def values(of: Metadata) -> dict:
    return {name: getattr(of, name) for name in FIELDS}


def content() -> RecordDict:
    return RecordDict({"metrics": MetricRecord({"x": 1})})


# ---- Flower itself -------------------------------------------------------------------------------


def test_the_installed_version_was_checked():
    assert version("flwr") in CHECKED_WITH


def test_an_identity_is_what_new_messages_are_from():
    set_identity(run_id=8, node_id=9)
    made = Message(RecordDict(), 3, "train").metadata
    assert (made.run_id, made.src_node_id, made.src_task_id) == (8, 9, 9)


def test_a_run_is_what_a_grid_has_to_return():
    assert inspect.signature(Grid.run.fget).return_annotation in (Run, "Run")
    assert empty_run(6).run_id == 6


# ---- messages ------------------------------------------------------------------------------------


def test_a_message_is_three_fields_and_its_metadata_twelve():
    message = Message(content(), 3, "train")
    assert vars(message).keys() == {"_metadata", "_content", "_error"}
    assert vars(message.metadata).keys() == {f"_{name}" for name in FIELDS}


@pytest.mark.parametrize("given", [{"content": content()}, {"error": Error(3, "why")}])
def test_a_message_of_metadata_is_what_flowers_constructor_makes(given):
    ours, theirs = message_of(metadata(), **given), Message(metadata=metadata(), **given)
    assert type(ours) is Message
    assert vars(ours).keys() == vars(theirs).keys()
    assert values(ours.metadata) == values(theirs.metadata)
    assert (ours.has_content(), ours.has_error()) == (theirs.has_content(), theirs.has_error())
    assert ours.deflate() == theirs.deflate()


def test_a_message_of_nothing_is_filled_by_its_setters():
    filled, failed = message_of(metadata()), message_of(metadata())
    assert not filled.has_content()
    assert not filled.has_error()
    filled.content, failed.error = content(), Error(3, "why")
    assert filled.content == content()
    assert not filled.has_error()
    assert failed.error.code == 3
    assert not failed.has_content()


def test_a_given_id_is_the_messages_id():
    message = Message(RecordDict(), 3, "train")
    give_id(message, "2.7")
    assert message.metadata.message_id == "2.7"
    assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == "2.7"


def test_copied_metadata_is_equal_and_its_own():
    original = message_of(metadata()).metadata
    copy = copied(original)
    assert values(copy) == values(original)
    copy.group_id = "other"
    assert original.group_id == "4"


def test_the_metadata_of_a_reply_is_flowers_apart_from_its_name_and_time():
    sent = message_of(metadata(), content=content())
    ours = values(message_of(reply_metadata(sent.metadata, 3, 25.0)).metadata)
    theirs = values(Message(content(), reply_to=sent).metadata)
    own = {"message_id": "2.7.reply", "created_at": 25.0, "ttl": 60.0}  # its TTL still counts from
    assert ours == theirs | own  # when the message was made


def test_a_promised_message_is_fetched_at_the_first_look_and_then_like_any_other():
    fetched = []

    def fetch(message: Message) -> None:
        fetched.append(message)
        message.content = content()

    message = promised(message_of(metadata()), fetch)
    assert message.metadata.message_id == "2.7"
    assert isinstance(message, Message)
    assert not fetched
    assert message.has_content()
    assert message.content == content()
    assert fetched == [message]
    assert type(message) is Message
    assert vars(message).keys() == {"_metadata", "_content", "_error"}


def test_setting_a_promised_messages_content_fetches_it_first():
    message = promised(message_of(metadata()), lambda message: None)
    message.content = content()
    assert type(message) is Message
    assert message.content == content()


# ---- arrays and records --------------------------------------------------------------------------


def test_an_array_of_given_fields_is_what_flowers_constructor_makes():
    theirs = Array(np.arange(3.0))
    ours = Array.__new__(Array)
    set_fields(ours, {name: getattr(theirs, name) for name in ("dtype", "shape", "stype", "data")})
    assert ours == theirs
    assert ours.is_dirty
    assert ours.object_id == theirs.object_id
    assert not ours.is_dirty
    ours.data = Array(np.ones(3)).data  # noted again
    assert ours.object_id == Array(np.ones(3)).object_id != theirs.object_id


@pytest.mark.parametrize(
    ("kind", "items"),
    [
        (MetricRecord, {"a": 1, "b": 2.0}),
        (ConfigRecord, {"a": "x"}),
        (ArrayRecord, {"a": Array(np.ones(2))}),
        (RecordDict, {"a": MetricRecord({"b": 1})}),
    ],
)
def test_trusted_records_are_what_flower_would_have_made(kind, items):
    ours, theirs = trusted_record(kind, dict(items)), kind(dict(items))
    assert type(ours) is type(theirs)
    assert ours == theirs
    later = {"_is_dirty"}  # which an ArrayRecord looks for, and makes where it is missing
    assert vars(theirs).keys() - later <= vars(ours).keys() <= vars(theirs).keys()
    assert ours.deflate() == theirs.deflate()
    with pytest.raises(TypeError):
        ours["bad"] = object()  # later changes are checked again


def test_views_of_our_content_are_flowers_and_let_go_of_it():
    items = {"a": ArrayRecord({}), "m": MetricRecord({"x": 1}), "c": ConfigRecord({"y": 2})}
    ours, theirs = content_of(dict(items)), RecordDict(dict(items))
    for view in ("array_records", "metric_records", "config_records"):
        made, flowers = getattr(ours, view), getattr(theirs, view)
        assert dict(made) == dict(flowers)
        assert type(made) is type(flowers)
        assert vars(made).keys() == vars(flowers).keys() - {"__orig_class__"}  # of `Generic`
    ours.metric_records["n"] = MetricRecord({"z": 3})
    assert ours["n"]["z"] == 3
    del ours.metric_records["n"]
    assert ours == theirs
    assert ours.deflate() == theirs.deflate()
    with pytest.raises(TypeError):
        ours.metric_records["n"] = ConfigRecord()
    gone = weakref.ref(ours)
    gc.disable()
    try:
        del ours, made
        assert gone() is None  # without the garbage collector: nothing refers to itself
    finally:
        gc.enable()


def test_a_view_follows_any_record_dict():
    ours = content()
    view_of(ours, MetricRecord)["n"] = MetricRecord({"z": 3})
    assert ours["n"]["z"] == 3


# ---- strategies and older servers ----------------------------------------------------------------


def test_a_restored_strategy_takes_the_step_that_it_would_have_taken():
    def reply(value: float) -> Message:
        records = {
            "arrays": ArrayRecord([np.full(2, value)]),
            "metrics": MetricRecord({"num-examples": 1}),
        }
        return message_of(metadata(), content=RecordDict(records))

    def step(strategy: FedAvgM, value: float) -> list[float]:
        arrays, _ = strategy.aggregate_train(2, [reply(value)])
        return arrays.to_numpy_ndarrays()[0].tolist()

    kinds = [FedAvgM(server_momentum=0.5) for _ in range(2)]
    for strategy in kinds:
        strategy.current_arrays = ArrayRecord([np.zeros(2)])
        step(strategy, 1.0)
    before = state_of(kinds[0])
    step(kinds[0], -7.0)
    restore(kinds[0], before)
    assert step(kinds[0], 3.0) == step(kinds[1], 3.0)


def test_a_method_is_wrapped_in_the_block_only_and_where_it_is_defined():
    class Own(FedAvg):
        def start(self, *args, **kwargs):
            return "own"

    original, called = Strategy.start, []

    def wrap(start):
        def wrapped(self, *args, **kwargs):
            called.append(type(self).__name__)
            return start(self, *args, **kwargs)

        return wrapped

    with wrapping(Strategy, "start", wrap):
        assert Own().start() == "own"
        assert not called
        assert Strategy.start is not original
    with wrapping(Strategy, "start", wrap, subclasses=True):
        assert Own().start() == "own"
        assert called == ["Own"]
    assert Strategy.start is original
    assert Own().start() == "own"
    assert called == ["Own"]


def test_a_class_that_is_made_in_the_block_is_wrapped_as_well():
    called = []

    def wrap(start):
        def wrapped(self):
            called.append(type(self).__name__)
            return start(self)

        return wrapped

    with wrapping(Strategy, "start", wrap, subclasses=True):

        class Noting(FedAvg):
            def __init_subclass__(cls, word, **kwargs):
                super().__init_subclass__(**kwargs)
                cls.word = word

        class Late(Noting, word="later"):
            def start(self):
                return self.word

        class Plain(Noting, word="plain"):
            pass

        assert Late().start() == "later"
    assert called == ["Late"]
    assert Plain.start is Strategy.start
    assert Late().start() == "later"
    assert called == ["Late"]
    assert "__init_subclass__" not in vars(Strategy)


def test_an_older_server_sends_by_the_functions_that_are_put_in():
    asked = []

    def exchange(name, results):
        def sent(client_instructions, max_workers, timeout, group_id):
            asked.append((name, client_instructions, timeout, group_id))
            return results, []

        return sent

    class Older:
        def configure_fit(self, server_round, parameters, client_manager):
            assert client_manager.wait_for(3)
            return ["fit"]

        def aggregate_fit(self, server_round, results, failures):
            return results, {}

        def configure_evaluate(self, server_round, parameters, client_manager):
            return ["evaluate"]

        def aggregate_evaluate(self, server_round, results, failures):
            return results, {}

    manager = SimpleClientManager()
    server = Server(client_manager=manager, strategy=Older())
    with older_server(
        fit_clients=exchange("fit", "fitted"),
        evaluate_clients=exchange("evaluate", "evaluated"),
        wait_for=lambda self, num_clients, timeout=1: num_clients == 3,
    ):
        assert server.fit_round(2, 7.0)[0] == "fitted"
        assert server.evaluate_round(2, 7.0)[0] == "evaluated"
    assert asked == [("fit", ["fit"], 7.0, 2), ("evaluate", ["evaluate"], 7.0, 2)]
    assert not manager.wait_for(1, timeout=0)  # Flower's own again


def test_the_conversions_of_older_messages_are_there():
    from flwr.common import FitIns, Parameters

    conversions = older_conversions()
    given = FitIns(Parameters([b"a"], "numpy"), {"lr": 0.1})
    sent = conversions.fitins_to_recorddict(given, keep_input=True)
    assert conversions.recorddict_to_fitins(sent, keep_input=True) == given
    for name in ("evaluateins_to_recorddict", "recorddict_to_fitres", "recorddict_to_evaluateres"):
        assert callable(getattr(conversions, name))
    record = conversions.parameters_to_arrayrecord(given.parameters, keep_input=True)
    assert [array.data for array in record.values()] == [b"a"]
