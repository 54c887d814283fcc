"""Records, rows and state dicts are three forms of one model."""

import copy
import io
import pickle
import warnings

import cloudpickle
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fl.errors import ConfigError
from fl.flower.arrays import RowArray
from fl.flower.carried import carried, carried_tensors
from fl.flower.records import (
    RecordReader,
    RowRecord,
    Sharing,
    from_record,
    layout_of,
    record_tensors,
    record_vector,
    stack,
    tensors_record,
    to_record,
    to_records,
    vector_record,
)
from fl.vectors.layout import Layout
from fl.vectors.rows import as_tensor

SHAPES = [
    (),
    (1,),
    (7,),
    (0,),
    (3, 4),
    (4, 1),
    (1, 4),
    (2, 3, 4),
    (2, 0, 3),
    (64, 784),
    (1, 1, 1, 1),
]


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def normed() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model(torch.randn(6, 5))  # running statistics and the counter leave their initial values
    return model


def row_of(d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(d).astype(np.float32)


@pytest.fixture
def layout() -> Layout:
    return Layout.of(mlp())


# ---- lazy arrays ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_array_serialises_to_the_bytes_of_flowers_array(shape):
    size = int(np.prod(shape))
    row = row_of(size + 5)
    array = RowArray(row, 3, shape)
    values = row[3 : 3 + size].reshape(shape)
    expected = Array(values)

    assert array.num_bytes == len(expected.data)
    assert array.data == expected.data == npy(values)
    assert (array.dtype, array.shape, array.stype) == (
        expected.dtype,
        expected.shape,
        expected.stype,
    )


@given(st.lists(st.integers(0, 12), max_size=5).map(tuple))
def test_the_length_of_the_bytes_is_known_before_they_are_made(shape):
    array = RowArray(row_of(int(np.prod(shape))), 0, shape)
    length = array.num_bytes
    assert "_bytes" not in array.__dict__
    assert length == len(npy(np.empty(shape, np.float32)))


def test_the_header_may_be_longer_than_one_block_of_64_bytes():
    shape = (1,) * 40
    assert RowArray(row_of(1), 0, shape).num_bytes == len(npy(np.ones(shape, np.float32)))


def test_numpy_is_a_read_only_view_of_the_row():
    row = row_of(12)
    row.flags.writeable = False
    view = RowArray(row, 0, (3, 4)).numpy()
    assert np.shares_memory(view, row)
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1.0


def test_a_row_array_equals_flowers_array_of_the_same_values_both_ways():
    row = row_of(6)
    lazy, plain = RowArray(row, 0, (2, 3)), Array(row.reshape(2, 3))
    assert lazy == plain
    assert plain == lazy
    assert lazy == RowArray(row.copy(), 0, (2, 3))
    assert lazy != Array(row.reshape(3, 2))
    assert lazy != RowArray(-row, 0, (2, 3))
    assert lazy != "array"


def test_setting_data_makes_an_ordinary_array():
    array = RowArray(row_of(4), 0, (4,))
    before = array.object_id
    other = np.arange(4, dtype=np.float32)
    array.data = npy(other)
    np.testing.assert_array_equal(array.numpy(), other)
    assert array.num_bytes == len(array.data)
    assert array.object_id == Array(other).object_id != before


def test_another_serialisation_type_refuses_numpy_as_flower_does():
    array = RowArray(row_of(4), 0, (4,))
    array.stype = "zip"
    with pytest.raises(TypeError, match="zip"):
        array.numpy()


@pytest.mark.parametrize(
    "clone",
    [
        lambda r: pickle.loads(pickle.dumps(r)),
        lambda r: pickle.loads(pickle.dumps(r, protocol=5)),
        lambda r: cloudpickle.loads(cloudpickle.dumps(r)),
        copy.deepcopy,
    ],
)
def test_a_record_survives_copying_as_one_row(clone, layout):
    matrix = np.stack([row_of(layout.size), row_of(layout.size, 1)])
    record = clone(to_records(layout, matrix)[1])
    assert isinstance(record, RowRecord)
    row = from_record(layout, record)
    np.testing.assert_array_equal(row, matrix[1])
    # Its arrays are still parts of one row, so nothing had to be decoded.
    assert all(array.row is row for array in record.values())
    assert not row.flags.writeable


def test_pickling_one_record_takes_one_row_not_the_matrix(layout):
    matrix = np.zeros((100, layout.size), np.float32)
    assert len(pickle.dumps(to_records(layout, matrix)[0])) < 2 * 4 * layout.size + 2000


def test_an_array_with_changed_fields_pickles_with_them():
    array = RowArray(row_of(4), 0, (4,))
    array.stype = "zip"
    again = pickle.loads(pickle.dumps(array))
    assert (again.stype, again.data) == ("zip", array.data)


# ---- Flower takes them for its own ---------------------------------------------------------------


def contents(layout: Layout, row: np.ndarray) -> tuple[RecordDict, RecordDict]:
    lazy = RecordDict({"arrays": to_record(layout, row)})
    state = {k: v.numpy() for k, v in layout.unflatten(torch.from_numpy(row.copy())).items()}
    plain = RecordDict({"arrays": ArrayRecord({k: Array(v) for k, v in state.items()})})
    return lazy, plain


def test_flowers_wire_form_is_the_same(layout):
    lazy, plain = contents(layout, row_of(layout.size))
    assert recorddict_to_proto(lazy) == recorddict_to_proto(plain)
    back = recorddict_from_proto(recorddict_to_proto(lazy))
    assert back["arrays"] == plain["arrays"] == lazy["arrays"]
    assert lazy["arrays"].count_bytes() == plain["arrays"].count_bytes()


def test_flowers_object_store_form_is_the_same(layout):
    lazy, plain = contents(layout, row_of(layout.size))
    theirs = get_all_nested_objects(plain)
    ours = get_all_nested_objects(lazy)
    assert list(ours) == list(theirs)
    for name, thing in ours.items():
        assert thing.deflate() == theirs[name].deflate()


def test_flowers_aggregation_takes_row_records(layout):
    matrix = np.stack([row_of(layout.size, seed) for seed in range(3)])
    weights = [1, 2, 5]
    replies = [
        RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": n})})
        for record, n in zip(to_records(layout, matrix), weights, strict=True)
    ]
    mean = from_record(layout, aggregate_arrayrecords(replies, "num-examples"))
    np.testing.assert_allclose(mean, np.average(matrix, axis=0, weights=weights), atol=1e-6)
    assert all("_bytes" not in a.__dict__ for r in replies for a in r["arrays"].values())


def test_what_a_client_may_change_is_its_own(layout):
    row = row_of(layout.size)
    record = to_record(layout, row.copy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = record.to_torch_state_dict()
    for tensor in state.values():
        tensor.zero_()
    for array in record.to_numpy_ndarrays():
        array[...] = 0.0
    np.testing.assert_array_equal(from_record(layout, record), row)
    assert list(state) == list(record)


def test_the_arrays_of_a_record_are_read_only(layout):
    for record in (
        to_record(layout, row_of(layout.size)),
        to_record(layout, torch.zeros(layout.size)),
        tensors_record({"m": torch.zeros(3)}),
    ):
        for array in record.values():
            with pytest.raises(ValueError, match="read-only"):
                array.numpy()[...] = 0.0


def test_a_shallow_copy_is_a_row_record_with_a_dictionary_of_its_own(layout):
    record = to_record(layout, row_of(layout.size))
    other = record.copy()
    del other["0.bias"]
    assert isinstance(other, RowRecord)
    assert "0.bias" in record


# ---- layouts -------------------------------------------------------------------------------------


def test_a_row_holds_the_floats_in_the_order_of_the_state_dict():
    model = normed()
    layout = Layout.of(model)
    state = model.state_dict()
    floats = [v.reshape(-1) for v in state.values() if v.is_floating_point()]
    assert torch.equal(layout.flatten(state), torch.cat(floats))
    assert layout.size == sum(v.numel() for v in floats)
    assert layout.num_trainable == sum(p.numel() for p in model.parameters())


def test_buffers_are_averaged_but_not_trained_and_counters_are_carried():
    layout = Layout.of(normed())
    assert [e.name for e in layout.buffers] == ["1.running_mean", "1.running_var"]
    assert [e.name for e in layout.carried] == ["1.num_batches_tracked"]
    assert layout.carried[0].dtype == "int64"


def test_frozen_parameters_are_not_trained():
    model = mlp()
    model[0].weight.requires_grad_(False)
    layout = Layout.of(model)
    assert [e.name for e in layout.buffers] == ["0.weight"]
    assert layout.num_trainable == layout.size - 20


def test_the_first_name_of_a_tied_parameter_counts():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))
    model[2].weight = model[0].weight
    layout = Layout.of(model)
    assert [e.kind for e in layout.entries] == ["trainable", "tied"]
    assert (layout.size, layout.num_trainable) == (18, 9)
    row = layout.flatten(model.state_dict())
    row[9:] = 7.0  # as of a lossy link
    w = layout.select(row)
    assert torch.equal(w, model[0].weight.detach().reshape(-1))
    assert torch.equal(layout.join(w, {}), torch.cat([w, w]))
    parts = layout.split(w)
    assert parts["2.weight"] is parts["0.weight"]
    layout.load(model, row)
    assert model[2].weight is model[0].weight
    assert torch.equal(model[0].weight.reshape(-1), w)


