"""The rates of a strategy's rounds that follow a schedule: the server's and the clients'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fl.clients.local_optimizer import LR_FACTOR_KEY
from fl.errors import ConfigError
from fl.strategies.rates import Rate, check_factors, check_rate, factor_of
from fl.strategies.round_rule import HasModel, RoundRule, Updates


class RoundRates:
    """Steps of a rule at the rates of their rounds.

    Args:
        rule: has the server's rate `eta`.
        eta_schedule: factor on that by the round, from 0, or by that and the number of clients;
            None is 1.
        lr_schedule: likewise a factor on the clients' rate, told to them.

    Raises:
        ConfigError: a schedule is none, or the rule has no rate `eta` for it.
    """

    lasting = ("_last",)

    def __init__(
        self, rule: RoundRule, eta_schedule: Rate | None, lr_schedule: Rate | None
    ) -> None:
        check_rate("eta_schedule", eta_schedule)
        check_rate("lr_schedule", lr_schedule)
        if eta_schedule is not None and not hasattr(rule, "eta"):
            raise ConfigError(
                f"eta_schedule is {eta_schedule!r:.80}, and {type(rule).__name__} has no rate eta: "
                "leave it out, or use lr_schedule"
            )
        self.rule = rule
        self.eta_schedule = eta_schedule
        self.lr_schedule = lr_schedule
        self.begin()

    def begin(self) -> None:
        """Forgets the rounds that were."""
        self._last: float | None = None  # the clients' factor, in the last round with a step

    def check_rounds(self, num_rounds: int) -> None:
        """Raises ConfigError if a factor of such a run is 0."""
        check_factors("eta_schedule", self.eta_schedule, num_rounds, 1)
        check_factors("lr_schedule", self.lr_schedule, num_rounds, 1)

    def told(self, t: int, n: int) -> dict[str, float]:
        """Returns what the n clients of round t, from 0, are told."""
        if self.lr_schedule is None:
            return {}
        return {LR_FACTOR_KEY: factor_of(self.lr_schedule, t, n)}

    def of(self, t: int, n: int) -> dict[str, float]:
        """Returns what the record of round t, of n clients, says: "eta" and "lr_factor"."""
        rates = {}
        if self.eta_schedule is not None:
            eta: float = self.rule.eta  # type: ignore[attr-defined]
            rates["eta"] = eta * factor_of(self.eta_schedule, t, n)
        if self.lr_schedule is not None:
            rates["lr_factor"] = factor_of(self.lr_schedule, t, n)
        return rates

    def step(self, state: HasModel, updates: Updates, rates: Mapping[str, float]) -> HasModel:
        """Returns the rule's next state, at these rates of the round."""
        rule = self.rule
        if "eta" in rates:
            rule = replace(rule, eta=rates["eta"])  # type: ignore[type-var]
        if "lr_factor" in rates and self._last is not None:
            state = rule.at_rate(state, rates["lr_factor"] / self._last)
        made: HasModel = rule.step(state, updates)
        return made

    def stepped(self, rates: Mapping[str, float]) -> None:
        """Notes that the model has made the step of a round with these rates."""
        self._last = rates.get("lr_factor", 1.0)
