"""TensorBoard event files whose clock is virtual.

Every event's wall time is virtual seconds since the start of the run, so TensorBoard's Relative
axis reads simulated time (from the first evaluation on: evaluate at time 0 to make it absolute).
Files are written with tensorboard's own record format; neither torch nor TensorFlow is needed.

Tags: `metrics/<name>` and `cost/<name>` have step = round. `by_bytes/<name>` has step = bytes moved
in both directions so far (int64), a second horizontal axis. `<tag>/histogram` is how a metric lies
over updates or clients. A metric whose name has a slash keeps
what is before it as its group, unless it is one of these.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fl.reports.client_rows import ACCURACY_EDGES, ClientRow
from fl.reports.history import COLUMNS, Row
from fl.reports.target import Target, better

_COSTS = tuple(name for name in COLUMNS if name != "round")
_GROUPS = ("metrics", "cost", "by_bytes", "best", "to_target", "_hparams_", "")  # ours, and no name


class TensorBoardLog:
    """Writes one run's event file.

    The file is opened, appended to and closed at each evaluation: nothing is lost if the process is
    killed, and no thread or descriptor stays behind. Event files of an earlier attempt in the same
    folder are removed; TensorBoard would merge them with the new one.

    Hyperparameters go into the same file as the scalars, as the three summaries of the hparams
    plugin. The experiment summary is written with the first evaluation, when the metrics' names are
    known, and lists every metric but the `by_bytes` ones. That matters: without a list the plugin
    takes all scalars, and it fails on steps above 2**31 - 1.

    Of several runs the plugin shows the columns of the first experiment summary it finds: see
    `write_hparams`.

    Args:
        directory: the `tb` folder of the run.
        hparams: flattened configuration, see `flattened`.
        target: its cost becomes the `to_target/...` scalars.
    """

    def __init__(
        self, directory: Path, hparams: Mapping[str, bool | float | str], target: Target | None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob("events.out.tfevents.*.fl"):
            old.unlink()
        # Host time only keeps the name apart from an earlier attempt's, for a viewer that is open.
        self.path = directory / f"events.out.tfevents.{int(time.time())}.{os.getpid()}.fl"
        self._hparams = dict(hparams)
        self._target = target
        self._described = False
        self._waiting: list[Callable[[], None]] = [self._session_start]

    def evaluation(
        self, row: Row, histograms: Mapping[str, Mapping[int, int]] | None = None
    ) -> None:
        """Appends the scalars of one evaluation, and histograms of whole numbers.

        Those of the model that training begins with are written with the next: TensorBoard takes a
        while to import, for which training is not to wait.
        """
        self._append(lambda: self._evaluation(row, histograms), now=row["round"] > 0)

    def _evaluation(self, row: Row, histograms: Mapping[str, Mapping[int, int]] | None) -> None:
        metrics = [name for name in row if name not in COLUMNS]
        if not self._described:
            self._experiment(metrics)
            self._described = True
        time_s, step = float(row["time_s"]), int(row["round"])
        moved = int(row["bytes_down"]) + int(row["bytes_up"])
        scalars = [(tag(name), step, row[name]) for name in metrics]
        scalars += [(f"cost/{name}", step, row[name]) for name in _COSTS]
        scalars += [(f"by_bytes/{name}", moved, row[name]) for name in metrics]
        self._write(
            [_scalar(time_s, *scalar) for scalar in scalars]
            + [
                # One bucket for each number that occurred.
                _histogram(
                    time_s, name, step, [(k - 0.5, k + 0.5, n) for k, n in sorted(counts.items())]
                )
                for name, counts in (histograms or {}).items()
            ]
        )

    def clients(self, server_round: int, time_s: float, rows: Sequence[ClientRow]) -> None:
        """Appends how many clients have which accuracy, with each model.

        Args: as of `ClientRows.add`.
        """
        self._append(lambda: self._clients(server_round, time_s, rows), now=server_round > 0)

    def _clients(self, server_round: int, time_s: float, rows: Sequence[ClientRow]) -> None:
        events = []
        for name in rows[0].models if rows else ():
            counts, _ = np.histogram([row.models[name][1] for row in rows], ACCURACY_EDGES)
            bins = zip(pairwise(ACCURACY_EDGES), counts.tolist(), strict=True)
            buckets = [(*edges, n) for edges, n in bins]
            events.append(_histogram(time_s, f"{name}_accuracy", server_round, buckets))
        self._write(events)

    def finish(self, time_s: float, step: int, succeeded: bool, scalars: Row) -> None:
        """Appends the run's closing scalars (tag to number) and its status."""
        self._append(lambda: self._finish(time_s, step, succeeded, scalars), now=True)

    def _append(self, write: Callable[[], None], *, now: bool) -> None:
        """Has something written, after what waits to be; not yet, unless now."""
        self._waiting.append(write)
        while now and self._waiting:
            self._waiting.pop(0)()

    def _finish(self, time_s: float, step: int, succeeded: bool, scalars: Row) -> None:
        from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

        self._write([_scalar(time_s, name, step, value) for name, value in scalars.items()])
        status = api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE
        data = plugin_data_pb2.HParamsPluginData(
            session_end_info=plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time_s)
        )
        self._hparams_summary("_hparams_/session_end_info", data, time_s)

    def _session_start(self) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.plugins.hparams import plugin_data_pb2

        self._write([event_pb2.Event(wall_time=0.0, file_version="brain.Event:2")])
        info = plugin_data_pb2.SessionStartInfo(start_time_secs=0.0)
        for name, value in self._hparams.items():
            field = info.hparams[name]
            if isinstance(value, bool):
                field.bool_value = value
            elif isinstance(value, str):
                field.string_value = value
            else:
                field.number_value = value
        data = plugin_data_pb2.HParamsPluginData(session_start_info=info)
        self._hparams_summary("_hparams_/session_start_info", data, 0.0)

    def _experiment(self, metrics: list[str]) -> None:
        best = [name for name in metrics if better(name, self._target) is not None]
        self._write([_experiment(self._hparams, metrics, best, self._target is not None)])

    def _hparams_summary(self, name: str, data: Any, time_s: float) -> None:
        self._write([_hparams_event(name, data, time_s)])

    def _write(self, events: list[Any]) -> None:
        _append(self.path, events)