def test_a_module_under_two_names_is_called_with_one():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    layout = Layout.of(model)
    assert [e.tied_to for e in layout.entries] == ["", "", "0.weight", "0.bias"]
    # A call replaces the attributes of a module and puts them back: twice would lose them.
    assert list(layout.split(torch.zeros(12))) == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("dtype", "value", "nearest"),
    [
        ("int64", 2.5, 2),
        ("int64", 3.5, 4),
        ("int64", 1e30, 2**63 - 1),
        ("int64", -1e30, -(2**63)),
        ("int64", float(2**53), 2**53),
        ("uint8", -0.4, 0),
        ("uint8", -7.0, 0),
        ("uint8", 254.6, 255),
        ("uint8", 300.0, 255),
        ("uint64", 1e30, 2**64 - 1),
        ("int8", -128.4, -128),
        ("bool", 0.4, False),
        ("bool", 0.6, True),
        ("bool", 1.7, True),
        ("bool", -3.0, False),
    ],
)
def test_floats_for_integers_are_rounded_to_the_nearest_there_is(dtype, value, nearest):
    layout = Layout.of_entries([("n", (2,), dtype)])
    for kind in ("float64", "float32") if abs(value) < 2**24 else ("float64",):
        record = ArrayRecord({"n": Array(np.full(2, value, kind))})
        got = carried(layout, record)["n"].numpy()
        assert got.dtype == dtype
        assert got.tolist() == [nearest] * 2
    with pytest.raises(ConfigError, match="NaN or infinity"):
        carried(layout, ArrayRecord({"n": Array(np.array([1.0, np.nan]))}))


