"""What is learnt, from data, partition, model and client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from flwr.app import ArrayRecord
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fl.clients import TrainingApp
from fl.data import FederatedData, Source, Split, federate
from fl.data.held_out import validated
from fl.data.loading import deal, load
from fl.data.partition import hold_out
from fl.errors import ConfigError
from fl.flower.records import not_finite
from fl.models import Measures, smallest_batch
from fl.models import build as build_model
from fl.runs.kinds import blamed, expected, part_made
from fl.runs.making import Problems, blaming, make


class Learnt(NamedTuple):
    """What is learnt, by itself: `make_app` waits for what comes between clients and server.

    `holds_out` says whether data or partition have held-out examples of clients by themselves.
    """

    data: FederatedData
    model: partial[nn.Module]
    smallest_batch: int
    holds_out: bool
    make_app: Callable[..., TrainingApp]


def held_out_share(config: DictConfig) -> float:
    """Returns the share that clients without held-out examples keep; 0 if it is no share."""
    given = OmegaConf.select(config, "personal.held_out")
    return given if isinstance(given, int | float) and 0 < given < 1 else 0.0


def learnt_at(
    place: DictConfig, seed: int, held_out: float, validation: float, metrics: Sequence[str]
) -> Learnt:
    """Returns what is learnt, from the groups data, partition, model and client.

    Args:
        place: has the groups.
        seed: of the run.
        held_out: share of its examples that a client keeps if it has no held-out ones; 0 is none.
        validation: share of the training examples that takes the place of the test set.
        metrics: that are reported beside those that always are.

    Raises:
        ConfigError: some of them refuse their arguments; or the examples, with this partition and
            model.
    """
    problems, made = Problems(), {}
    for name in ("data", "partition", "model", "client"):
        with problems.noted():
            made[name] = make(place, name)
    with problems.noted():
        made["adapter"] = part_made(place, "adapter")
    if "data" in made and "partition" in made:
        with problems.noted():
            with blaming(place, "data"):
                loaded = expected(place, "data", load(made["data"]), Source)
            if validation:
                loaded = load(partial(_validated, made["data"], validation))
            with blaming(place, "partition"):
                split = expected(place, "partition", deal(made["partition"], loaded), Split)
                holds_out = split.test is not None
                if not holds_out:
                    split = hold_out(split, held_out, seed)
                data = federate(lambda: loaded, lambda _: split)
            if "model" in made and "adapter" in made:
                shape, classes = data.input_shape, data.num_classes
                model = partial(
                    build_model, made["model"], shape, classes, seed, adapter=made["adapter"]
                )
                adapt = made["adapter"] and blamed(place, "adapter", made["adapter"])
                with blaming(place, "model"):
                    first = expected(place, "model", model(adapter=adapt), nn.Module)
                    _check_finite(first)
                    tokens = data.task == "next-token"
                    least = smallest_batch(first, shape, classes, tokens=tokens)
            asked = Measures(data.task, tuple(metrics))
    problems.stop()
    more = [name for name in asked.names if name in metrics]
    client = partial(made["client"], metrics=more) if more else made["client"]
    return Learnt(data, model, least, holds_out, client)


def _validated(make: Callable[[], Source], share: float) -> Source:
    return validated(load(make), share)


def _check_finite(model: nn.Module) -> None:
    endless = sorted(not_finite(ArrayRecord(model.state_dict())))
    if endless:
        raise ConfigError(
            f"the initial model is not finite in {endless[0]!r}: models are averaged, and an "
            "infinity less another is no number; register_buffer constants such as masks as not "
            "persistent, and they stay out of the state dict"
        )
