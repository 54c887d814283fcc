"""What is built where clients hold stages of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fl.clients import StageApp
from fl.errors import ConfigError
from fl.runs.experiment import Learning
from fl.simulation.world.fleet import Fleet
from fl.strategies import Exchange, Pipeline


def staged(
    strategy: Pipeline,
    learning: Learning,
    told: Mapping[str, Any],
    fleet: Fleet,
    exchange: Exchange,
) -> tuple[StageApp, Exchange]:
    """Returns what clients run, and the exchange with the stages.

    Args:
        strategy: says where to cut.
        learning: of the whole model.
        told: what the user has every message say.
        fleet: says what devices there are.
        exchange: of the run.

    Raises:
        ConfigError: the model cannot be cut so, the largest stage does not fit the devices, or
            messages say what machines do not read.
    """
    app, data = learning.app, learning.app.data
    if unread := [key for key in told if app.reads(key)]:
        raise ConfigError(
            f"train_config.{unread[0]} is {told[unread[0]]}, which machines of stages do not read: "
            "leave it out, and set client.batch_size or strategy.rule.optimizer instead"
        )
    if data.task == "game":
        raise ConfigError(
            f"data is {data.name!r}, a game, whose model is no sequence of layers: use another "
            "strategy, or data=digits"
        )
    cut = strategy.cut(learning.model(), data.input_shape, tokens=data.task == "next-token")
    layouts = [app.layout.of_names(stage.entries) for stage in cut.stages]
    own = StageApp(app, cut, layouts)
    fleet.check_memory(np.full(len(fleet), float(own.memory_bytes())))
    return own, replace(exchange, stages=cut)
