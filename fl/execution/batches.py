"""Which of the requests that wait are answered together.

The rule knows nothing of workers, so that their number cannot change a result.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import TypeVar

from flwr.clientapp import ClientApp

from fl.execution.contract import CohortRequest, PlannedApp, Request, RunInfo

Member = TypeVar("Member")


def form_batches(
    app: ClientApp, run: RunInfo, wave: Sequence[Request], max_batch: int
) -> list[list[Request]]:
    """Splits a wave into batches that train together.

    Requests with the same batch key stay in the order of their dispatch and are cut into runs of
    equal length, at most `max_batch`; into an even number of them if there is more than one, so
    that two workers are done at the same time. What cannot be batched forms batches of one. Only
    the wave and `max_batch` decide, never the number of workers. A cohort is a batch by itself.
    """
    if max_batch <= 1 or not isinstance(app, PlannedApp):
        return [[request] for request in wave]
    groups: dict[Hashable, list[Request]] = {}
    batches: list[list[Request]] = []
    for request in wave:
        key = None if isinstance(request, CohortRequest) else app.batch_key(request, run)
        if key is None:
            batches.append([request])
        else:
            groups.setdefault(key, []).append(request)
    for group in groups.values():
        batches += even_runs(group, _runs(len(group), max_batch))
    return batches


def form_cohorts(
    app: object, run: RunInfo, cohort: CohortRequest, max_batch: int
) -> list[CohortRequest]:
    """Splits a cohort into those that train together, as `form_batches` does with its requests."""
    n = count = len(cohort.clients)
    first = Request(cohort.client, cohort.dispatch, cohort.payload, "train", "", cohort.ttl)
    if max_batch > 1 and isinstance(app, PlannedApp) and app.batch_key(first, run) is not None:
        count = _runs(n, max_batch)
    runs = even_runs(list(range(n)), count)
    return [cohort.part(slice(places[0], places[-1] + 1)) for places in runs]


def _runs(members: int, max_batch: int) -> int:
    """Returns how many runs so many members are cut into."""
    count = -(-members // max_batch)
    return count + count % 2 if count > 1 else 1


def even_runs(members: list[Member], count: int) -> list[list[Member]]:
    """Returns `count` consecutive runs (fewer if there are fewer members) of about equal length."""
    count = min(count, len(members))
    ends = [len(members) * i // count for i in range(count + 1)]
    return [members[start:end] for start, end in pairwise(ends)]
