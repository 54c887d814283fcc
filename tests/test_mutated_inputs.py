"""Mutated configurations and files end in one line that names the cause, or run.

They never end in a traceback. Mutations of configurations are derived from the config folder, those
of files from small whole ones; each from a generator seeded by its number.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

import fl
import fl.runs.build
import fl.runs.run
from fl.cli import main
from fl.runs.explaining import explain

CONF = Path(fl.__file__).parent / "conf"
TINY = [
    "executor=serial",
    "progress=false",
    "views=false",
    "num_clients=12",
    "num_rounds=1",
    "model=logistic",
    "partition=iid",
    "fleet=uniform",
    "fleet.faults.dropout=0.1",
]
COMPANIONS = {  # what a member of a group needs beside it
    "aggregator": ["strategy=fedavg"],
    "allreduce": ["strategy=local_sgd"],
    "attack": ["num_byzantine=2", "strategy=fedavg"],
    "strategy=demo": ["client=gradient"],
    "strategy=just_one_byte": ["client=gradient"],
    "strategy=onebit_adam": ["client=gradient"],
    "strategy=fedast": ["tasks=digits_and_synthetic", "-model", "-partition"],
    "strategy=sync_st": ["tasks=digits_and_synthetic", "-model", "-partition"],
    "client=gradient": ["strategy=onebit_adam"],
    "compressor@downlink": [],
    "fleet/radio": ["fleet=mobile"],
    "partition=natural": ["data=synthetic", "-partition"],
}
GROUPS = {
    "strategy": 5,
    "client": 2,
    "partition": 1,
    "fleet": 2,
    "fleet/availability": 1,
    "fleet/radio": 1,
    "network": 1,
    "power": 1,
    "battery": 1,
    "hierarchy": 1,
    "runtime": 1,
    "compressor": 3,
    "compressor@downlink": 1,
    "aggregator": 2,
    "allreduce": 1,
    "attack": 2,
    "data": 1,
    "model": 1,
    "executor": 1,
}
NEEDS_FILES = {"mnist", "cifar10", "fedprox_mnist", "shakespeare", "serverless", "trace"}
NEEDS_FILES |= {"table", "image_folder", "arrays", "huggingface", "torchvision", "timm"}
NEEDS_FILES |= {"file", "simgrid"}
SLOW = {"char_gpt", "char_lstm", "leaf_cnn", "resnet8", "stdlib", "behaviour", "fedast", "sync_st"}
FREE = ("train_config", "run_config")  # take any key
SECONDS = 1.5  # after which what still trains is stopped: it was not refused
SAMPLE = 12  # of the 200 that the slow tests try


@dataclass(frozen=True)
class Mutation:
    """Overrides, one of which is mutated; whether it must be refused, and by which name."""

    kind: str
    overrides: tuple[str, ...]
    names: tuple[str, ...]  # one of these is in the message
    must: bool

    def __str__(self) -> str:
        return f"{self.kind}: {' '.join(self.overrides)}"


def members(group: str) -> list[str]:
    folder = CONF / group.partition("@")[0]
    names = sorted(path.stem for path in folder.glob("[!_]*.yaml"))
    if group == "compressor@downlink":
        return ["bf16", "ef21", "int8", "natural"]  # others lose the model
    return [name for name in names if name not in NEEDS_FILES | SLOW]


def base(rng: np.random.Generator) -> tuple[str, str, list[str]]:
    """Returns a group, one of its members, and overrides that make it run."""
    weights = np.array(list(GROUPS.values()), dtype=float)
    group = str(rng.choice(list(GROUPS), p=weights / weights.sum()))
    member = str(rng.choice(members(group)))
    more = [*COMPANIONS.get(group, []), *COMPANIONS.get(f"{group}={member}", [])]
    dropped = [f"{name[1:]}=" for name in more if name.startswith("-")]
    dropped += [f"{o.partition('=')[0]}=" for o in more if not o.startswith("-")]
    dropped += [f"{group}="] + (["fleet.faults"] if group == "fleet" else [])
    kept = [o for o in TINY if not any(o.startswith(prefix) for prefix in dropped)]
    return group, member, [*kept, *(o for o in more if not o.startswith("-")), f"{group}={member}"]


def leaves(node: DictConfig, prefix: str = "") -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for key in map(str, node):
        try:
            value = node[key]
        except OmegaConfBaseException:
            continue
        if isinstance(value, DictConfig) and value:
            found += leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def misspelt(rng: np.random.Generator, key: str) -> str:
    parent, dot, last = key.rpartition(".")
    i = int(rng.integers(len(last)))
    return f"{parent}{dot}" + str(
        rng.choice([last[:i] + last[i + 1 :] + "q", f"{last}x", f"z{last}"])
    )


def values(value: object) -> list[tuple[str, str, bool]]:
    """Returns mutated values as (kind, text, whether it must be refused)."""
    if isinstance(value, bool):
        return [("text", "banana", True), ("number", "7", True), ("list", "[true]", True)]
    if isinstance(value, int | float):
        return [
            ("text", "banana", True),
            ("boolean", "true", True),
            ("list", "[1,2]", True),
            ("keys", "{a:1}", True),
            ("nan", "nan", True),
            ("-inf", "-inf", True),
            ("negative", "-1", False),
            ("tiny", "-1e-30", False),
            ("zero", "0", False),
            ("half", "0.5", False),
            ("huge", "1e30", False),
            ("huge whole", str(10**30), False),
            ("many", "123456789012", False),
            ("inf", "inf", False),
            ("null", "null", False),
        ]
    if isinstance(value, str):
        return [
            ("number", "7", True),
            ("boolean", "false", True),
            ("list", "[a]", True),
            ("text", "banana", False),
            ("empty", "''", False),
            ("null", "null", False),
        ]
    if isinstance(value, ListConfig):
        return [
            ("scalar", "3", True),
            ("empty", "[]", False),
            ("nested", "[[1]]", False),
            ("texts", "[a,b]", False),
            ("negative", "[-1]", False),
            ("nan", "[nan]", False),
            ("null", "null", False),
        ]
    return [
        ("text", "banana", False),
        ("nan", "nan", False),
        ("negative", "-1", False),
        ("list", "[1]", False),
        ("keys", "{a:1}", False),
        ("zero", "0", False),
        ("inf", "inf", False),
    ]


def mutation(number: int) -> Mutation:
    """Returns the mutation of a number, the same one every time."""
    rng = np.random.default_rng([number, 20])
    group, member, overrides = base(rng)
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", overrides)
    below = f"{group.rpartition('@')[2].replace('/', '.')}."
    everything = [leaf for leaf in leaves(config) if not leaf[0].startswith("hydra")]
    own = [leaf for leaf in everything if leaf[0].startswith(below)]
    key, value = (own or everything)[int(rng.integers(len(own or everything)))]
    if rng.random() < 0.25:
        key, value = everything[int(rng.integers(len(everything)))]
    last = key.rpartition(".")[2]
    choice = rng.random()
    if choice < 0.1:
        wrong = misspelt(rng, key)
        must = not key.startswith(FREE)
        return Mutation("key", (*overrides, f"{wrong}=1"), (wrong,), must)
    if choice < 0.15:
        wrong = f"{member}{rng.choice(list('xyz'))}"
        return Mutation("member", (*overrides, f"{group}={wrong}"), (wrong,), True)
    if choice < 0.2:
        extra = key.rpartition(".")[0] or "new"
        extra = f"{extra}.added" if "." in key else "added"
        must = not key.startswith((*FREE, "strategy", "fleet", "client"))
        return Mutation("added", (*overrides, f"+{extra}=1"), ("added",), must)
    if choice < 0.24:
        wrong = f"{key}={rng.choice(['[1', '{a', '(', '${nope}', '${oc.env:NO_SUCH}'])}"
        return Mutation("syntax", (*overrides, wrong), (key, wrong, "nope", "NO_SUCH"), True)
    if choice < 0.28:
        names = (last, key, f"{key.rpartition('.')[0]}: ")
        return Mutation("deleted", (*overrides, f"~{key}"), names, False)
    if last == "_target_":
        wrong = str(rng.choice(["fl.nothing.Here", "os.getcwd", "json", "fl.errors.ConfigError"]))
        names = (wrong, key, wrong.rpartition(".")[2], f"{key.rpartition('.')[0]} is ")
        return Mutation("target", (*overrides, f"{key}={wrong}"), names, False)
    kind, text, must = values(value)[int(rng.integers(len(values(value))))]
    if last == "_convert_" or key in ("app", "run_config", "cost_model", "attack.value"):
        must = False
    # Of an argument whose default says nothing about its kind, the target that refuses it is named.
    names = (last, text) if must else (last, text, f"{key.rpartition('.')[0]}: ")
    return Mutation(kind, (*overrides, f"{key}={text}"), names, must)


class Outcome:
    """What became of a configuration."""

    def __init__(self, code: int, error: str, reached: bool) -> None:
        self.code, self.error, self.reached = code, error, reached

    @property
    def refused(self) -> bool:
        return self.code == 1


@pytest.fixture
def attempt(monkeypatch, capsys, tmp_path):
    """Runs `fl` in this process; what trains for more than a moment is stopped."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.delenv("NO_SUCH", raising=False)
    root, flower = logging.getLogger(), logging.getLogger("flwr")
    before = (root.handlers[:], root.level, flower.level, flower.propagate)
    reached = []
    simulate, number = fl.runs.run.simulate, itertools.count()

    def interrupt(*_):
        raise KeyboardInterrupt

    def watched(*args, **kwargs):
        reached.append(True)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            return simulate(*args, **kwargs)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)

    monkeypatch.setattr(fl.runs.run, "simulate", watched)
    monkeypatch.setattr(signal, "SIGALRM", signal.SIGALRM)
    old = signal.signal(signal.SIGALRM, interrupt)

    def run(overrides):
        reached.clear()
        directory = tmp_path / str(next(number))  # one that was stopped holds its folder
        monkeypatch.setattr(sys, "argv", ["fl", *overrides, f"hydra.run.dir={directory}"])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
        return Outcome(code, capsys.readouterr().err, bool(reached))

    yield run
    signal.signal(signal.SIGALRM, old)
    root.handlers[:], root.level, flower.level, flower.propagate = before


