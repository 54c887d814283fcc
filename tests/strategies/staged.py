"""Fleets on which strategies pass the time of stages, with times that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord
from stand_ins import Client, FakeExecutor, FixedWork, fleet_of

from fl.simulation.grid import SimGrid

MODEL = ArrayRecord({"w": torch.zeros(1)})


def grid_of_stages(
    clients: Sequence[Client], seconds: Mapping[tuple[int, int], float] | None = None, **fleet: Any
) -> SimGrid:
    """Returns a grid whose clients take as many FLOPs for a message as it says.

    Args:
        clients: of the fleet.
        seconds: what single tasks take instead, by (client, task).
        **fleet: for `fleet_of`.
    """
    slow = seconds or {}

    def plan(request, _):
        i, k = request.client, request.dispatch
        flops = request.payload.content["config"]["flops"]
        if (i, k) in slow:
            flops = slow[i, k] * clients[i].flops
        return FixedWork(flops, reply_bytes=0)

    return SimGrid(fleet_of(clients, **fleet), FakeExecutor(), planner=plan)


def passes_of(grid: SimGrid, kind: Any) -> list[int]:
    """Returns the clients of the trace's events of a kind, in their order."""
    trace = grid.trace
    return [int(c) for c, k in zip(trace.client, trace.kind, strict=True) if k == kind]