def test_flatten_and_unflatten_are_inverse():
    model = normed()
    layout = Layout.of(model)
    state = model.state_dict()
    row = layout.flatten(state)
    again = layout.unflatten(row, {"1.num_batches_tracked": state["1.num_batches_tracked"]})
    assert list(again) == list(state)
    assert all(torch.equal(again[name], value) for name, value in state.items())
    assert again["0.weight"].data_ptr() == row.data_ptr()


def test_select_and_join_are_inverse():
    model = normed()
    layout = Layout.of(model)
    row = layout.flatten(model.state_dict())
    buffers = {name: row[e.offset : e.offset + e.size] for e in layout.buffers for name in [e.name]}
    w = layout.select(row)
    assert torch.equal(w, torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    assert torch.equal(layout.join(w, buffers), row)


def test_split_gives_the_parameters_and_their_gradient_is_flat():
    model = mlp()
    layout = Layout.of(model)
    w = layout.flatten(model.state_dict()).requires_grad_()
    parts = layout.split(w)
    assert all(torch.equal(parts[name], p) for name, p in model.named_parameters())
    sum((i + 1) * part.sum() for i, part in enumerate(parts.values())).backward()
    expected = torch.cat([torch.full((p.numel(),), i + 1.0) for i, p in enumerate(parts.values())])
    assert torch.equal(w.grad, expected)


def test_layouts_of_module_and_record_agree_on_rows():
    model = normed()
    state = model.state_dict()
    ours, records = Layout.of(model), layout_of(ArrayRecord(state))
    assert [e.offset for e in ours.entries] == [e.offset for e in records.entries]
    assert records.num_trainable == records.size  # a record does not say what is trained


def test_layout_refuses_what_a_float32_vector_cannot_hold():
    with pytest.raises(ConfigError, match=r"'0.weight' has type float64.*\.float\(\)"):
        Layout.of(mlp().double())
    with pytest.raises(ConfigError, match="bfloat16"):
        Layout.of(mlp().bfloat16())
    with pytest.raises(ConfigError, match="complex64"):
        Layout.of_entries([("w", (2,), "complex64")])
    overlapping = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    overlapping[1].weight = nn.Parameter(overlapping[0].weight.data.t())
    with pytest.raises(ConfigError, match=r"'0\.weight' and '1\.weight' overlap in memory"):
        Layout.of(overlapping)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.bias"), r"missing \['0.bias'\]"),
        (lambda s: s.update(extra=torch.ones(1)), r"unknown \['extra'\]"),
        (
            lambda s: s.update({"0.bias": torch.ones(5)}),
            r"float32 of shape \(5,\).*\(4,\)",
        ),
        (lambda s: s.update({"0.bias": torch.ones(4).double()}), r"'0.bias' is float64"),
    ],
)
def test_flatten_names_what_does_not_fit(layout, change, message):
    state = dict(mlp().state_dict())
    change(state)
    with pytest.raises(ConfigError, match=message):
        layout.flatten(state)


