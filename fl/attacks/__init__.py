"""Attacks: what Byzantine clients send, and what they train on.

The names below are loaded when first used: a run needs few of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.lazy import lazily

if TYPE_CHECKING:
    from fl.attacks.alie import ALIE
    from fl.attacks.attack import Attack, Forged, LineAttack, SameVector, Scene
    from fl.attacks.backdoor import Backdoor, ModelReplacement
    from fl.attacks.ipm import IPM
    from fl.attacks.label_flip import LabelFlip
    from fl.attacks.mimic import Mimic
    from fl.attacks.min_max import MinMax, MinSum
    from fl.attacks.noise import ConstantUpdate, Gauss, UniformNoise
    from fl.attacks.optimized import Optimized, line_maximize
    from fl.attacks.poisoning import Combined, Poisoning, byzantine_clients, poisoned
    from fl.attacks.sign_flip import OwnSignFlip, SignFlip

__getattr__ = lazily(
    __name__,
    {
        "ALIE": "fl.attacks.alie",
        "Attack": "fl.attacks.attack",
        "Backdoor": "fl.attacks.backdoor",
        "Combined": "fl.attacks.poisoning",
        "ConstantUpdate": "fl.attacks.noise",
        "Forged": "fl.attacks.attack",
        "Gauss": "fl.attacks.noise",
        "IPM": "fl.attacks.ipm",
        "LabelFlip": "fl.attacks.label_flip",
        "LineAttack": "fl.attacks.attack",
        "Mimic": "fl.attacks.mimic",
        "MinMax": "fl.attacks.min_max",
        "MinSum": "fl.attacks.min_max",
        "ModelReplacement": "fl.attacks.backdoor",
        "Optimized": "fl.attacks.optimized",
        "OwnSignFlip": "fl.attacks.sign_flip",
        "Poisoning": "fl.attacks.poisoning",
        "SameVector": "fl.attacks.attack",
        "Scene": "fl.attacks.attack",
        "SignFlip": "fl.attacks.sign_flip",
        "UniformNoise": "fl.attacks.noise",
        "byzantine_clients": "fl.attacks.poisoning",
        "line_maximize": "fl.attacks.optimized",
        "poisoned": "fl.attacks.poisoning",
    },
)

__all__ = [
    "ALIE",
    "IPM",
    "Attack",
    "Backdoor",
    "Combined",
    "ConstantUpdate",
    "Forged",
    "Gauss",
    "LabelFlip",
    "LineAttack",
    "Mimic",
    "MinMax",
    "MinSum",
    "ModelReplacement",
    "Optimized",
    "OwnSignFlip",
    "Poisoning",
    "SameVector",
    "Scene",
    "SignFlip",
    "UniformNoise",
    "byzantine_clients",
    "line_maximize",
    "poisoned",
]
