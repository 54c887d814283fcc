"""Readers of published measurement files: phones, link speeds, behaviour, latencies.

Formats (who made them, and what we checked them against):

| reader | file | format |
|---|---|---|
| `read_behaviour` | FedScale `client_behave_trace`; FLASH `state_traces.json` | pickle or JSON |
| `read_capacity` | FedScale `client_device_capacity` | pickle or JSON |
| `read_link_speeds` | FLASH `speed_distri.json` | JSON |
| `read_scores` | FLASH `benchmark2score.json` | JSON |
| `read_city_latency` | plexus `latencies.txt` | CSV matrix, ms |
| `read_preemptions` | bamboo `traces/*.csv` | CSV, ms |
| `read_worker_seconds` | seconds of serverless workers | NPZ of (rounds, workers) arrays |

FedScale: SymbioticLab/FedScale. FLASH: PKU-Chengxu/FLASH. plexus: sacs-epfl/plexus. bamboo:
uclasystem/bamboo. A pickle can run any program when it is loaded, so pickles are read by an
unpickler that builds containers, numbers and strings and refuses everything else.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import zipfile
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.vectors.npy import read_header


@dataclass(frozen=True)
class Behaviour:
    """When one recorded device was online.

    Attributes:
        intervals: (begin, end) in s with 0 <= begin < end <= period_s; they may touch or overlap.
        period_s: length of the record in s, after which it begins again.

    Raises:
        ConfigError: the period is not positive, or an interval does not lie in it.
    """

    intervals: tuple[tuple[float, float], ...]
    period_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.period_s) and self.period_s > 0):
            raise ConfigError(
                f"a behaviour record has period_s {self.period_s}; it must be positive and finite."
            )
        for begin, end in self.intervals:
            if not 0 <= begin < end <= self.period_s:
                raise ConfigError(
                    f"a behaviour record has the interval ({begin}, {end}); it takes "
                    f"0 <= begin < end <= period_s, which is {self.period_s}."
                )


class _PlainUnpickler(pickle.Unpickler):
    """Builds None, bool, numbers, strings, bytes, list, tuple, dict and set; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuses every global name, except the two that a set of an old protocol needs."""
        if module in ("builtins", "__builtin__") and name in ("set", "frozenset"):
            return {"set": set, "frozenset": frozenset}[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """Refuses references to objects outside the file."""
        raise pickle.UnpicklingError(f"it refers to an outside object {pid!r}")


def load_plain(path: str | Path) -> Any:
    """Loads a JSON file, or a pickle made of builtin containers, numbers and strings only.

    Args:
        path: a file that begins with `{` or `[` is read as JSON, any other as a pickle.

    Raises:
        ConfigError: the file does not exist, is damaged, or is a pickle that asks for anything
            that is not plain data.
    """
    content = _read(path)
    if content.lstrip()[:1] in (b"{", b"["):
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not valid JSON: {error}.") from error
    try:
        return _PlainUnpickler(io.BytesIO(content)).load()
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path} was not loaded: {error}. Only pickles of plain dicts, lists, numbers and "
            "strings are accepted, since any other can run code. Convert the file to JSON on a "
            "machine that may trust it."
        ) from error
    except (
        EOFError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        # What the unpickler raises on bytes that are no pickle, or half of one.
        raise ConfigError(f"{path} is neither JSON nor a whole pickle: {error}.") from error


def read_behaviour(path: str | Path) -> list[Behaviour]:
    r"""Reads when devices were online, in the format of FedScale or of FLASH.

    FedScale: `{id: {"duration", "inactive": [s], "finish_time": s, "active": [s], "model"}}`; the
    device is online from active[k] to inactive[k], time modulo finish_time. What lies beyond
    finish_time is never reached there, and is cut off here.

    FLASH: `{id: {"messages": "YYYY-MM-DD HH:MM:SS<tab>state\n..."}}`; online while the screen is
    locked, on Wi-Fi and charging; time counts from the record's first message, modulo its length.
    A device that is online at its last message is online until then (FLASH drops that interval).

    Returns:
        One record per device, in the order of the file.

    Raises:
        ConfigError: the file cannot be read, or an entry is not of this form.
    """
    entries = _entries(path, "devices")
    records = []
    for key, entry in entries.items():
        if not isinstance(entry, dict):
            raise ConfigError(f"{path}: device {key!r} is {type(entry).__name__}, not a dict.")
        if "messages" in entry:
            records.append(_flash_behaviour(f"{path}: device {key!r}", str(entry["messages"])))
        else:
            records.append(_fedscale_behaviour(f"{path}: device {key!r}", entry))
    return records


def _fedscale_behaviour(what: str, entry: dict[str, Any]) -> Behaviour:
    missing = {"active", "inactive", "finish_time"} - entry.keys()
    if missing:
        raise ConfigError(
            f"{what} lacks {', '.join(sorted(missing))}. FedScale's format has active, inactive "
            "and finish_time, FLASH's has messages."
        )
    for name in ("active", "inactive"):
        if not isinstance(entry[name], list | tuple):
            raise ConfigError(f"{what} has {name} {entry[name]!r}; it must be a list of seconds.")
    active, inactive = list(entry["active"]), list(entry["inactive"])
    period = _number(what, "finish_time", entry["finish_time"])
    if not period > 0:
        raise ConfigError(f"{what} has finish_time {period}; it must be positive.")
    if len(active) != len(inactive):
        raise ConfigError(
            f"{what} has {len(active)} active and {len(inactive)} inactive times; they come in "
            "pairs. Remove the device or complete its last interval."
        )
    intervals = []
    for k, (start, stop) in enumerate(zip(active, inactive, strict=True)):
        begin, end = _number(what, "active", start), _number(what, "inactive", stop)
        if not 0 <= begin <= end:
            raise ConfigError(
                f"{what} has active[{k}] {begin} and inactive[{k}] {end}; it takes "
                "0 <= active <= inactive."
            )
        if begin < min(end, period):
            intervals.append((begin, min(end, period)))
    return Behaviour(tuple(intervals), period)


_FLASH_STATES = {
    # state: (attribute it sets, value)
    "battery_charged_on": ("charging", True),
    "battery_charged_off": ("charging", False),
    "wifi": ("wifi", True),
    "unknown": ("wifi", False),
    "2g": ("wifi", False),
    "3g": ("wifi", False),
    "4g": ("wifi", False),
    "5g": ("wifi", False),
    "screen_lock": ("locked", True),
    "screen_unlock": ("locked", False),
}
_FLASH_IGNORED = ("screen_on", "screen_off")


def _flash_behaviour(what: str, messages: str) -> Behaviour:
    state = {"charging": False, "wifi": False, "locked": False}
    intervals: list[tuple[float, float]] = []
    origin: datetime | None = None
    ready_since: float | None = None
    now = 0.0
    for line in filter(None, (line.strip() for line in messages.splitlines())):
        stamp, _, name = line.partition("\t")
        name = name.strip().lower()
        try:
            moment = datetime.strptime(stamp.strip(), "%Y-%m-%d %H:%M:%S")
        except ValueError as error:
            raise ConfigError(f"{what}: {line!r} has no time: {error}.") from error
        if origin is None:
            origin = moment
        now = (moment - origin).total_seconds()
        if name in _FLASH_STATES:
            attribute, value = _FLASH_STATES[name]
            state[attribute] = value
        elif name not in _FLASH_IGNORED and not name.endswith("%"):
            raise ConfigError(f"{what}: unknown state {name!r} at {stamp}. Remove the device.")
        ready = all(state.values())
        if ready and ready_since is None:
            ready_since = now
        elif not ready and ready_since is not None:
            intervals.append((ready_since, now))
            ready_since = None
    if ready_since is not None:
        intervals.append((ready_since, now))
    if now <= 0:
        raise ConfigError(f"{what}: the messages span no time. Remove the device.")
    return Behaviour(tuple((b, e) for b, e in intervals if b < e), now)


def read_capacity(path: str | Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reads FedScale's device capacities, `{id: {"computation", "communication"}}`.

    Returns:
        Inference milliseconds per sample, shape (m,), and kbit/s of the link, shape (m,).

    Raises:
        ConfigError: the file cannot be read, or an entry is missing or not positive.
    """
    columns = _columns(path, "devices", ("computation", "communication"))
    for name, column in zip(("computation", "communication"), columns.T, strict=True):
        _check_positive(path, name, column)
    return columns[:, 0], columns[:, 1]


