import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.util.tensor_util import make_ndarray

from fl.reports.client_rows import ClientRow
from fl.reports.target import Target
from fl.reports.tensorboard_log import TensorBoardLog, flattened

HPARAMS = {"lr": 0.1, "strategy.name": "fedavg", "robust": True, "clients": 10}


def read(directory):
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    accumulator.Reload()
    return accumulator


def plugin_data(accumulator):
    return {
        tag: value
        for tag in accumulator.PluginTagToContent("hparams")
        for value in [accumulator.PluginTagToContent("hparams")[tag]]
    }


def test_wall_time_is_virtual_time_and_step_is_the_round(tmp_path, row):
    log = TensorBoardLog(tmp_path, HPARAMS, None)
    log.evaluation(row(0, 0.0, accuracy=0.125))
    log.evaluation(row(3, 7200.5, accuracy=0.75, train_loss=0.5))
    scalars = read(tmp_path).Scalars("metrics/accuracy")
    assert [(s.wall_time, s.step, s.value) for s in scalars] == [(0.0, 0, 0.125), (7200.5, 3, 0.75)]
    (loss,) = read(tmp_path).Scalars("metrics/train_loss")
    assert (loss.wall_time, loss.step, loss.value) == (7200.5, 3, 0.5)


def test_clients_are_counted_once_for_each_model_in_the_bin_of_their_accuracy(tmp_path):
    accuracies = {"global": [0.0, 0.5, 0.5, 0.549], "personal": [1.0, 0.951, 0.949, 0.05]}
    rows = [
        ClientRow(i, 10, {name: (0.1, of[i]) for name, of in accuracies.items()}) for i in range(4)
    ]
    log = TensorBoardLog(tmp_path, HPARAMS, None)
    log.clients(4, 60.5, rows)
    log.clients(5, 70.0, [])
    found = {}
    for name in accuracies:
        (event,) = read(tmp_path).Tensors(f"metrics/{name}_accuracy/histogram")
        assert (event.wall_time, event.step) == (60.5, 4)
        buckets = make_ndarray(event.tensor_proto)
        assert buckets.shape == (20, 3)
        found[name] = {tuple(b[:2]): b[2] for b in buckets.tolist() if b[2]}
    assert found == {
        "global": {(0.0, 0.05): 1, (0.5, 0.55): 3},
        "personal": {(0.05, 0.1): 1, (0.9, 0.95): 1, (0.95, 1.0): 2},
    }


def test_every_evaluation_is_on_disk_at_once(tmp_path, row):
    log = TensorBoardLog(tmp_path, HPARAMS, None)
    log.evaluation(row(0, 0.0, accuracy=0.5))  # of the first model: written with the second
    for r in range(1, 4):
        log.evaluation(row(r, float(r), accuracy=0.5))
        assert len(read(tmp_path).Scalars("metrics/accuracy")) == r + 1


def test_costs_are_scalars_too(tmp_path, row):
    log = TensorBoardLog(tmp_path, HPARAMS, None)
    log.evaluation(row(2, 9.0, accuracy=0.5))
    accumulator = read(tmp_path)
    costs = {
        tag: accumulator.Scalars(tag)[0].value
        for tag in accumulator.Tags()["scalars"]
        if tag.startswith("cost/")
    }
    assert costs == {
        "cost/time_s": 9.0,
        "cost/wall_s": 2.0,
        "cost/bytes_down": 2000.0,
        "cost/bytes_up": 1000.0,
        "cost/energy_j": 20.0,
    }


def test_bytes_are_a_step_axis_beyond_32_bits(tmp_path, row):
    log = TensorBoardLog(tmp_path, HPARAMS, None)
    evaluation = row(1, 5.0, accuracy=0.5)
    evaluation["bytes_down"], evaluation["bytes_up"] = 2**52, 7
    log.evaluation(evaluation)
    (scalar,) = read(tmp_path).Scalars("by_bytes/accuracy")
    assert (scalar.wall_time, scalar.step, scalar.value) == (5.0, 2**52 + 7, 0.5)


def test_a_metric_with_a_slash_keeps_its_group(tmp_path, row):
    log = TensorBoardLog(tmp_path, HPARAMS, None)
    log.evaluation(row(1, 1.0, **{"client/accuracy": 0.5}))
    assert read(tmp_path).Scalars("client/accuracy")[0].value == 0.5


def test_a_diverged_metric_is_written_as_nan(tmp_path, row):
    log = TensorBoardLog(tmp_path, HPARAMS, None)
    log.evaluation(row(1, 1.0, loss=math.nan))
    assert math.isnan(read(tmp_path).Scalars("metrics/loss")[0].value)