def test_unflatten_refuses_a_row_of_another_length(layout):
    with pytest.raises(ConfigError, match=rf"\({layout.size},\), got \(7,\)"):
        layout.unflatten(torch.zeros(7))


# ---- records -------------------------------------------------------------------------------------


def test_a_record_gives_its_row_back_without_a_copy(layout):
    row = row_of(layout.size)
    assert np.shares_memory(from_record(layout, to_record(layout, row)), row)


def test_making_a_record_leaves_the_row_as_it_was(layout):
    row = row_of(layout.size)
    before = row.copy()
    record = to_record(layout, row)
    _ = [a.data for a in record.values()]
    np.testing.assert_array_equal(row, before)
    assert row.flags.writeable


def test_records_of_flower_and_of_torch_are_read_alike():
    model = normed()
    layout = Layout.of(model)
    record = ArrayRecord(model.state_dict())
    expected = layout.flatten(model.state_dict()).numpy()
    np.testing.assert_array_equal(from_record(layout, record), expected)
    entries = carried(layout, record)
    again = to_record(layout, expected, entries)
    assert again == record
    assert list(again) == list(record)
    counter = carried_tensors(entries)["1.num_batches_tracked"]
    assert counter.item() == 1
    counter += 1
    assert carried_tensors(entries)["1.num_batches_tracked"].item() == 1


def test_fortran_order_and_version_2_are_read(layout):
    values = {e.name: row_of(e.size, i).reshape(e.shape) for i, e in enumerate(layout.entries)}
    expected = np.concatenate([v.reshape(-1) for v in values.values()])
    values["0.weight"] = np.asfortranarray(values["0.weight"])
    record = ArrayRecord({name: Array(v) for name, v in values.items()})
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, values["2.weight"], version=(2, 0))
    record["2.weight"].data = buffer.getvalue()
    np.testing.assert_array_equal(from_record(layout, record), expected)


def test_carried_entries_must_come_with_the_row():
    layout = Layout.of(normed())
    with pytest.raises(ConfigError, match=r"1\.num_batches_tracked"):
        to_record(layout, row_of(layout.size))
    with pytest.raises(ConfigError, match=r"1\.num_batches_tracked"):
        carried(layout, ArrayRecord(mlp().state_dict()))


def hostile(layout: Layout, name: str, array: Array | None) -> ArrayRecord:
    record = ArrayRecord({e.name: Array(np.zeros(e.shape, np.float32)) for e in layout.entries})
    if array is None:
        del record[name]
    else:
        record[name] = array
    return record


def lying(shape: tuple[int, ...], data: bytes, dtype: str = "float32") -> Array:
    return Array(dtype, shape, "numpy.ndarray", data)