def read_link_speeds(path: str | Path) -> NDArray[np.float64]:
    """Reads FLASH's link speeds, `{id: {"down_u", "down_sigma", "up_u", "up_sigma"}}` in kB/s.

    A kilobyte is taken as 1000 bytes (FLASH's code uses 1024 for downloads, 1000 for uploads).

    Returns:
        Mean and standard deviation down, mean and standard deviation up, bit/s, shape (m, 4).

    Raises:
        ConfigError: the file cannot be read, or a speed is not positive.
    """
    columns = _columns(path, "users", ("down_u", "down_sigma", "up_u", "up_sigma"))
    _check_positive(path, "down_u", columns[:, 0])
    _check_positive(path, "up_u", columns[:, 2])
    if not (columns >= 0).all():
        raise ConfigError(f"{path}: a standard deviation is negative. Correct the file.")
    return columns * 8000.0


def read_scores(path: str | Path) -> NDArray[np.float64]:
    """Reads AI-Benchmark scores, `{phone: score}`; a higher score is a faster phone.

    Returns:
        Scores in the order of the file, shape (m,).

    Raises:
        ConfigError: the file cannot be read, or a score is not positive.
    """
    entries = _entries(path, "phones")
    scores = np.array([_number(f"{path}: {name!r}", "score", s) for name, s in entries.items()])
    _check_positive(path, "score", scores)
    return scores


