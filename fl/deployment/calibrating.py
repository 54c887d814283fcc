"""Calibration on a deployment: what SuperNodes measure of themselves, gathered by the server."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fl.deployment import fitting
from fl.deployment.grid import DeployedGrid
from fl.deployment.measuring import Measured, from_metrics, measure, process_age_s, to_metrics
from fl.errors import DeploymentError
from fl.flower.identity import client_of

log = logging.getLogger("fl")

TIME = "query.time"
"""Type of the message that asks a node what its process took to start, and what work takes."""

_STARTS = 4  # messages to each node, each of which starts a process
_WITHIN_S = 1800.0


def answer(message: Message) -> MetricRecord:
    """Returns what a client says to a `TIME` message; asked for "work" it measures, too."""
    age_s, processor_s = process_age_s(), time.process_time()
    told: Any = message.content["config"]
    measured = measure(3, processes=False) if told["work"] else Measured()
    measured.start, measured.age = [processor_s], [age_s]
    return to_metrics(measured)


def calibrate(grid: DeployedGrid, name: str, folder: Path) -> None:
    """Asks all connected SuperNodes, writes a runtime and a fleet, and prints them.

    Args:
        grid: whose clients are connected.
        name: of both members.
        folder: of configuration, where they are written.

    Raises:
        DeploymentError: a node has not answered, or not with what was asked.
    """
    of_node: dict[int, list[Measured]] = {}
    for k in range(_STARTS):
        config = ConfigRecord({"work": k == 0})
        # One after the other: nodes that share a machine would slow each other down.
        for node in grid.get_node_ids():
            content = RecordDict({"config": config})
            replies = grid.send_and_receive([Message(content, node, TIME)], timeout=_WITHIN_S)
            reply = replies[0] if replies else None
            of_node.setdefault(client_of(node), []).append(_read(node, reply))
    pooled = Measured()
    for client, parts in of_node.items():
        own = _joined(parts)
        fit = fitting.fit_steps(own.steps)
        print(f"SuperNode {client}: {fit.flops} FLOP/s, start {fitting.median(own.age)} s")
        pooled = _joined([pooled, own])
    conclude(pooled, name, folder, f"On {len(of_node)} SuperNodes of a deployment")


def conclude(measured: Measured, name: str, folder: Path, where: str) -> None:
    """Writes what was measured, and prints it, with a warning if the host was busy."""
    found, fit = fitting.constants(measured)
    busy = fitting.warning(measured)
    about = [
        f"{where}, measured by `fl calibrate` on {date.today().isoformat()}.",
        f"The wall's time was {measured.busy:.2f} times the processor's"
        + (": the host was busy, and times are the processor's." if busy else "."),
        f"Steps: {fit.error:.1%} median error of the fit, {fit.worst:.1%} the worst.",
    ]
    runtime, fleet = fitting.write(folder, name, found, fit.flops, about)
    for key, constant in found.items():
        print(f"  {key:28} {constant}")
    print(f"steps: {fit.error:.1%} median error of the fit, {fit.worst:.1%} the worst")
    if busy:
        log.warning("%s", busy)
    print(f"{runtime} and {fleet} have it: fl -cd {folder} runtime={name} fleet={name}")


def _read(node: int, reply: Message | None) -> Measured:
    if reply is None or reply.has_error():
        why = f"no answer in {_WITHIN_S:g} s" if reply is None else reply.error.reason
        raise DeploymentError(f"SuperNode {client_of(node)} was not measured: {why}")
    records: Mapping[str, MetricRecord] = reply.content.metric_records
    try:
        return from_metrics(records["metrics"])
    except (KeyError, ValueError) as error:
        raise DeploymentError(f"SuperNode {client_of(node)} answers something else: {error}") from (
            error
        )


def _joined(parts: list[Measured]) -> Measured:
    """Returns all samples together."""
    whole = Measured()
    for part in parts:
        for name in ("start", "age", "decode", "encode", "aggregate", "steps"):
            getattr(whole, name).extend(getattr(part, name))
        whole.processor_s += part.processor_s
        whole.wall_s += part.wall_s
    return whole