def object_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}] * 4, dtype=object), allow_pickle=True)
    return buffer.getvalue()


def huge_header() -> bytes:
    buffer = io.BytesIO()
    header = {"shape": (1 << 50,), "fortran_order": False, "descr": "<f4"}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("0.bias", None, r"missing \['0.bias'\]"),
        ("other", Array(np.zeros(2, np.float32)), r"unknown \['other'\]"),
        ("0.bias", Array(np.zeros(5, np.float32)), r"'0.bias' is float32 of shape \(5,\)"),
        ("0.bias", Array(np.zeros((4, 1), np.float32)), r"shape \(4, 1\).*shape \(4,\)"),
        ("0.bias", Array(np.zeros(4, np.complex64)), r"'0.bias' is complex64"),
        ("0.bias", Array(np.array([0, 1e300, 0, 0])), "1 of 4.*inf at index 1"),
        ("0.bias", Array(np.zeros(4, np.int64)), r"'0.bias' is int64"),
        ("0.bias", Array("float32", (4,), "zip", b""), r"'0.bias' is serialised as 'zip'"),
        ("0.bias", lying((4,), b""), r"'0.bias' cannot be read"),
        ("0.bias", lying((4,), b"not numpy at all"), r"'0.bias' cannot be read"),
        ("0.bias", lying((4,), npy(np.zeros(5, np.float32))), r"holds float32 of shape \(5,\)"),
        ("0.bias", lying((4,), npy(np.zeros(4))), r"holds float64"),
        ("0.bias", lying((4,), npy(np.zeros(4, np.float32))[:-1]), "15 bytes of numbers, not 16"),
        ("0.bias", lying((4,), npy(np.zeros(4, np.float32)) + b"x"), "17 bytes of numbers, not 16"),
        ("0.bias", lying((4,), object_array()), r"'0.bias' cannot be read.*object"),
        ("0.bias", lying((4,), huge_header()), r"'0.bias' cannot be read"),
        ("0.bias", Array(np.array([0, np.nan, 0, np.inf], np.float32)), "2 of 4.*nan at index 1"),
        ("0.bias", Array(np.array([0, -np.inf, 0, 0], np.float32)), "1 of 4.*-inf at index 1"),
    ],
)
def test_a_hostile_record_is_refused_by_name(layout, name, array, message):
    record = hostile(layout, name, array)
    with pytest.raises(ConfigError, match=message):
        from_record(layout, record)
    with pytest.raises(ConfigError, match="record 1 of 2"):
        stack(layout, [to_record(layout, row_of(layout.size)), record])


def test_float64_is_rounded_as_torch_would(layout):
    # 1/3 has another float32 value than float64 value.
    row = row_of(layout.size)
    record = to_record(layout, row)
    record["0.bias"] = Array(np.full(4, 1 / 3))
    entry = next(e for e in layout.entries if e.name == "0.bias")
    got = from_record(layout, record)[entry.offset : entry.offset + entry.size]
    np.testing.assert_array_equal(got, torch.full((4,), 1 / 3).numpy())


def test_infinities_of_both_signs_do_not_cancel(layout):
    row = row_of(layout.size)
    row[0], row[1] = np.inf, -np.inf
    with pytest.raises(ConfigError, match="2 of 20"):
        from_record(layout, to_record(layout, row))
    assert np.isinf(from_record(layout, to_record(layout, row), finite=False)[0])


def test_large_but_finite_values_pass(layout):
    row = np.full(layout.size, np.finfo(np.float32).max)  # whose sum overflows
    np.testing.assert_array_equal(from_record(layout, to_record(layout, row)), row)


def test_a_row_record_of_another_model_is_refused(layout):
    other = Layout.of(nn.Linear(6, 4))
    with pytest.raises(ConfigError, match="missing"):
        from_record(layout, to_record(other, row_of(other.size)))


def test_an_entry_from_another_row_is_read_from_there(layout):
    first, second = row_of(layout.size), row_of(layout.size, 1)
    record = to_record(layout, first)
    record["0.bias"] = to_record(layout, second)["0.bias"]
    expected = first.copy()
    expected[20:24] = second[20:24]
    np.testing.assert_array_equal(from_record(layout, record), expected)