def write_hparams(directory: Path, summaries: Sequence[Mapping[str, Any]]) -> None:
    """Lists, for the hparams page of a sweep's folder, in which keys its runs differ.

    Without it, the page has the columns of the first run it finds, all of them.

    Args:
        directory: of the sweep; the page must be opened on this folder.
        summaries: of its runs.
    """
    from tensorboard.compat.proto import event_pb2

    for old in directory.glob("events.out.tfevents.*.fl"):
        old.unlink()
    hparams = differing([flattened(summary["config"]) for summary in summaries])
    metrics = list(dict.fromkeys(name for summary in summaries for name in summary["final"]))
    target = any(summary["target"] for summary in summaries)
    path = directory / f"events.out.tfevents.{int(time.time())}.{os.getpid()}.fl"
    version = event_pb2.Event(wall_time=0.0, file_version="brain.Event:2")
    best = list(dict.fromkeys(name for summary in summaries for name in summary["best"]))
    _append(path, [version, _experiment(hparams, metrics, best, target)])


def differing(
    configs: Sequence[Mapping[str, bool | float | str]],
) -> dict[str, bool | float | str]:
    """Returns the keys in which configurations differ, each with a value that one of them has.

    A key that only some have counts if it differs among those: else it says no more than what makes
    them have it. Of keys that refer to another, such as all seeds to `seed`, the other is enough.

    Args:
        configs: flattened.
    """
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: [repr(c[key]) if key in c else None for c in configs] for key in keys}
    found: dict[str, bool | float | str] = {}
    for key in sorted(keys, key=lambda key: key.count(".")):
        own = values[key]
        if len({value for value in own if value is not None}) < 2:
            continue
        name = key.rpartition(".")[2]
        copies = (
            own == values[other]
            or (
                name == other.rpartition(".")[2]
                and all(v in (None, w) for v, w in zip(own, values[other], strict=True))
            )
            for other in found
        )
        if not any(copies):
            found[key] = next(config[key] for config in configs if key in config)
    return found


def _experiment(
    hparams: Mapping[str, bool | float | str],
    metrics: Iterable[str],
    best: Iterable[str],
    target: bool,
) -> Any:
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    types = {bool: api_pb2.DATA_TYPE_BOOL, str: api_pb2.DATA_TYPE_STRING}
    tags = [tag(name) for name in metrics] + [f"cost/{name}" for name in _COSTS]
    tags += [f"best/{name}" for name in best]
    if target:
        tags += [f"to_target/{name}" for name in ("round", "time_s", "bytes", "energy_j")]
    experiment = api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(name=name, type=types.get(type(v), api_pb2.DATA_TYPE_FLOAT64))
            for name, v in hparams.items()
        ],
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=name)) for name in tags],
    )
    data = plugin_data_pb2.HParamsPluginData(experiment=experiment)
    return _hparams_event("_hparams_/experiment", data, 0.0)


def _hparams_event(name: str, data: Any, time_s: float) -> Any:
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.plugins.hparams import metadata

    value = summary_pb2.Summary.Value(
        tag=name, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR
    )
    return event_pb2.Event(wall_time=time_s, summary=summary_pb2.Summary(value=[value]))


def _append(path: Path, events: Iterable[Any]) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    with open(path, "ab") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())


def tag(metric: str) -> str:
    """Returns the TensorBoard tag of a metric: under `metrics`, unless it has its own group."""
    group, slash, _ = metric.partition("/")
    return metric if slash and group not in _GROUPS else f"metrics/{metric}"


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | float | str]:
    """Returns a nested configuration as one level of dotted names.

    Lists become JSON text, None becomes "null"; mappings are descended into.
    """
    flat: dict[str, bool | float | str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flattened(value, f"{name}."))
        elif isinstance(value, bool | int | float | str):
            flat[name] = value
        else:
            flat[name] = json.dumps(value)
    return flat


def _scalar(time_s: float, name: str, step: int, value: float) -> Any:
    from tensorboard.compat.proto import event_pb2, summary_pb2

    summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=name, simple_value=value)])
    return event_pb2.Event(wall_time=time_s, step=step, summary=summary)


def _histogram(
    time_s: float, name: str, step: int, buckets: Sequence[tuple[float, float, int]]
) -> Any:
    """Returns the event of a metric's histogram: left edge, right edge and count of each bucket."""
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.plugins.histogram import metadata
    from tensorboard.util import tensor_util

    value = summary_pb2.Summary.Value(
        tag=f"{tag(name)}/histogram",
        metadata=metadata.create_summary_metadata(display_name=None, description=None),
        tensor=tensor_util.make_tensor_proto(np.array(buckets)),
    )
    summary = summary_pb2.Summary(value=[value])
    return event_pb2.Event(wall_time=time_s, step=step, summary=summary)