def complaint(mutant: Mutation, outcome: Outcome) -> str | None:
    """Returns what is wrong with the way a mutated configuration ended; None if nothing is."""
    if "Traceback" in outcome.error:
        return "it ended in a traceback"
    if outcome.code not in (0, 1, 130):
        return f"its status was {outcome.code}"
    if mutant.must and outcome.reached:
        return "it reached training"
    if outcome.refused:
        if not all(line.startswith("fl: ") for line in outcome.error.splitlines()):
            return "the message is not lines of ours"
        named = any(name in outcome.error for name in mutant.names)
        if not named and "nothing was learnt" not in outcome.error:  # as on a link of 1 bit/s
            return f"the message does not name {' or '.join(mutant.names)}"
    return None


def check(attempt, numbers) -> None:
    wrong = []
    counts = {"refused": 0, "ran": 0}
    for number in numbers:
        mutant = mutation(number)
        outcome = attempt(mutant.overrides)
        counts["refused" if outcome.refused else "ran"] += 1
        if (reason := complaint(mutant, outcome)) is not None:
            wrong.append(f"{number}: {reason}: {mutant}\n{outcome.error[-700:]}")
    print(counts)
    assert not wrong, "\n".join([f"{len(wrong)} of {len(numbers)}", *wrong])


def test_mutated_configurations_are_refused_with_their_cause_or_run(attempt):
    check(attempt, range(SAMPLE))


