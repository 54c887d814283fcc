"""Rounds without messages: those of which all but the training is known before clients are asked.

A grid which simulates a cohort as arrays (`fl.flower.grid_view.Cohorts`) needs no message for each
client where all are sent the same and what an answer costs is known. Without training the answer
is the model as it was sent, which needs no training either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fl.aggregation import Mean, check_weights
from fl.errors import ConfigError, NoStep
from fl.flower.grid_view import CohortReplies, Cohorts, Outcome
from fl.selection import Choice, UniformSampling
from fl.strategies.drivers.events.server import Sent, Server, Update
from fl.strategies.drivers.tasks import Task

if TYPE_CHECKING:
    from fl.strategies.drivers.rounds.rounds import Rounds


def needs_messages(strategy: Rounds, server: Server) -> str:
    """Returns why a round has to be made of messages; "" if all could be had without."""
    rule = strategy.rule
    for needs, why in (
        (server.tasks.any_open, "clients are busy"),
        (strategy.summation is not None, "machines add up what arrives"),
        (server.forging is not None, "replies are forged"),
        (type(strategy.selection) is not UniformSampling, "the selection looks at replies"),
        (strategy.over_selection != 1, "clients that are too late go on into the next round"),
        (strategy.evaluates_on_clients, "clients evaluate the model"),
        (strategy.sub_models is not None, "clients hold parts of the model"),
        (
            rule.num_models > 1 or rule.edges > 0 or bool(rule.clients_choose),
            "the rule has several models",
        ),
        (rule.everybody or rule.public_examples > 0, "the rule has clients of its own choice"),
        (server.model.layout.is_large, "large models are added up as they come"),
        (bool(rule.needs), "clients send more than a model"),
        (bool(server.model.layout.carried), "what is no float is the replies' median"),
    ):
        if needs:
            return why
    return ""


def needs_changes(strategy: Rounds) -> str:
    """Returns why a round needs each client's change of the model; "" if the mean would do.

    Without training the changes are all 0, and a rule that combines nothing else gets their mean.
    """
    for needs, why in (
        (strategy.noise.scale is not None, "noise_scale looks at each change"),
        (strategy.noise.test is not None, "batch_test looks at each change"),
        (type(strategy.aggregator) is not Mean, "the aggregator looks at each change"),
        (not strategy.rule.folds, "the rule looks at more than the mean change"),
        (strategy.weighted_by_key != "num-examples", "replies weigh what they say"),
    ):
        if needs:
            return why
    return ""


def has_foreseen(strategy: Rounds, server: Server, choice: Choice, waits_for: int) -> bool:
    """Has a round without messages if one is possible; returns whether it was."""
    n, cohorts = len(choice.clients), server.tasks.cohorts
    if cohorts is None:
        return False
    if needs_messages(strategy, server) or not 0 < n <= waits_for or choice.weights is not None:
        return False
    told = partial(strategy.told_clients, server, waits_for)
    if (alike := strategy.messages.alike(server, n, told)) is None:
        return False
    content, config = alike
    tasks, began = server.tasks, server.now
    deadline = math.inf if strategy.deadline_s is None else began + strategy.deadline_s
    how: dict[str, Any] = {"until": deadline, "bears": strategy.failing.bears}
    if not needs_changes(strategy):

        def accepts(metrics: Sequence[Mapping[str, Any]]) -> bool:
            return not any(strategy.refuses(reported) for reported in metrics)

        outcome = cohorts.run(content, choice.clients, tasks.ttl_s, accepts=accepts, **how)
        if outcome is not None:
            _begin(strategy, server, n, waits_for, began, outcome.failed_at_last)
            _step(strategy, server, cohorts, outcome)
            return True
    updates: list[Update] = []

    def reads(trained: CohortReplies) -> bool:
        read = _read(strategy, server, trained, config, began)
        updates.extend(read or ())
        failed_at_last.update(trained.failed_at_last)
        return read is not None

    failed_at_last: dict[tuple[int, str], int] = {}
    if not cohorts.train(content, choice.clients, tasks.ttl_s, accepts=reads, **how):
        return False
    _begin(strategy, server, n, waits_for, began, failed_at_last)
    if updates:
        strategy.heard_well()
    strategy.finish(server, updates, {})
    return True


def _begin(
    strategy: Rounds,
    server: Server,
    n: int,
    waits_for: int,
    began: float,
    failed_at_last: Mapping[tuple[int, str], int],
) -> None:
    """Notes that a round of n clients has been, as the driver does when it opens one."""
    server.tasks.heard()
    strategy.failing.begin_with(failed_at_last, began)
    strategy.begin_round(n, waits_for)


def _read(
    strategy: Rounds,
    server: Server,
    trained: CohortReplies,
    config: Mapping[str, Any],
    began: float,
) -> list[Update] | None:
    """Returns the updates of a cohort; None if one of them cannot be used."""
    sent, updates = Sent(server.version, server.w, config), []
    for name, node, received_s, row, metrics in zip(
        trained.message_ids,
        trained.nodes,
        trained.received_s,
        trained.rows,
        trained.metrics,
        strict=True,
    ):
        if row.shape != server.w.shape or strategy.refuses(metrics) is not None:
            return None
        updates.append(Update(Task(name, node, began, sent), row, metrics, received_s, {}))
    return updates


def _step(strategy: Rounds, server: Server, cohorts: Cohorts, outcome: Outcome) -> None:
    """Makes the next version of a cohort's answers, as `finish` does of replies."""
    places = np.flatnonzero(outcome.answered)
    places = places[np.argsort(outcome.nodes[places], kind="stable")]
    examples = [float(metrics[strategy.weighted_by_key]) for metrics in outcome.metrics]
    weights = np.array(examples)[outcome.which[places]]
    rates = strategy.rates.of(server.version, strategy.waits_for)
    strategy.latest, makes = {}, strategy.makes
    try:
        strategy.check_enough(len(places))
        check_weights(weights)
        mean = np.zeros(server.w.size, np.float32)
        updates = makes.updates_of_mean(np.empty((len(places), 0), np.float32), weights, mean)
        state = makes.stepped(server, updates, rates)
    except (NoStep, ConfigError) as error:
        why = strategy.why_no_step(error, len(places))
        cohorts.left(places)
        server.stay(why)
        return
    if rates:
        server.tasks.control.measured(rates)
    cohorts.used(outcome, places)
    if server.step(state.w, [], of_one_version=True):
        strategy.rates.stepped(rates)
        strategy.state = state._replace(w=server.w)
