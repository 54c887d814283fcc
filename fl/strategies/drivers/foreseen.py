"""Rounds without messages: those whose answers are known before clients are asked.

Without training an answer is the model as it was sent, so that a grid which simulates a cohort as
arrays (`fl.flower.grid_view.Cohorts`) needs no message for each client.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fl.aggregation import Mean, check_weights
from fl.errors import ConfigError, NoStep
from fl.flower.grid_view import Cohorts, Outcome
from fl.selection import Choice, UniformSampling
from fl.strategies.drivers.server import Server

if TYPE_CHECKING:
    from fl.strategies.drivers.rounds import Rounds


def needs_messages(strategy: Rounds, server: Server) -> str:
    """Returns why a round has to be made of messages; "" if the answers' numbers would do.

    Without training each answer is the model as it was sent: of the changes, which are all 0,
    a rule that combines nothing else gets the mean.
    """
    rule = strategy.rule
    for needs, why in (
        (server.tasks.any_open, "clients are busy"),
        (strategy.summation is not None, "machines add up what arrives"),
        (server.forging is not None, "replies are forged"),
        (type(strategy.selection) is not UniformSampling, "the selection looks at replies"),
        (strategy.over_selection != 1, "clients that are too late go on into the next round"),
        (strategy.evaluates_on_clients, "clients evaluate the model"),
        (strategy.sub_models is not None, "clients hold parts of the model"),
        (strategy.noise.scale is not None, "noise_scale looks at each change"),
        (strategy.noise.test is not None, "batch_test looks at each change"),
        (type(strategy.aggregator) is not Mean, "the aggregator looks at each change"),
        (not rule.folds or bool(rule.needs), "the rule looks at more than the mean change"),
        (
            rule.num_models > 1 or rule.edges > 0 or bool(rule.clients_choose),
            "the rule has several models",
        ),
        (rule.everybody or rule.public_examples > 0, "the rule has clients of its own choice"),
        (strategy.weighted_by_key != "num-examples", "replies weigh what they say"),
        (server.model.layout.is_large, "large models are added up as they come"),
        (bool(server.model.layout.carried), "what is no float is the replies' median"),
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
    content = strategy.messages.alike(server, n, partial(strategy.told_clients, server, waits_for))
    if content is None:
        return False

    def accepts(metrics: Sequence[Mapping[str, Any]]) -> bool:
        return not any(strategy.refuses(reported) for reported in metrics)

    tasks, began = server.tasks, server.now
    deadline = math.inf if strategy.deadline_s is None else began + strategy.deadline_s
    outcome = cohorts.run(
        content,
        choice.clients,
        tasks.ttl_s,
        until=deadline,
        accepts=accepts,
        bears=strategy.failing.bears,
    )
    if outcome is None:
        return False
    tasks.heard()
    strategy.failing.begin_with(outcome.failed_at_last, began)
    strategy.wanted, strategy.waits_for, strategy.selected = waits_for, n, n
    strategy.opens_s = math.inf
    _step(strategy, server, cohorts, outcome)
    return True


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
