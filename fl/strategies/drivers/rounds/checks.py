"""Which arguments of `Rounds` do not go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.errors import ConfigError
from fl.selection import UniformSampling
from fl.submodels import SparseMask, SubModels

if TYPE_CHECKING:
    from fl.strategies.drivers.rounds.rounds import Rounds


def check_sub_models(strategy: Rounds, sub_models: SubModels | SparseMask | None) -> None:
    """Raises ConfigError if the method is none for parts of a model."""
    kind = SparseMask if strategy.rule.prunes else SubModels
    must = strategy.rule.prunes or strategy.rule.knows_parts
    if not isinstance(sub_models, kind):
        raise ConfigError(
            f"sub_models is {sub_models!r:.80}; with {type(strategy.rule).__name__} it must "
            f"{'' if must else 'be null, or '}have a _target_ that makes a "
            f"fl.submodels.{kind.__name__}"
        )
    if strategy.rule.alone and strategy.robust:
        raise ConfigError(
            f"aggregator is {strategy.aggregator.name}, and the first {strategy.rule.alone} rounds "
            f"of {strategy.name} go by what one client sends: use aggregator=mean, or set "
            "rule.initial_rounds to 0"
        )
    extraction = sub_models.extraction if isinstance(sub_models, SubModels) else None
    if strategy.rule.resizes and extraction and not (extraction.stays and extraction.slices):
        raise ConfigError(
            f"sub_models.extraction is {type(extraction).__name__}, and {strategy.name} makes one "
            "model for each level, of the same form in all rounds: use fl.submodels.HeteroFL"
        )
    for option in ("masked_loss", "static_batch_norm"):
        if strategy.rule.knows_parts and getattr(sub_models, option, False):
            raise ConfigError(
                f"sub_models.{option} is true, and {strategy.name} makes models of parts by a rule "
                "of its own: set it to false"
            )
    if strategy.rule.of_adapters and extraction and not extraction.of_adapters:
        raise ConfigError(
            f"sub_models.extraction is {type(extraction).__name__}, and {strategy.name} is for "
            "adapters: use fl.submodels.AdapterRanks"
        )
    for given, why in (
        (
            not strategy.rule.prunes and (strategy.rule.carries or strategy.rule.needs),
            "vectors of the whole model travel beside it",
        ),
        (
            not (strategy.rule.prunes or strategy.rule.knows_parts or strategy.rule.folds),
            "it looks at more of the changes than their mean",
        ),
        (strategy.rule.num_models > 1, "it has several models"),
        (strategy.noise.scale is not None, "noise_scale compares changes of the whole model"),
        (
            strategy.aggregator.reference != "unused",
            f"{strategy.aggregator.name} compares changes with one of the whole model",
        ),
        (
            strategy.evaluates_on_clients,
            "clients evaluate the whole model, which they may have no memory for",
        ),
    ):
        if given:
            raise ConfigError(
                f"sub_models is set, and clients hold parts of the model, but with {strategy.name} "
                f"{why}: leave it out, or choose another strategy, aggregator, selection or "
                "option"
            )


def check_replies(strategy: Rounds, num_clients: int) -> None:
    """Raises ConfigError if a round of so many clients never has enough replies."""
    replies, models = strategy.replies_of(num_clients), strategy.rule.num_models
    if strategy.rule.everybody and replies < num_clients:
        source = "fraction_train" if strategy.clients is None else "clients"
        raise ConfigError(
            f"{source} is {getattr(strategy, source)}, which makes {replies} of {num_clients} "
            f"clients, and a step of {strategy.name} takes all: use fraction_train=1.0"
        )
    if strategy.rule.everybody and not isinstance(strategy.selection, UniformSampling):
        raise ConfigError(
            f"selection is {type(strategy.selection).__name__}, which leaves clients out, and a "
            f"step of {strategy.name} takes all: use selection=uniform"
        )
    n = min(replies, num_clients)
    if n < models and not strategy.rule.clients_choose:
        raise ConfigError(
            f"rule.num_models is {models}, and a round has {n} clients: each model needs one"
        )
    each = max(1, n // models)
    try:
        strategy.aggregator.check(each)
    except ConfigError as error:
        if models == 1:
            raise
        source = "fraction_train" if strategy.clients is None else "clients"
        raise ConfigError(
            f"{source} is {getattr(strategy, source)}, so that a round has {n} of {num_clients} "
            f"clients, {each} for each of the {models} models of {strategy.name}, and each model's "
            f"are combined by themselves ({error}): raise "
            f"{source if n < num_clients else 'num_clients'}, or choose another aggregator"
        ) from error