def read_city_latency(path: str | Path) -> NDArray[np.float64]:
    """Reads a square matrix of delays from city to city, comma-separated, in milliseconds.

    The plexus file holds halves of round trips of three decimals, so its numbers are one-way.
    Negative entries are invalid measurements and become 0.

    Returns:
        One-way delays in s, float64, shape (m, m); row is the sender.

    Raises:
        ConfigError: the file cannot be read, or is not a square matrix of finite numbers.
    """
    content = _read(path)
    if not content.strip():
        raise ConfigError(f"{path} is empty; it must be a square matrix of milliseconds.")
    try:
        text = content.decode()
        matrix = np.loadtxt(io.StringIO(text), delimiter=",", ndmin=2)
    except ValueError as error:
        raise ConfigError(f"{path} is not a matrix of numbers: {error}.") from error
    if matrix.shape[0] != matrix.shape[1] or matrix.size == 0 or not np.isfinite(matrix).all():
        raise ConfigError(
            f"{path} has shape {matrix.shape}; it must be a square matrix of finite milliseconds."
        )
    return np.maximum(matrix, 0.0) / 1000.0


def read_worker_seconds(path: str | Path, load: float) -> NDArray[np.floating]:
    """Reads measured seconds of workers from an NPZ file of arrays `load_<l>`, l of 3 decimals.

    Args:
        path: the file.
        load: normalised load at which the workers were measured, for example 0.5.

    Returns:
        Seconds, shape (rounds, workers), in the file's dtype; whole numbers as float64.

    Raises:
        ConfigError: the file cannot be read, or has no array for this load.
    """
    content = io.BytesIO(_read(path))
    name = f"load_{load:.3f}"
    try:
        with np.load(content, allow_pickle=False) as arrays:
            if name in arrays.files:
                _check_member(arrays.zip, f"{name}.npy")
            if name not in arrays.files:
                raise ConfigError(
                    f"{path} has no array {name}; it has {', '.join(sorted(arrays.files))}. "
                    "Choose one of these loads."
                )
            seconds = np.asarray(arrays[name])
    except ConfigError:
        raise
    except Exception as error:  # of NumPy, zipfile or zlib, each with its own kinds
        raise ConfigError(f"{path} is not an NPZ file of plain arrays: {error}.") from error
    if seconds.dtype.kind not in "fiu":
        raise ConfigError(f"{path}: {name} holds {seconds.dtype}; it must hold seconds, as floats.")
    return seconds.astype(np.float64) if seconds.dtype.kind in "iu" else seconds


