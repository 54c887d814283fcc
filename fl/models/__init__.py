"""Models, their objective, their evaluation and what they cost.

A model is a torch module built as `Model(input_shape=..., num_classes=..., **config)`.
"""

from fl.models.adapters import Adapter, LoRA, PaCA, merged
from fl.models.architecture import timm, torchvision
from fl.models.build import build
from fl.models.char_gpt import CharGPT
from fl.models.char_lstm import CharLSTM
from fl.models.evaluation import Evaluation, draws, evaluate, losses_of
from fl.models.flops import Flops, flops_per_example, memory_bytes
from fl.models.game import Game, QuadraticGame, RobustLeastSquares
from fl.models.global_objective import GlobalObjective, global_objective
from fl.models.huggingface import HuggingFace
from fl.models.leaf_cnn import LeafCNN
from fl.models.linear import LogisticRegression
from fl.models.metrics import Measures
from fl.models.mlp import MLP
from fl.models.objective import correct, per_example_loss
from fl.models.pieces import Piece, pieces_of
from fl.models.probe import smallest_batch
from fl.models.resnet8 import ResNet8
from fl.models.structure import copy_of, drop_weights

__all__ = [
    "MLP",
    "Adapter",
    "CharGPT",
    "CharLSTM",
    "Evaluation",
    "Flops",
    "Game",
    "GlobalObjective",
    "HuggingFace",
    "LeafCNN",
    "LoRA",
    "LogisticRegression",
    "Measures",
    "PaCA",
    "Piece",
    "QuadraticGame",
    "ResNet8",
    "RobustLeastSquares",
    "build",
    "copy_of",
    "correct",
    "draws",
    "drop_weights",
    "evaluate",
    "flops_per_example",
    "global_objective",
    "losses_of",
    "memory_bytes",
    "merged",
    "per_example_loss",
    "pieces_of",
    "smallest_batch",
    "timm",
    "torchvision",
]
