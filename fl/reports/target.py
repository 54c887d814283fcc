"""What a run is after, when it got there, and its best evaluation."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from fl.checks import at_least, boolean
from fl.errors import ConfigError
from fl.reports.history import COLUMNS, Row

Mode = Literal["max", "min"]

_LAST = 5  # one part of so many of a run's evaluations is its end
_MOST_NAMED = 20  # metrics, where there is no such one
_LESS = (
    *("loss", "error", "objective", "perplexity", "ppl", "nll"),
    *("mse", "rmse", "mae", "mape"),
)
_SHARES = (
    *("accuracy", "acc", "auc", "auroc", "ap", "map", "f1", "precision", "recall", "sensitivity"),
    *("specificity", "dice", "iou", "miou", "top1", "top5", "success", "jain"),
)
_MORE = (
    *(name for name in _SHARES if name not in ("success", "jain")),
    *("score", "kappa", "mcc", "r2", "bleu", "rouge", "psnr", "ssim"),
)
_WORD = re.compile(r"[A-Z]+(?![a-z])[0-9]*|[A-Z]?[a-z]+[0-9]*")


@dataclass(frozen=True)
class Target:
    """A value of a metric whose cost in time, bytes, joules and rounds is reported.

    Args:
        metric: name of the metric in the evaluation rows.
        value: the level to reach, finite.
        mode: "max" if reaching means `>= value`, "min" if it means `<= value`.
        stop: the run is to end when it is reached.
        patience: evaluations in a row without a better value of the metric after which the run is
            to end; None never ends it.

    Raises:
        ConfigError: mode, value or patience is out of range.
    """

    metric: str
    value: float
    mode: Mode = "max"
    stop: bool = False
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min"):
            raise ConfigError(f"mode is {self.mode!r}; it must be 'max' or 'min'")
        if self.metric in COLUMNS:
            raise ConfigError(
                f"metric is {self.metric!r}, which is what a run costs, not what it is after; a "
                f"metric of that name is recorded as 'server_{self.metric}'"
            )
        if not math.isfinite(self.value):
            raise ConfigError(f"value is {self.value}; it must be a finite number")
        boolean("stop", self.stop)
        if self.patience is not None:
            at_least("patience", self.patience, 1)

    def end(self, rows: Sequence[Row]) -> float:
        """Returns what a run has come to: the mean of the metric over the last of its evaluations.

        Those are a fifth of all that have the metric; NaN if there are none.
        """
        values = [row[self.metric] for row in rows if self.metric in row]
        return fmean(values[-math.ceil(len(values) / _LAST) :]) if values else math.nan

    def met_by(self, row: Row) -> bool:
        """Returns whether this evaluation is at the target or beyond; a NaN never is."""
        value = row.get(self.metric, math.nan)
        return value >= self.value if self.mode == "max" else value <= self.value

    def enough(self, rows: Sequence[Row]) -> str | None:
        """Returns why a run with these evaluations is to end; None if it is to go on."""
        if self.stop and rows and self.met_by(rows[-1]):
            return f"{self.metric} has reached {self.value:g}"
        if self.patience is None:
            return None
        known = [row[self.metric] for row in rows if not math.isnan(row.get(self.metric, math.nan))]
        before, since = known[: -self.patience], known[-self.patience :]
        sign = 1 if self.mode == "max" else -1
        if before and max(sign * x for x in since) <= max(sign * x for x in before):
            return f"{self.metric} has not become better in {self.patience} evaluations"
        return None

    def report(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Returns what it cost to reach the target, for summary.json.

        The cost is that of the first evaluation at the target, without interpolation: a run that
        evaluates rarely reports later times.

        Returns:
            metric, value, mode, reached; and round, time_s, wall_s, bytes, bytes_down, bytes_up,
            energy_j at the first evaluation that meets the target. These are None if there is
            none, and `reason` says why.
        """
        first = next((row for row in rows if self.met_by(row)), None)
        costs = ("round", "time_s", "wall_s", "bytes_down", "bytes_up", "energy_j")
        cost: dict[str, Any] = {name: first[name] if first else None for name in costs}
        cost["bytes"] = first["bytes_down"] + first["bytes_up"] if first else None
        reason = None if first else self._why_not(rows)
        return {
            "metric": self.metric,
            "value": self.value,
            "mode": self.mode,
            "reached": first is not None,
            **cost,
            "reason": reason,
        }

    def _why_not(self, rows: Sequence[Row]) -> str:
        found = best(rows, self.metric, self.mode)
        if not rows:
            return "the run made no evaluation"
        if found is None:
            others = dict.fromkeys(name for row in rows for name in row)
            there = [name for name in others if name not in (*COLUMNS, self.metric)]
            more = f" and {len(there) - _MOST_NAMED} more" if len(there) > _MOST_NAMED else ""
            known = f"; there are: {', '.join(there[:_MOST_NAMED])}{more}" if there else ""
            return f"no evaluation reported a number for {self.metric!r}{known}"
        return (
            f"not reached in {len(rows)} evaluation{'' if len(rows) == 1 else 's'}; "
            f"the best was {found['value']:.4g} {when(found['round'])}"
        )


def better(metric: str, target: Target | None = None) -> Mode | None:
    """Returns whether more or less of a metric is better; None if it has no better and worse.

    The target's mode holds for its own metric. For others a word of the name decides: losses and
    errors are minimised, accuracies and scores maximised. Whatever else is reported (counts, costs,
    staleness, distances, who was absent) describes a run and is no result that could be best.
    """
    if target is not None and metric == target.metric:
        return target.mode
    for word in map(str.lower, _WORD.findall(metric)):
        if word in _LESS or word.endswith("loss"):
            return "min"
        if word in _MORE:
            return "max"
    return None


def is_share(metric: str) -> bool:
    """Returns whether a metric, by its name, is a share of something, as accuracies are."""
    return any(word.lower() in _SHARES for word in _WORD.findall(metric))


def best(rows: Sequence[Row], metric: str, mode: Mode) -> dict[str, Any] | None:
    """Returns {value, round, time_s, mode} of a metric's best evaluation, the first among equals.

    None if no evaluation reported a number for it; NaN does not count.
    """
    seen = [row for row in rows if not math.isnan(row.get(metric, math.nan))]
    if not seen:
        return None
    choose = max if mode == "max" else min
    row = choose(seen, key=lambda r: r[metric])
    return {"value": row[metric], "round": row["round"], "time_s": row["time_s"], "mode": mode}


def when(server_round: int) -> str:
    """Returns in words when an evaluation was."""
    return f"in round {server_round}" if server_round else "before training"


def final_value(summary: Mapping[str, Any]) -> float | None:
    """Returns the last value of the target's metric in a summary.json; None if there is none."""
    target = summary["target"]
    final = None if target is None else summary["final"].get(target["metric"])
    return None if final is None else float(final)
