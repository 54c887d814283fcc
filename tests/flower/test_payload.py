"""What messages weigh, against Flower's own count, and copies that later changes cannot reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common import ndarrays_to_parameters
from flwr.compat.common.recorddict_compat import parameters_to_arrayrecord
from torch import nn

from fl.flower.payload import num_scalars, payload_bytes, snapshot
from fl.flower.records import from_record, to_record
from fl.vectors.layout import Layout

ARRAYS = ArrayRecord({"w": Array(np.ones((3, 4), np.float32)), "bias": Array(np.zeros(4))})
CONFIG = ConfigRecord(
    {
        "i": 1,
        "x": 0.5,
        "yes": True,
        "text": "abc",
        "raw": b"abcde",
        "ints": [1, 2, 3],
        "flags": [True, False],
        "texts": ["a", "bcd"],
        "raws": [b"", b"xy"],
    }
)
METRICS = MetricRecord({"n": 7, "loss": 0.1, "curve": [0.1, 0.2, 0.3], "counts": [1]})


@pytest.mark.parametrize("record", [ARRAYS, CONFIG, METRICS], ids=["arrays", "config", "metrics"])
def test_a_record_weighs_what_flower_counts(record) -> None:
    assert payload_bytes(RecordDict({"name": record})) == record.count_bytes()


def test_a_message_weighs_the_sum_of_its_records() -> None:
    content = RecordDict({"arrays": ARRAYS, "config": CONFIG, "metrics": METRICS})
    assert payload_bytes(content) == sum(record.count_bytes() for record in content.values())
    assert payload_bytes(RecordDict()) == 0


def test_the_count_by_hand() -> None:
    # Two .npy headers of 128 bytes; 12 float32 and 4 float64; keys of 1 and 4 letters.
    assert payload_bytes(RecordDict({"arrays": ARRAYS})) == 2 * 128 + 12 * 4 + 4 * 8 + 1 + 4
    # Four numbers, two of them in a list, and a boolean; keys of 1 letter.
    record = ConfigRecord({"a": 1, "b": 2.0, "c": [3, 4], "d": False})
    assert payload_bytes(RecordDict({"config": record})) == 4 * 8 + 1 + 4


def test_values_that_flower_cannot_count_weigh_nothing() -> None:
    empty = ConfigRecord({"text": "", "raw": b"", "list": []})
    assert payload_bytes(RecordDict({"config": empty})) == len("textrawlist")


def test_a_model_of_views_weighs_what_its_bytes_would() -> None:
    module = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))
    plain = ArrayRecord(module.state_dict())
    layout = Layout.of(module)
    views = to_record(layout, from_record(layout, plain))
    assert payload_bytes(RecordDict({"a": views})) == payload_bytes(RecordDict({"a": plain}))


def test_later_changes_of_the_original_do_not_reach_the_copy() -> None:
    content = RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(np.ones(2))}),
            "config": ConfigRecord({"round": 1, "rates": [0.1]}),
            "metrics": MetricRecord({"curve": [1, 2]}),
        }
    )
    array = content["arrays"]["w"]
    copy = snapshot(content)
    assert copy == content
    content["arrays"]["w"] = Array(np.zeros(2))
    content["config"]["round"] = 2
    content["config"]["rates"].append(0.2)
    content["metrics"]["curve"].append(3)
    content["more"] = MetricRecord()
    assert copy["arrays"]["w"] is array, "the bytes are shared"
    assert dict(copy["config"]) == {"round": 1, "rates": [0.1]}
    assert dict(copy["metrics"]) == {"curve": [1, 2]}
    assert list(copy) == ["arrays", "config", "metrics"]


def test_scalars_are_counted_from_shapes_and_in_older_messages_from_the_bytes() -> None:
    state = {"w": torch.zeros(3, 4), "b": torch.zeros(4), "steps": torch.tensor(1)}
    assert num_scalars(RecordDict({"a": ArrayRecord(state), "m": METRICS})) == 12 + 4 + 1
    weights = [np.zeros((3, 4), np.float32), np.zeros(4), np.array(1.0)]
    older = parameters_to_arrayrecord(ndarrays_to_parameters(weights), keep_input=True)
    assert [array.shape for array in older.values()] == [()] * 3, "Flower does not tell them"
    assert num_scalars(RecordDict({"a": older})) == 12 + 4 + 1


def test_scalars_of_an_unknown_format_have_four_bytes() -> None:
    record = ArrayRecord({"w": Array(dtype="", shape=(), stype="my.own", data=b"x" * 400)})
    assert num_scalars(RecordDict({"a": record})) == 100


def test_no_arrays_have_no_scalars() -> None:
    empty = parameters_to_arrayrecord(ndarrays_to_parameters([]), keep_input=True)
    assert num_scalars(RecordDict({"a": empty, "c": CONFIG})) == 0
