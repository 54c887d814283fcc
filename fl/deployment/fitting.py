"""From what was measured to constants of a runtime and a fleet, with intervals, as YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from fl.deployment.measuring import Measured, StepTime
from fl.errors import ConfigError
from fl.randomness import generator

_DRAWS = 400  # bootstrap samples of an interval
_BUSY = 1.1  # the wall's time over the processor's, above which a host is busy


@dataclass(frozen=True)
class WithInterval:
    """A measured constant, and its 95 % interval.

    Attributes:
        value: the median, or the fit to medians.
        low, high: the bootstrap's 2.5 and 97.5 %; NaN if there is one sample only.
        samples: that it is from.
    """

    value: float
    low: float
    high: float
    samples: int

    def __str__(self) -> str:
        """Returns value and interval."""
        if self.samples < 2:
            return f"{self.value:.4g} (1 sample)"
        return f"{self.value:.4g} (95 %: {self.low:.4g} to {self.high:.4g}, n = {self.samples})"


def median(samples: Sequence[float]) -> WithInterval:
    """Returns the median of samples, and the interval of the median."""
    values = np.asarray(samples, dtype=np.float64)
    if not len(values):
        raise ConfigError("nothing was measured of which there could be a median")
    rng = generator(0, "calibration", len(values))
    drawn = np.median(rng.choice(values, (_DRAWS, len(values))), axis=1)
    return _constant(float(np.median(values)), drawn, len(values))


@dataclass(frozen=True)
class StepFit:
    """What a local step takes: step_s + step_s_per_parameter d + FLOPs / flops.

    Attributes:
        step_s, step_s_per_parameter: terms of a runtime.
        flops: FLOP/s of a device.
        error: median relative error of the fit.
        worst: the largest.
    """

    step_s: WithInterval
    step_s_per_parameter: WithInterval
    flops: WithInterval
    error: float
    worst: float


def fit_steps(steps: Sequence[StepTime]) -> StepFit:
    """Returns the fit to steps that minimises the squares of relative errors, no term negative.

    Raises:
        ConfigError: there are fewer than three steps, or time does not grow with their FLOPs.
    """
    if len(steps) < 3:
        raise ConfigError(f"{len(steps)} kinds of steps were measured; three constants need three")
    d = np.array([step.parameters for step in steps], dtype=np.float64)
    flops = np.array([step.flops for step in steps])
    times = [np.asarray(step.seconds) for step in steps]
    typical = np.array([np.median(seconds) for seconds in times])
    if not (typical > 0).all():
        raise ConfigError("a step took no processor time that could be measured")
    a, b, c = _fitted(d, flops, typical)
    if c <= 0:
        raise ConfigError("the time of steps does not grow with their FLOPs: measure larger models")
    rng = generator(0, "calibration of steps")
    n = sum(map(len, times)) // len(times)
    draws = [
        [np.median(rng.choice(seconds, len(seconds))) for seconds in times] for _ in range(_DRAWS)
    ]
    drawn = np.array([_fitted(d, flops, np.array(medians)) for medians in draws])
    errors = np.abs((a + b * d + c * flops) / typical - 1)
    per_flop = drawn[:, 2][drawn[:, 2] > 0]
    return StepFit(
        _constant(a, drawn[:, 0], n),
        _constant(b, drawn[:, 1], n),
        _constant(1 / c, 1 / per_flop, n),
        float(np.median(errors)),
        float(errors.max()),
    )


def _fitted(
    d: NDArray[np.float64], flops: NDArray[np.float64], times: NDArray[np.float64]
) -> tuple[float, float, float]:
    columns = np.stack([np.ones_like(d), d, flops], axis=1) / times[:, None]
    scale = columns.max(axis=0)
    found, _ = nnls(columns / scale, np.ones_like(times))
    a, b, c = (found / scale).tolist()
    return a, b, c


def _constant(value: float, drawn: NDArray[np.float64], samples: int) -> WithInterval:
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist() if samples > 1 else (np.nan, np.nan)
    return WithInterval(value, low, high, samples)


def constants(measured: Measured) -> tuple[dict[str, WithInterval], StepFit]:
    """Returns the keys of a runtime that were measured, and what steps take."""
    fit = fit_steps(measured.steps)
    found = {
        "decode_s_per_byte": median(measured.decode),
        "encode_s_per_byte": median(measured.encode),
        "send_s_per_byte": median(measured.encode),
        "receive_s_per_byte": median(measured.decode),
        "aggregate_s_per_parameter": median(measured.aggregate),
        "step_s": fit.step_s,
        "step_s_per_parameter": fit.step_s_per_parameter,
        "reference_flops": fit.flops,
        "server_flops": fit.flops,
    }
    # By the wall, a start waits for the disk as well, and for others that use the processor.
    start = measured.start if measured.busy > _BUSY else measured.age
    if start:
        found["start_s"] = median(start)
    if len(start) > 1:
        logs = np.log(start)
        drawn = generator(0, "calibration of starts").choice(logs, (_DRAWS, len(logs)))
        spread = np.std(drawn, axis=1, ddof=1)
        found["start_sigma"] = _constant(float(np.std(logs, ddof=1)), spread, len(logs))
    if measured.calls:
        found["call_s"] = calls_of(measured)
    return found, fit


def calls_of(measured: Measured) -> WithInterval:
    """Returns what a call takes: by the wall, or on a busy host processor time."""
    return median(measured.calls if measured.busy > _BUSY else measured.call_age)


def set_key(path: Path, key: str, constant: WithInterval, about: str) -> None:
    """Sets a key of a runtime's file, and prints it.

    Args:
        path: of the file.
        key: of the runtime.
        constant: its value.
        about: what it is from.
    """
    text, line = path.read_text("utf-8"), f"{key}: {constant.value!r} # {constant}, {about}"
    of_key = re.compile(rf"^{key}:.*$", re.MULTILINE)
    text = of_key.sub(line, text) if of_key.search(text) else f"{text}{line}\n"
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {key} is {constant}")


def warning(measured: Measured) -> str:
    """Returns what is to be said of a busy host; "" of an idle one."""
    if measured.busy <= _BUSY:
        return ""
    return (
        f"the host is busy: the wall's time was {measured.busy:.2f} times the processor's. What is "
        "written is processor time, as an idle host would take; caches and clocks are shared, so "
        "it may be too long, and what is predicted for a busy host too short"
    )


def write(
    folder: Path,
    name: str,
    found: Mapping[str, WithInterval],
    flops: WithInterval,
    about: Sequence[str],
) -> tuple[Path, Path]:
    """Writes members of the groups `runtime` and `fleet`; returns their paths.

    Args:
        folder: of configuration, as `-cd` has it.
        name: of both members.
        found: keys of the runtime.
        flops: FLOP/s of a client.
        about: lines that say where, when and how this was measured.
    """
    said = "".join(f"# {line}\n" for line in about)
    runtime, fleet = folder / "runtime" / f"{name}.yaml", folder / "fleet" / f"{name}.yaml"
    texts = {
        runtime: f"# fl -cd {folder} runtime={name} fleet={name}\n{said}"
        "defaults:\n  - flower\n  - _self_\n"
        + "".join(f"{key}: {x.value!r} # {x}\n" for key, x in found.items()),
        fleet: f"# fl -cd {folder} runtime={name} fleet={name}\n{said}"
        "defaults:\n  - uniform\n  - _self_\n"
        f"flops: {flops.value!r} # {flops}\n"
        "down_bps: .inf # links were not measured: state yours\nup_bps: .inf\n",
    }
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return runtime, fleet
