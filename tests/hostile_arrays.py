"""Arrays that say something else than they are: what a sender can write into a record.

Run as a program, it lets a client of each strategy named on the command line send all of them, with
so little memory that one array of the size it claims would end the process.
"""

from __future__ import annotations

import logging
import resource
import struct
import sys
from itertools import count

from flwr.app import Array, ArrayRecord, Message
from flwr.clientapp import ClientApp

from fl.simulation.cost import CostModel

NUMPY = "numpy.ndarray"
PICKLE = b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94"


def npy(descr, shape, numbers=b"", *, version=1, length=None, text=None):
    """Returns bytes in the .npy format with any header."""
    if text is None:
        text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".ljust(117)
    header = (text + "\n").encode("latin-1")
    size = struct.pack("<H" if version == 1 else "<I", len(header) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + numbers


def wrapping(array):
    """Returns a shape whose product is the array's size modulo 2**64."""
    size = 1
    for extent in array.shape:
        size *= extent
    return (2**32, 2**32, 0 + size) if size == 0 else (size + 2**64 // 8 * 8,)


def claims(shape, dtype="float32", descr="<f4"):
    """Returns arrays with such a shape in the header, in the field, and in both."""
    return [
        lambda array: Array(dtype, shape, NUMPY, npy(descr, shape, b"\0" * 8)),
        lambda array: Array(array.dtype, array.shape, NUMPY, npy(descr, shape, b"\0" * 8)),
        lambda array: Array(dtype, shape, NUMPY, array.data),
    ]


# Each returns an array, given the honest one.
ARRAYS = [
    *claims((2**40,)),
    *claims((10**9, 10**9)),
    *claims((2**62, 4)),  # 0 modulo 2**64
    *claims((2**61 + 1, 8)),  # 8 modulo 2**64
    *claims((-1,)),
    *claims((3, -2)),
    *claims((2**40, 0)),
    *claims((1,) * 65),
    *claims((1,) * 5000),
    *claims((10**4000,)),
    *claims((2**40,), "float64", "<f8"),
    lambda array: Array("float32", (), NUMPY, npy("<f4", (), b"\0" * 4)),
    lambda array: Array("float32", wrapping(array), NUMPY, array.data),
    lambda array: Array("object", (1,), NUMPY, PICKLE),
    lambda array: Array("object", array.shape, NUMPY, npy("|O", array.shape, PICKLE)),
    lambda array: Array(array.dtype, array.shape, NUMPY, npy("|O", array.shape, PICKLE)),
    lambda array: Array("<U250000000", (4,), NUMPY, npy("<U250000000", (4,))),
    lambda array: Array("|V2000000000", (4,), NUMPY, npy("|V2000000000", (4,))),
    lambda array: Array("complex64", array.shape, NUMPY, npy("<c8", array.shape)),
    lambda array: Array("float33", array.shape, NUMPY, array.data),
    lambda array: Array("", array.shape, NUMPY, array.data),
    lambda array: Array(array.dtype, array.shape, "torch", array.data),
    lambda array: Array(array.dtype, array.shape, "fl.payload", array.data),
    lambda array: Array(array.dtype, array.shape, NUMPY, b""),
    lambda array: Array(array.dtype, array.shape, NUMPY, array.data[:-1]),
    lambda array: Array(array.dtype, array.shape, NUMPY, array.data + b"\0" * 10**6),
    # Headers that a parser of Python would choke on.
    lambda array: Array(array.dtype, array.shape, NUMPY, npy("", 0, text="-" * 9000 + "1")),
    lambda array: Array(array.dtype, array.shape, NUMPY, npy("", 0, text="(" * 9000)),
    lambda array: Array(array.dtype, array.shape, NUMPY, npy("", 0, text="{" * 60000)),
    lambda array: Array(array.dtype, array.shape, NUMPY, npy("", 0, text="9**9**9**9")),
    lambda array: Array(array.dtype, array.shape, NUMPY, npy("", 0, text="\xff" * 100)),
    lambda array: Array(array.dtype, array.shape, NUMPY, npy("<f4", 1, version=2, length=2**31)),
    lambda array: Array(array.dtype, array.shape, NUMPY, npy("<f4", (1,), version=3)),
]


# Fields of a type that Flower's constructor would refuse; a client's own code can set them.
FIELDS = [
    {"shape": [2**40]},
    {"shape": 7},
    {"shape": (2.5,)},
    {"dtype": None},
    {"data": "text"},
    {"data": None},
]


def each(record, change):
    return ArrayRecord({name: change(array) for name, array in record.items()})


def with_fields(record, fields):
    plain = each(record, lambda array: Array(array.dtype, array.shape, array.stype, array.data))
    for array in plain.values():
        array.__dict__.update(fields)
    return plain


def smallest(record):
    return min(record.values(), key=lambda array: len(array.data))


# Each returns a record, given the honest one.
RECORDS = [
    *[lambda record, change=change: each(record, change) for change in ARRAYS],
    *[lambda record, fields=fields: with_fields(record, fields) for fields in FIELDS],
    lambda record: ArrayRecord(),
    lambda record: ArrayRecord({**record, **{f"x{i}": smallest(record) for i in range(10_000)}}),
    lambda record: ArrayRecord({**record, "layer." * 20_000: smallest(record)}),
    lambda record: ArrayRecord({name[:-1]: array for name, array in record.items()}),
]


def hostile(client=1):
    """Returns a function that makes an app one of whose clients sends all of these in turn."""

    def app(experiment):
        from fl.runs.experiment import app_of

        honest, made, turns = app_of(experiment), ClientApp(), count()

        @made.train()
        def train(message, context):
            reply = honest(message, context)
            if context.node_config["partition-id"] == client and reply.has_content():
                change = RECORDS[next(turns) % len(RECORDS)]
                for key, record in reply.content.array_records.items():
                    reply.content[key] = change(record)
            return Message(reply.content, reply_to=message)

        return made

    return app


def limit_memory(spare):
    """Leaves this process so many bytes more than it has."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    most = pages * resource.getpagesize() + spare
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main(cases):
    from every_strategy import LOCAL, ran

    ran("fedavg", "compressor=int8")  # whatever is imported late
    logging.disable(logging.CRITICAL)
    limit_memory(2**30)
    for case in cases:
        strategy, *overrides = case.split()
        if strategy in LOCAL:  # the app answers to no other message
            overrides += ["personal.every=null", "target=null"]
        rounds, at_once = f"num_rounds={len(RECORDS)}", CostModel(seconds=0.0)
        _, run = ran(strategy, rounds, *overrides, app=hostile(), cost_model=at_once)
        summary = run.summary
        print(case, "|", summary["status"], summary["faults"].get("rejected", 0), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