@pytest.mark.slow
def test_two_hundred_mutated_configurations(attempt):
    check(attempt, range(200))


# ---- files ---------------------------------------------------------------------------------------

RUN = ["executor=serial", "progress=false", "views=false", "num_clients=4", "num_rounds=1"]
RUN += ["strategy.min_train_nodes=2", "strategy.min_available_nodes=2"]
PHONES = ["fleet=trace", "model=logistic", "partition=iid", "fleet/availability=always"]
FEDSCALE = {
    str(i): {
        "duration": 9,
        "active": [0, 50 + i],
        "inactive": [10, 80],
        "finish_time": 100,
        "model": "x",
    }
    for i in range(5)
}
STAMP = "2020-01-0{} 0{}:00:00\t{}"
STATES = ("battery_charged_on", "wifi", "screen_lock", "screen_unlock", "50.0%")
FLASH = {
    str(i): {"messages": "\n".join(STAMP.format(i + 1, h, s) for h, s in enumerate(STATES))}
    for i in range(4)
}
RUNS = {  # file to what reads it
    "mnist/train.parquet": ["data=mnist", "model=logistic", "partition=iid"],
    "mnist/test.parquet": ["data=mnist", "model=logistic", "partition=iid"],
    "cifar10/train.parquet": ["data=cifar10", "model=logistic", "partition=iid"],
    "tinyshakespeare/input.txt": ["data=shakespeare", "data.window=10", "model=char_lstm"],
    "traces/flash_benchmark2score.json": PHONES,
    "traces/flash_speed_distri.json": PHONES,
    "traces/city_latency_ms.csv": PHONES,
    "traces/capacity.json": [
        *PHONES,
        "fleet.score_file=null",
        "fleet.capacity_file=${oc.env:FL_DATA_DIR}/traces/capacity.json",
    ],
    "traces/lambda_worker_seconds.npz": ["fleet=serverless", "model=logistic", "partition=iid"],
    "traces/fedscale.pickle": [
        *PHONES[1:-1],
        "fleet=uniform",
        "fleet/availability=behaviour",
        "fleet.availability.path=${oc.env:FL_DATA_DIR}/traces/fedscale.pickle",
    ],
    "traces/flash.json": [
        *PHONES[1:-1],
        "fleet=uniform",
        "fleet/availability=behaviour",
        "fleet.availability.path=${oc.env:FL_DATA_DIR}/traces/flash.json",
    ],
}