def test_entries_in_another_order_are_read_by_name(layout):
    row = row_of(layout.size)
    record = RowRecord(dict(reversed(to_record(layout, row).items())))
    np.testing.assert_array_equal(from_record(layout, record), row)


def test_swapped_entries_of_one_shape_are_not_taken_for_the_row():
    layout = Layout.of(nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}))
    row = row_of(layout.size)
    record = to_record(layout, row)
    record["a.bias"], record["b.bias"] = record["b.bias"], record["a.bias"]
    got = from_record(layout, record)
    np.testing.assert_array_equal(got[4:6], row[10:12])
    np.testing.assert_array_equal(got[10:12], row[4:6])


def test_a_row_must_be_float32_and_of_the_right_length(layout):
    with pytest.raises(ConfigError, match="float64"):
        to_record(layout, np.zeros(layout.size))
    with pytest.raises(ConfigError, match="got"):
        to_record(layout, np.zeros(layout.size + 1, np.float32))
    with pytest.raises(ConfigError, match="matrix of shape"):
        to_records(layout, np.zeros((2, 3), np.float32))


def test_stack_of_records_made_together_is_their_matrix(layout):
    matrix = np.stack([row_of(layout.size, seed) for seed in range(4)])
    records = to_records(layout, torch.from_numpy(matrix))
    assert np.shares_memory(stack(layout, records), matrix)
    for order in ([1, 0, 2, 3], [0, 2], [0, 0, 1], [3]):
        got = stack(layout, [records[i] for i in order])
        np.testing.assert_array_equal(got, matrix[order])
    assert stack(layout, []).shape == (0, layout.size)
    assert not stack(layout, records).flags.writeable


@pytest.mark.parametrize(("field", "value"), [("stype", "zip"), ("dtype", "int32")])
def test_an_array_that_calls_itself_something_else_is_refused(layout, field, value):
    record = to_record(layout, row_of(layout.size))
    setattr(record["0.bias"], field, value)
    with pytest.raises(ConfigError, match=value):
        from_record(layout, record)


def test_rows_of_two_owners_are_not_one_matrix_even_if_they_touch(layout):
    memory = np.zeros(2 * layout.size, np.float32).tobytes()
    half = len(memory) // 2
    rows = [np.frombuffer(memoryview(memory)[i * half :][:half], np.float32) for i in (0, 1)]
    assert rows[1].ctypes.data - rows[0].ctypes.data == half
    got = stack(layout, [to_record(layout, row) for row in rows])
    assert not any(np.shares_memory(got, row) for row in rows)


def test_stack_of_records_of_two_matrices_copies(layout):
    one, two = (np.stack([row_of(layout.size, s)]) for s in (0, 1))
    got = stack(layout, to_records(layout, one) + to_records(layout, two))
    np.testing.assert_array_equal(got, np.concatenate([one, two]))


def test_stack_uses_the_memory_it_is_given_if_that_suffices(layout):
    one, two = (np.stack([row_of(layout.size, s)]) for s in (0, 1))
    records = to_records(layout, one) + to_records(layout, two)
    enough, little = (np.empty((n, layout.size), np.float32) for n in (3, 1))
    got = stack(layout, records, scratch=enough)
    assert np.shares_memory(got, enough)
    assert not got.flags.writeable
    assert enough.flags.writeable
    other = stack(layout, records, scratch=little)
    assert not np.shares_memory(other, little)
    np.testing.assert_array_equal(got, np.concatenate([one, two]))
    np.testing.assert_array_equal(other, got)


# ---- reading many records ------------------------------------------------------------------------


def test_a_reader_gives_one_row_for_equal_records(layout):
    reader = RecordReader(layout)
    model = mlp()
    record = ArrayRecord(model.state_dict())
    row = reader.row(record)
    np.testing.assert_array_equal(row, layout.flatten(model.state_dict()).numpy())
    assert reader.row(record) is row
    assert reader.row(ArrayRecord(dict(record))) is row  # the grid's copy for each message


