"""Mimic: all Byzantine clients resend one honest client's vector.

Karimireddy, He, Jaggi: Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, ICLR
2022, arXiv:2006.09365, Appendix B. No rule can see it: each vector sent is an honest one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fl.aggregation.gram import Array, Float64
from fl.attacks.attack import Attack, Forged, Knowledge, Scene, require
from fl.checks import read_if


@read_if(lambda a: a["warmup"] == 0, "target", only="only {at}warmup=0 reads it")
@read_if(lambda a: a["warmup"] > 0, "extreme", only="only {at}warmup above 0 reads it")
@dataclass(frozen=True)
class Mimic(Attack):
    """Resends the honest vector that lies farthest along the direction of largest variance.

    While round t < warmup, that direction z is learnt (Oja's rule):

        mu <- t/(1+t) mu + 1/(1+t) mean,    u = sum_i <x_i - mu, z> (x_i - mu)
        z <- normalise(t/(1+t) z + 1/(1+t) u / |u|),    z Gaussian at first

    The target is argmax_i <x_i, z>; after the warm-up it is the same client in each round, so the
    honest vectors must come in the same order in all rounds. If clients are sampled, use
    `target`, or warm up for ever.

    Attributes:
        warmup: rounds in which z is learnt and the target chosen anew; 0 for `target`.
        target: index of the honest vector to resend if warmup is 0.
        extreme: "max" or "min" of <x_i, z>.

    Raises:
        ConfigError: a parameter is none of these; the target is not one of the honest vectors.
    """

    knowledge: ClassVar[Knowledge] = "honest-vectors"

    warmup: int = 1
    target: int = 0
    extreme: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        require(
            self.warmup >= 0 and self.target >= 0 and self.extreme in ("max", "min"),
            f"Mimic: warmup={self.warmup}, target={self.target}, extreme={self.extreme!r}: need "
            "warmup >= 0, target >= 0, and 'max' or 'min'",
        )

    def forge(self, honest: Array, own: Array, scene: Scene) -> Forged:
        """Returns f copies of one honest vector, and what has been learnt."""
        if self.warmup == 0:
            target, memory = self.target, scene.memory
        else:
            t = int(scene.memory["round"]) if scene.memory else 0
            if t < self.warmup:
                mu, z = self._learn(t, honest, scene)
                along = honest @ z.astype(honest.dtype)
                target = int(np.argmax(along) if self.extreme == "max" else np.argmin(along))
                memory = {
                    "round": np.array(t + 1),
                    "mu": mu,
                    "z": z,
                    "target": np.array(target),
                }
            else:
                target, memory = int(scene.memory["target"]), scene.memory
        require(
            target < len(honest),
            f"Mimic: target {target} of {len(honest)} honest vectors: lower it, or see that the "
            "same clients take part in every round",
        )
        return Forged(np.broadcast_to(honest[target], own.shape), memory)

    def _learn(self, t: int, honest: Array, scene: Scene) -> tuple[Array, Array]:
        mean: Float64 = honest.mean(axis=0, dtype=np.float64)
        mu: Float64
        z: Float64
        if t == 0:
            mu = mean
            z = np.asarray(scene.generator("Mimic").standard_normal(honest.shape[1]))
        else:
            mu = t / (1 + t) * scene.memory["mu"] + mean / (1 + t)
            z = scene.memory["z"]
        # u = sum_i <x_i - mu, z> (x_i - mu), without forming the differences
        along = honest @ z.astype(honest.dtype) - mu @ z
        u = along.astype(honest.dtype) @ honest - along.sum() * mu
        length = np.linalg.norm(u)
        u = u / length if length > 0 else u  # all honest vectors are equal: any direction does
        z = u if t == 0 else t / (1 + t) * z + u / (1 + t)
        return mu, z / max(np.linalg.norm(z), np.finfo(np.float64).tiny)