def test_hyperparameters_are_in_the_same_directory_as_the_scalars(tmp_path, row):
    log = TensorBoardLog(tmp_path, HPARAMS, Target("accuracy", 0.9))
    log.evaluation(row(1, 1.0, accuracy=0.5))
    log.finish(8.0, 1, True, {"best/accuracy": 0.5})
    assert [path.name for path in tmp_path.iterdir()] == [log.path.name]

    contents = read(tmp_path).PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG])
    values = {
        name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()
    }
    assert values == HPARAMS
    end = metadata.parse_session_end_info_plugin_data(contents[metadata.SESSION_END_INFO_TAG])
    assert (end.status, end.end_time_secs) == (1, 8.0)  # STATUS_SUCCESS
    experiment = metadata.parse_experiment_plugin_data(contents[metadata.EXPERIMENT_TAG])
    assert {info.name: info.type for info in experiment.hparam_infos} == {
        "lr": 3,  # DATA_TYPE_FLOAT64
        "strategy.name": 1,  # DATA_TYPE_STRING
        "robust": 2,  # DATA_TYPE_BOOL
        "clients": 3,
    }
    tags = {info.name.tag for info in experiment.metric_infos}
    assert {"metrics/accuracy", "best/accuracy", "to_target/time_s"} <= tags
    (best,) = read(tmp_path).Scalars("best/accuracy")
    assert (best.wall_time, best.step, best.value) == (8.0, 1, 0.5)


def test_a_failed_run_is_marked_as_failed(tmp_path):
    TensorBoardLog(tmp_path, HPARAMS, None).finish(8.0, 1, False, {})
    contents = read(tmp_path).PluginTagToContent("hparams")
    end = metadata.parse_session_end_info_plugin_data(contents[metadata.SESSION_END_INFO_TAG])
    assert end.status == 2  # STATUS_FAILURE


@pytest.mark.parametrize("finished", [True, False])
def test_the_hparams_page_shows_a_run_that_moved_more_than_2_gib(tmp_path, row, finished):
    # The plugin keeps steps in 32 bits and fails on more, so it must not be led to by_bytes.
    log = TensorBoardLog(tmp_path / "run", HPARAMS, None)
    evaluation = row(4, 5.0, accuracy=0.5)
    evaluation["bytes_down"] = 2**40
    log.evaluation(evaluation)
    if finished:
        log.finish(5.0, 4, True, {"best/accuracy": 0.5})
    (group,) = session_groups(tmp_path)
    shown = {value.name.tag: value.value for value in group.metric_values}
    assert shown["metrics/accuracy"] == 0.5
    assert shown["cost/bytes_down"] == 2**40
    assert group.hparams["lr"].number_value == 0.1


def session_groups(logdir):
    """What the hparams page of TensorBoard would list."""
    from tensorboard import context
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(logdir))
    backend = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    request_context = context.RequestContext()
    experiment = backend.experiment_from_metadata(
        request_context,
        "",
        True,
        backend.hparams_metadata(request_context, ""),
        backend.hparams_from_data_provider(request_context, "", None),
    )
    columns = [
        api_pb2.ColParams(metric=info.name, include_in_result=True)
        for info in experiment.metric_infos
    ]
    columns += [
        api_pb2.ColParams(hparam=info.name, include_in_result=True)
        for info in experiment.hparam_infos
    ]
    request = api_pb2.ListSessionGroupsRequest(
        col_params=columns, slice_size=10, allowed_statuses=[0, 1, 2, 3], include_metrics=True
    )
    handler = list_session_groups.Handler(request_context, backend, "", request)
    return handler.run().session_groups


def test_an_earlier_attempt_is_not_mixed_in(tmp_path, row):
    first = TensorBoardLog(tmp_path, HPARAMS, None)
    first.evaluation(row(9, 9.0, accuracy=0.9))
    second = TensorBoardLog(tmp_path, HPARAMS, None)
    second.evaluation(row(1, 1.0, accuracy=0.1))
    assert [s.step for s in read(tmp_path).Scalars("metrics/accuracy")] == [1]


def test_flattened_joins_names_with_dots():
    config = {"a": {"b": 1, "c": {"d": "x"}}, "e": None, "f": [1, "y"], "g": False, "h": 0.5}
    assert flattened(config) == {
        "a.b": 1,
        "a.c.d": "x",
        "e": "null",
        "f": '[1, "y"]',
        "g": False,
        "h": 0.5,
    }