def _check_member(archive: zipfile.ZipFile, name: str) -> None:
    """Raises a ValueError unless an array is as long as it says: NumPy asks for memory first."""
    with archive.open(name) as file:
        dtype, shape, _, start = read_header(file.read(10_012))
    size, claim = archive.getinfo(name).file_size, start + prod(shape) * np.dtype(dtype).itemsize
    if size != claim:
        raise ValueError(f"{name} has {size} bytes, but says that it has {claim}")


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}. Give the path of the file, or set FL_DATA_DIR "
            "to the folder that holds traces/."
        ) from error


def _entries(path: str | Path, what: str) -> dict[Any, Any]:
    content = load_plain(path)
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path} must hold a dict of {what}, with at least one entry.")
    return content


def _columns(path: str | Path, what: str, names: tuple[str, ...]) -> NDArray[np.float64]:
    entries = _entries(path, what)
    rows = []
    for key, entry in entries.items():
        if not isinstance(entry, dict) or not set(names) <= entry.keys():
            raise ConfigError(f"{path}: entry {key!r} must be a dict with {', '.join(names)}.")
        rows.append([_number(f"{path}: entry {key!r}", name, entry[name]) for name in names])
    return np.array(rows)


def _number(what: str, name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool | str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):  # the last: a whole number of 400 digits
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{what} has {name} {repr(value)[:40]}; it must be a finite number.")
    return number


def _check_positive(path: str | Path, name: str, column: NDArray[np.float64]) -> None:
    bad = np.flatnonzero(~(column > 0))
    if len(bad):
        raise ConfigError(
            f"{path}: entry number {bad[0]} has {name} {column[bad[0]]}; it must be positive "
            f"({len(bad)} of {len(column)} entries are not). Remove or correct them."
        )


def read_preemptions(path: str | Path) -> list[Behaviour]:
    """Reads when the machines of a pool were there, in the format of uclasystem/bamboo.

    Rows of CSV without a header, `milliseconds,add|remove,node`, in the order of time. A machine
    that is added gets the slot that is free the longest, or a new one; so there are as many slots
    as there were machines at once. The record ends with its last row.

    Returns:
        One record per slot, all of the same length: who is removed together stays together.

    Raises:
        ConfigError: the file cannot be read, or a row is not of this form.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    slot: dict[str, int] = {}  # of machines that are there
    free: deque[int] = deque()
    began: list[float] = []
    intervals: list[list[tuple[float, float]]] = []
    now = 0.0
    for number, line in enumerate(lines, 1):
        row = line.split(",")
        if len(row) != 3 or row[1] not in ("add", "remove") or not row[0].isdecimal():
            raise ConfigError(
                f"{path}, line {number}: {line!r:.60} is not milliseconds,add,node or "
                "milliseconds,remove,node"
            )
        time, node = int(row[0]) / 1000.0, row[2]
        if time < now or (row[1] == "add") == (node in slot):
            raise ConfigError(
                f"{path}, line {number}: {line!r:.60} comes before the line above it, or adds a "
                "machine that is there, or removes one that is not"
            )
        now = time
        if row[1] == "add":
            if not free:
                free.append(len(intervals))
                intervals.append([])
                began.append(0.0)
            slot[node] = free.popleft()
            began[slot[node]] = now
        else:
            own = slot.pop(node)
            if began[own] < now:
                intervals[own].append((began[own], now))
            free.append(own)
    for own in slot.values():
        if began[own] < now:
            intervals[own].append((began[own], now))
    if not any(intervals):
        raise ConfigError(f"{path} has no machine that is there for any time")
    return [Behaviour(tuple(own), now) for own in intervals]