def test_a_reader_keeps_records_apart(layout):
    reader = RecordReader(layout, keep=2)
    matrix = np.stack([row_of(layout.size, seed) for seed in range(4)])
    plain = [
        ArrayRecord({k: Array(np.array(a.numpy())) for k, a in r.items()})
        for r in to_records(layout, matrix)
    ]
    for records in (to_records(layout, matrix), plain):
        for i in (0, 1, 2, 3, 3, 2, 1, 0):
            np.testing.assert_array_equal(reader.row(records[i]), matrix[i])


def test_a_reader_notices_changes(layout):
    reader = RecordReader(layout)
    record = ArrayRecord(mlp().state_dict())
    first = reader.row(record)
    record["0.bias"].data = npy(np.ones(4, np.float32))
    second = reader.row(record)
    np.testing.assert_array_equal(second[20:24], np.ones(4))
    np.testing.assert_array_equal(second[24:], first[24:])

    lazy = to_record(layout, row_of(layout.size))
    reader.row(lazy)
    lazy["0.bias"].data = npy(np.ones(4, np.float32))
    np.testing.assert_array_equal(reader.row(lazy)[20:24], np.ones(4))


def test_a_reader_refuses_again_what_it_refused(layout):
    reader = RecordReader(layout)
    row = row_of(layout.size)
    row[2] = np.nan
    for record in (to_record(layout, row), hostile(layout, "0.bias", None)):
        for _ in range(2):
            with pytest.raises(ConfigError):
                reader.row(record)


# ---- tensors beside a model ----------------------------------------------------------------------


def test_vectors_beside_a_model_round_trip():
    vector = torch.randn(11)
    record = recorddict_from_proto(recorddict_to_proto(RecordDict({"c": vector_record(vector)})))[
        "c"
    ]
    assert torch.equal(record_vector(record, 11, "c"), vector)
    with pytest.raises(ConfigError, match=r"record 'c'.*shape \(11,\).*shape \(12,\)"):
        record_vector(record, 12, "record 'c'")


def test_memory_of_any_type_and_shape_round_trips():
    tensors = {
        "m": torch.randn(3, 4),
        "steps": torch.tensor(3.0, dtype=torch.float64),
        "codes": torch.arange(6, dtype=torch.uint8).view(2, 3),
        "flag": torch.tensor(True),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 2),
        "strided": torch.randn(4, 6)[:, ::2],
    }
    wire = recorddict_to_proto(RecordDict({"m": tensors_record(tensors)}))
    for record in (tensors_record(tensors), recorddict_from_proto(wire)["m"]):
        got = record_tensors(record)
        assert list(got) == list(tensors)
        for name, tensor in tensors.items():
            assert got[name].dtype == tensor.dtype
            assert torch.equal(got[name], tensor)


def test_tensors_over_read_only_rows_come_without_a_warning():
    row = row_of(3)
    row.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert as_tensor(row).data_ptr() == row.ctypes.data


# ---- what replies cost ---------------------------------------------------------------------------


def pickled_together(value):
    buffers = []
    marked = (Sharing(True), value, Sharing(False))
    return pickle.dumps(marked, protocol=5, buffer_callback=buffers.append), buffers


def test_records_made_together_pickle_as_one_matrix_when_asked(layout):
    records = to_records(layout, np.zeros((50, layout.size), np.float32))
    data, buffers = pickled_together(records)
    assert [buffer.raw().nbytes for buffer in buffers] == [50 * layout.size * 4]
    again = pickle.loads(data, buffers=buffers)[1]
    assert again == records
    with pytest.raises(ValueError, match="read-only"):
        next(iter(again[3].values())).numpy()[...] = 1.0
    del records[1][next(iter(records[1]))]  # a changed record travels as it is
    data, buffers = pickled_together(records)
    assert pickle.loads(data, buffers=buffers)[1][1] == records[1]


def test_stacking_large_rows_leaves_each_in_one_place():
    layout = Layout.of_entries([("w", (5 * 2**20,), "float32")])
    assert layout.is_large
    records = [to_record(layout, np.full(layout.size, i, np.float32)) for i in range(3)]
    matrix = stack(layout, records)
    for i, record in enumerate(records):
        assert np.shares_memory(record["w"].numpy(), matrix[i])
        assert record["w"].numpy()[7] == i
