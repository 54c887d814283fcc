"""Attacks: what Byzantine clients send, and what they train on."""

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