def png(shape: tuple[int, ...], shade: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full(shape, shade, dtype=np.uint8)).save(file, format="PNG")
    return file.getvalue()


@lru_cache
def images(column: str, shape: tuple[int, ...], count: int) -> pa.Table:
    rows = [{"bytes": png(shape, 5 * i), "path": None} for i in range(count)]
    return pa.table({column: rows, "label": [i % 10 for i in range(count)]})


def parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def npz(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def speech(number: int) -> str:
    return f"SPEAKER {number % 4}:\n" + "to be or not to be that is the question " * 4


@lru_cache
def whole(name: str) -> bytes:
    """Returns a small file that is as it should be."""
    match name:
        case "mnist/train.parquet":
            return parquet(images("image", (28, 28), 40))
        case "mnist/test.parquet":
            return parquet(images("image", (28, 28), 20))
        case "cifar10/train.parquet":
            return parquet(images("img", (32, 32, 3), 40))
        case "cifar10/test.parquet":
            return parquet(images("img", (32, 32, 3), 20))
        case "tinyshakespeare/input.txt":
            return "\n\n".join(speech(i) for i in range(16)).encode()
        case "traces/flash_benchmark2score.json":
            return json.dumps({f"phone {i}": 1000 + i for i in range(6)}).encode()
        case "traces/flash_speed_distri.json":
            names = ("down_u", "down_sigma", "up_u", "up_sigma")
            return json.dumps({f"u{i}": dict.fromkeys(names, 99.5) for i in range(6)}).encode()
        case "traces/city_latency_ms.csv":
            return b"0.0,10.5,3.0\n10.0,0.0,-1.0\n4.0,5.0,0.0\n"
        case "traces/capacity.json":
            one = {"computation": 12.5, "communication": 800.0}
            return json.dumps({str(i): one for i in range(5)}).encode()
        case "traces/lambda_worker_seconds.npz":
            return npz(**{"load_0.500": np.full((30, 8), 0.5, dtype=np.float32)})
        case "traces/fedscale.pickle":
            return pickle.dumps(FEDSCALE)
        case _:
            return json.dumps(FLASH).encode()


class Malice:
    """Runs a program when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return (os.system, ("touch $FL_DATA_DIR/PWNED",))


def mutate_table(rng: np.random.Generator, name: str) -> tuple[str, bytes, bool]:
    column, shape = ("img", (32, 32, 3)) if name.startswith("cifar") else ("image", (28, 28))
    table = images(column, shape, 40 if "train" in name else 20)
    n = len(table)
    labels, pictures = table["label"].to_pylist(), table[column].to_pylist()
    i = int(rng.integers(n))
    kinds: dict[str, Callable[[], pa.Table]] = {
        "no labels": lambda: table.drop_columns("label"),
        "no images": lambda: table.drop_columns(column),
        "renamed": lambda: table.rename_columns(["picture", "label"]),
        "label text": lambda: table.set_column(1, "label", pa.array(["seven"] * n)),
        "label half": lambda: table.set_column(1, "label", pa.array([0.5] * n)),
        "label nan": lambda: table.set_column(1, "label", pa.array([float("nan")] * n)),
        "label null": lambda: table.set_column(
            1, "label", pa.array([None if k == i else v for k, v in enumerate(labels)])
        ),
        "label negative": lambda: table.set_column(
            1, "label", pa.array([-1 if k == i else v for k, v in enumerate(labels)])
        ),
        "label large": lambda: table.set_column(
            1, "label", pa.array([10 if k == i else v for k, v in enumerate(labels)])
        ),
        "label list": lambda: table.set_column(1, "label", pa.array([[1]] * n)),
        "image text": lambda: table.set_column(0, column, pa.array(["pixels"] * n)),
        "image number": lambda: table.set_column(0, column, pa.array([1.5] * n)),
        "image without bytes": lambda: table.set_column(0, column, pa.array([{"path": "x"}] * n)),
        "image null": lambda: table.set_column(
            0, column, pa.array([None if k == i else v for k, v in enumerate(pictures)])
        ),
        "image garbage": lambda: table.set_column(
            0,
            column,
            pa.array([{**v, "bytes": b"\x89PNG" * (k == i)} for k, v in enumerate(pictures)]),
        ),
        "image cut": lambda: table.set_column(
            0, column, pa.array([{**v, "bytes": v["bytes"][:45]} for v in pictures])
        ),
        "image small": lambda: table.set_column(
            0, column, pa.array([{"bytes": png((3, 5), 1), "path": None}] * n)
        ),
        "no rows": lambda: table.slice(0, 0),
    }
    kind = str(rng.choice(list(kinds)))
    return kind, parquet(kinds[kind]()), True


def mutate_json(rng: np.random.Generator, name: str) -> tuple[str, bytes, bool]:
    content = pickle.loads(whole(name)) if name.endswith("pickle") else json.loads(whole(name))
    encode = pickle.dumps if name.endswith("pickle") else lambda x: json.dumps(x).encode()
    shape = str(rng.choice(["list", "number", "text", "none", "nothing", "deep", "entry", "value"]))
    if shape == "deep":
        return shape, b"[" * 200_000, True
    tops = {"list": [1, 2], "number": 7, "text": "seven", "none": None, "nothing": {}}
    if shape in tops:
        return shape, encode(tops[shape]), True
    key = str(rng.choice(list(content)))
    junk: dict[str, object] = {
        "none": None,
        "text": "seven",
        "negative": -5,
        "nan": float("nan"),
        "inf": float("inf"),
        "list": [[]],
        "bool": True,
        "empty": {},
        "long": 10**400,
    }
    kind = str(rng.choice(list(junk)))
    if shape == "value" and isinstance(content[key], dict):
        used = [k for k in content[key] if k not in ("duration", "model")]
        inner = str(rng.choice(used))
        content[key][inner] = junk[kind]
        return f"{inner} {kind}", encode(content), True
    content[key] = junk[kind]
    return f"entry {kind}", encode(content), True


def mutate_matrix(rng: np.random.Generator) -> tuple[str, bytes, bool]:
    kinds = {
        "text": (b"a,b\nc,d\n", True),
        "not square": (b"1,2,3\n4,5,6\n", True),
        "ragged": (b"1,2\n3\n", True),
        "nan": (b"0,nan\n1,0\n", True),
        "inf": (b"0,inf\n1,0\n", True),
        "not utf-8": (b"0,\xff\xfe\n1,0\n", True),
        "semicolons": (b"0;1\n1;0\n", True),
        "negative": (b"0,-1\n-1,0\n", False),
        "one": (b"0\n", False),
    }
    kind = str(rng.choice(list(kinds)))
    return kind, *kinds[kind]


def mutate_arrays(rng: np.random.Generator) -> tuple[str, bytes, bool]:
    good = np.full((30, 8), 0.5, dtype=np.float32)
    bad = good.copy()
    bad[tuple(rng.integers((30, 8)))] = rng.choice([np.nan, np.inf, -np.inf, -1.0, 0.0])
    plain = io.BytesIO()
    np.save(plain, good)
    kinds: dict[str, tuple[bytes, bool]] = {
        "no such load": (npz(**{"load_0.250": good}), True),
        "a number": (npz(**{"load_0.500": bad}), True),
        "one dimension": (npz(**{"load_0.500": good[0]}), True),
        "empty": (npz(**{"load_0.500": good[:0]}), True),
        "text": (npz(**{"load_0.500": np.array([["a"] * 8] * 30)}), True),
        "objects": (npz(**{"load_0.500": np.array([[{}] * 8] * 30)}), True),
        "complex": (npz(**{"load_0.500": good.astype(complex)}), True),
        "few workers": (npz(**{"load_0.500": good[:, :2]}), True),
        "whole numbers": (npz(**{"load_0.500": np.ones((30, 8), dtype=np.int64)}), False),
        "one array": (plain.getvalue(), True),
    }
    kind = str(rng.choice(list(kinds)))
    return kind, *kinds[kind]


def mutate_text(rng: np.random.Generator) -> tuple[str, bytes, bool]:
    kinds = {
        "latin": (whole("tinyshakespeare/input.txt") + "\n\nA:\né".encode("latin-1"), True),
        "newlines": (b"\n" * 500, True),
        "short": (b"A:\nto be", True),
        "zeros": (b"\0" * 4000, False),
        "one line": (b"to be or not to be " * 300, True),
        "names only": (b"A:\n\nB:\n\n" * 50, True),
        "many characters": (("A:\n" + "".join(map(chr, range(0x4E00, 0x4F00)))).encode(), False),
        "windows": (whole("tinyshakespeare/input.txt").replace(b"\n", b"\r\n"), False),
    }
    kind = str(rng.choice(list(kinds)))
    return kind, *kinds[kind]


@dataclass(frozen=True)
class MutatedFile:
    """A file with other content than it should have; None is none, a folder is in its place."""

    kind: str
    name: str
    content: bytes | None
    must: bool

    @property
    def overrides(self) -> tuple[str, ...]:
        return (*RUN, *RUNS[self.name])

    @property
    def names(self) -> tuple[str, ...]:
        folder, _, file = self.name.partition("/")
        return (file,) if folder == "traces" else (file, RUNS[self.name][0].partition("=")[2])

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}"


def mutated_file(number: int) -> MutatedFile:
    """Returns the mutated file of a number, the same one every time."""
    rng = np.random.default_rng([number, 8])
    name = list(RUNS)[number % len(RUNS)]
    good = whole(name)
    match str(
        rng.choice(["cut", "empty", "noise", "flip", "head", "other", "folder", *["own"] * 9])
    ):
        case "cut":
            cut = good[: int(rng.integers(1, len(good) - 8))]
            return MutatedFile("cut", name, cut, not name.endswith(("txt", "csv")))
        case "empty":
            return MutatedFile("empty", name, b"", True)
        case "noise":
            return MutatedFile("noise", name, rng.bytes(4000), True)
        case "flip":
            data = bytearray(good)
            for position in rng.integers(len(data), size=5):
                data[position] ^= int(rng.integers(1, 256))
            return MutatedFile("flip", name, bytes(data), False)
        case "head":
            return MutatedFile("head", name, b"\xef\xbb\xbf" + good, False)
        case "folder":
            return MutatedFile("folder", name, None, True)
        case "other":
            other = whole(str(rng.choice([n for n in RUNS if n[-4:] != name[-4:]])))
            return MutatedFile("other", name, other, name.endswith(("parquet", "npz")))
    if name.endswith("parquet"):
        kind, content, must = mutate_table(rng, name)
    elif name.endswith("txt"):
        kind, content, must = mutate_text(rng)
    elif name.endswith("csv"):
        kind, content, must = mutate_matrix(rng)
    elif name.endswith("npz"):
        kind, content, must = mutate_arrays(rng)
    elif name.endswith("pickle") and rng.random() < 0.3:
        kind, content, must = "malice", pickle.dumps({"1": Malice()}), True
    else:
        kind, content, must = mutate_json(rng, name)
    return MutatedFile(kind, name, content, must)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_DATA_DIR", str(tmp_path / "files"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (*RUNS, "cifar10/test.parquet"):
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(whole(name))
    return tmp_path / "files"


@lru_cache
def composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_module("fl.conf", version_base=None):
        return compose("config", overrides)


def built(overrides: tuple[str, ...]) -> Outcome:
    """Returns what the command line would say, without the seconds that Hydra takes."""
    try:
        fl.runs.build.build(composed(overrides))
    except Exception as error:
        return Outcome(1, f"fl: {explain(error) or traceback.format_exc()}\n", False)
    return Outcome(0, "", True)


def check_files(attempt, folder, numbers) -> None:
    wrong = []
    counts = {"refused": 0, "ran": 0}
    for number in numbers:
        mutant = mutated_file(number)
        path = folder / mutant.name
        path.unlink()
        if mutant.content is None:
            path.mkdir()
        else:
            path.write_bytes(mutant.content)
        outcome = built(mutant.overrides)
        if not outcome.refused:  # must then run as well
            outcome = attempt(mutant.overrides)
        if mutant.content is None:
            path.rmdir()
        path.write_bytes(whole(mutant.name))
        counts["refused" if outcome.refused else "ran"] += 1
        if (reason := complaint(mutant, outcome)) is not None:
            wrong.append(f"{number}: {reason}: {mutant}\n{outcome.error[-700:]}")
    print(counts)
    assert not wrong, "\n".join([f"{len(wrong)} of {len(numbers)}", *wrong])
    assert not (folder / "PWNED").exists()


def test_command_says_what_is_wrong_with_a_file(attempt, folder):
    path = folder / "mnist" / "train.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    outcome = attempt((*RUN, *RUNS["mnist/train.parquet"]))
    assert (outcome.code, outcome.reached) == (1, False)
    assert outcome.error.startswith(f"fl: data: {path} is not a whole Parquet file (")
    assert outcome.error.count("\n") == 1


@pytest.mark.parametrize("name", RUNS)
def test_files_that_were_not_mutated_run(attempt, folder, name):
    outcome = attempt((*RUN, *RUNS[name]))
    # What there is to learn is nothing, so that a loss may go up.
    said = [line for line in outcome.error.splitlines() if "unlearnt" not in line]
    assert (outcome.code, said[-1:]) in ((0, []), (130, ["fl: interrupted"]))


def test_mutated_files_are_refused_with_their_cause_or_run(attempt, folder):
    check_files(attempt, folder, range(SAMPLE))


@pytest.mark.slow
def test_two_hundred_mutated_files(attempt, folder):
    check_files(attempt, folder, range(200))
