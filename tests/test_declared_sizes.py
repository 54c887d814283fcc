"""Sizes are checked before memory is asked for: what an array says of itself allocates nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from every_strategy import (
    AVERAGING,
    CODED,
    EVENTS,
    OUTER,
    POLLING,
    ROUNDED,
    SERVERLESS,
    STAGED,
    TASKS,
)
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from hostile_arrays import ARRAYS, FIELDS, RECORDS, npy
from torch import nn

import fl
from fl.clients import Downlink, Sgd, TrainingApp
from fl.clients.app import uplink
from fl.clients.app.island import Island, fragment_of
from fl.clients.app.replica import Replica
from fl.compression import Cast, OneBitAdam, PayloadError
from fl.data import Examples, FederatedData, Partitions
from fl.errors import ConfigError
from fl.flower.arrays import read_array
from fl.flower.carried import carried
from fl.flower.payload import num_scalars
from fl.flower.records import RecordReader, from_record, layout_of, record_vector, stack
from fl.runs.journal.encoding import decode, encode
from fl.simulation.world.measurements import read_worker_seconds
from fl.vectors.layout import Layout

FEW = 4 * 2**20  # bytes: a message may have ten thousand names


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))


LAYOUT, PLAIN = Layout.of(model()), Layout.of(plain())
HONEST = ArrayRecord(model().state_dict())
FLOATS = ArrayRecord(plain().state_dict())


def vector(size):
    return ArrayRecord({"vector": Array(np.zeros(size, np.float32))})


def fragment(size):
    return ArrayRecord({"update.0": Array(np.zeros(size, np.float32))})


# What reads a record, and an honest one for it.
READERS = {
    "row": (lambda record: from_record(LAYOUT, record), HONEST),
    "stack": (lambda record: stack(LAYOUT, [HONEST, record]), HONEST),
    "reader": (lambda record: RecordReader(LAYOUT).row(record), HONEST),
    "carried": (lambda record: carried(LAYOUT, record), HONEST),
    "layout": (layout_of, HONEST),
    "arrays": (lambda record: [read_array(array) for array in record.values()], HONEST),
    "vector": (lambda record: record_vector(record, 43, "the gradient"), vector(43)),
    "fragment": (lambda record: fragment_of(record, 0, 43), fragment(43)),
}


def allocated(function, *args):
    """Returns what a function raises, and the most memory that it held at a time."""
    tracemalloc.start()
    raised = None
    try:
        function(*args)
    except (ConfigError, PayloadError) as error:
        raised = error
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return raised, peak


def of_flower(record):
    return ArrayRecord({n: Array(a.dtype, a.shape, a.stype, a.data) for n, a in record.items()})


@pytest.mark.parametrize("name", READERS)
def test_whatever_a_record_says_a_reader_refuses_it_or_reads_what_is_there(name):
    read, honest = READERS[name]
    assert allocated(read, honest)[0] is None
    refused = 0
    for change in RECORDS:
        raised, peak = allocated(read, change(of_flower(honest)))
        assert peak < FEW
        refused += raised is not None
        if raised is not None:
            assert len(str(raised)) < 4000
    # A layout compares lengths alone; and an array of another shape is an array.
    spared = {"layout": 25, "arrays": 8}.get(name, 0)
    assert refused >= len(ARRAYS) + len(FIELDS) - spared


def test_numpys_own_header_is_read_in_all_its_forms():
    for dtype in ("float32", "float64", "int64", "bool", "uint8", "complex128", ">f4"):
        for shape in ((), (0,), (5,), (2, 3), (4, 0, 2), (1,) * 12):
            values = (np.arange(np.prod(shape, dtype=int)) % 2).reshape(shape).astype(dtype)
            for order in "CF":
                array = Array(np.asarray(values, order=order))
                got = read_array(array)
                np.testing.assert_array_equal(got, values)
                assert got.dtype == dtype


# ---- messages to clients -------------------------------------------------------------------------


def data():
    rng = np.random.default_rng(0)
    examples = Examples(rng.standard_normal((8, 6)).astype(np.float32), rng.integers(0, 3, 8))
    return FederatedData(
        name="toy",
        train=examples,
        test=examples,
        partitions=Partitions.contiguous([8]),
        num_classes=3,
        input_shape=(6,),
    )


def opened(link, layout, context):
    return lambda record: link.open(
        layout, RecordDict({"arrays": record, "config": CONFIG}), context
    )


CONFIG = ConfigRecord({"outer-reset": False, "outer-merge": [0], "outer-send": [0]})


def state(**arrays):
    records = {
        key: ArrayRecord({name: Array(value) for name, value in values.items()})
        for key, values in arrays.items()
    }
    return Context(1, 1, {"partition-id": 0}, RecordDict(records), {"seed": 0})


ROW = np.zeros(PLAIN.size, np.float32)
APP = TrainingApp(model, data(), Sgd(lr=0.1))
CLIENTS = {
    "training": (lambda record: APP.read(RecordDict({"arrays": record})).row, HONEST),
    "replica": (
        opened(Replica(OneBitAdam(workers=2, warmup=1, lr=0.1)), PLAIN, state()),
        FLOATS,
    ),
    "island": (
        opened(Island(), PLAIN, state(**{"fl.island": {"live": ROW}})),
        fragment(PLAIN.size),
    ),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_refuses_what_a_server_says_of_sizes(name):
    read, honest = CLIENTS[name]
    assert allocated(read, honest)[0] is None
    for change in RECORDS[: len(ARRAYS) + len(FIELDS)]:
        raised, peak = allocated(read, change(of_flower(honest)))
        assert raised is not None
        assert peak < FEW


def test_a_client_refuses_compressed_models_of_other_sizes():
    link = Downlink(Cast("fp16"))
    for change in RECORDS:
        record = ArrayRecord({"version": Array("uint8", (4,), "fl.payload", b"\1" * 4)})
        record["update.0"] = Array("uint8", (2,), "fl.payload", b"\0" * 2)
        raised, peak = allocated(opened(link, PLAIN, state()), change(record))
        assert raised is not None
        assert peak < FEW


MEMORIES = {
    "fl.uplink": lambda context: uplink._load(context),
    "fl.downlink": lambda context: Downlink(Cast("fp16"))._state(None, context),
    "fl.replica": lambda context: Replica(OneBitAdam(workers=2, warmup=1, lr=0.1))._kept(context),
    "fl.island": lambda context: Island()._kept(context),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_what_a_client_finds_in_its_own_memory_is_read_as_carefully(name):
    refused = 0  # on a deployment it lies on a disk
    for change in ARRAYS:
        context = state()
        context.state[name] = ArrayRecord({key: change(Array(ROW)) for key in ("live", "x")})
        raised, peak = allocated(MEMORIES[name], context)
        assert peak < FEW
        refused += raised is not None
    assert refused >= len(ARRAYS) - 3  # an array without a dimension, or without numbers, is one


# ---- files ---------------------------------------------------------------------------------------


def test_a_journal_that_claims_any_size_is_no_journal():
    whole = b"".join(encode({}, {"content": RecordDict({"arrays": FLOATS})}))
    head = int.from_bytes(whole[:4], "little")
    text, rest = whole[4 : 4 + head].decode(), whole[4 + head :]
    for old, new in [
        ("[4,6]", f"[{2**40},6]"),
        ("[4,6]", "[-4,6]"),
        ("[4,6]", "[4.5,6]"),
        ("[4,6]", '["4",6]'),
        ("[4,6]", f"[{2**61 + 1},8]"),
        ("[4,6]", "[" * 3000 + "]" * 3000),
    ]:
        assert old in text
        made = text.replace(old, new).encode()
        data = len(made).to_bytes(4, "little") + made + rest
        raised, peak = allocated(read_journal, data)
        assert raised is not None
        assert peak < FEW


def read_journal(data):
    """Reads a record of a journal, and the model in it."""
    try:
        _, records = decode(data)
    except ValueError as error:
        raise ConfigError(str(error)) from None  # which `Journal` takes for its end
    from_record(PLAIN, records["content"]["arrays"])


@pytest.mark.parametrize("shape", [(2**40, 3), (10**9, 10**9), (2**62, 4)])
def test_a_trace_that_claims_any_size_is_refused(tmp_path, shape):
    path = tmp_path / "seconds.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("load_0.500.npy", npy("<f8", shape, b"\0" * 48))
    raised, peak = allocated(read_worker_seconds, path, 0.5)
    assert "says that it has" in str(raised)
    assert peak < FEW


def test_scalars_are_no_more_than_bytes_whatever_is_said():
    for dtype in ("float32", ""):
        for data in (b"\0" * 64, npy("<f4", (2**40,), b"\0" * 64)):
            record = ArrayRecord({"w": Array(dtype, (10**300, 7), "numpy.ndarray", data)})
            assert num_scalars(RecordDict({"a": record})) <= len(data)


# ---- every driver, with little memory ------------------------------------------------------------

# DBW waits for all its workers, and one that never answers rightly keeps it waiting.
ALL = [
    *AVERAGING,
    *(name for name in ROUNDED if name != "dbw"),
    *EVENTS,
    *TASKS,
    *POLLING,
    *SERVERLESS,
    *OUTER,
    *CODED,
    *STAGED,
    "dedloc",
]
GRADIENTS = [f"{s} client=gradient" for s in ("gradient_tracking", "extra", "data_parallel")]
LINKS = [f"fedavg compressor={c}" for c in ("ef_topk", "int8", "powersgd", "ef21")]
LINKS += ["fedavg compressor=topk compressor@then=int8"]
QUICK = ["fedavg", "fedbuff", "dpsgd", "diloco", LINKS[0]]
SLOW = [*ALL, *GRADIENTS, *LINKS, "fedavg compressor@downlink=ef21", "diloco compressor=int8"]


@pytest.mark.parametrize("cases", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_a_client_that_claims_any_size_costs_no_memory_and_ends_no_run(cases):
    here = Path(__file__).parent
    path = os.pathsep.join([str(Path(fl.__file__).parents[1]), str(here)])
    done = subprocess.run(
        [sys.executable, str(here / "hostile_arrays.py"), *cases],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if " | completed " in line]
    assert [line.split(" | ")[0] for line in lines] == list(cases)
    unasked = (
        "fedcompass",
        "async_sgd",
        "halos",
    )  # with which two of four clients never come to work
    assert all(int(line.split()[-1]) > 0 for line in lines if not line.startswith(unasked))
