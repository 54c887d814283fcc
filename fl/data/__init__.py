"""Data sets, and how they are dealt to clients.

A source (`load_*`) gives a `Source`; a rule of `fl.data.partition` says which client gets which
rows; `federate` puts the two together.
"""

from fl.data.arrays import load_arrays
from fl.data.digits import load_digits
from fl.data.drift import Drift, Mixtures
from fl.data.federated import (
    Examples,
    FederatedData,
    Partitions,
    Scaling,
    Source,
    Split,
    federate,
    per_channel,
)
from fl.data.fedprox_mnist import load_fedprox_mnist
from fl.data.games import load_quadratic_game, load_robust_least_squares
from fl.data.hub import load_huggingface
from fl.data.image_folder import load_image_folder
from fl.data.images import load_cifar10, load_mnist
from fl.data.participation import participation_rates
from fl.data.rotated import load_rotated_digits, load_rotated_mnist, rotated
from fl.data.synthetic import load_synthetic, load_synthetic_iid
from fl.data.table import Encoding, load_table, table_encoding
from fl.data.text import load_shakespeare, load_stdlib

__all__ = [
    "Drift",
    "Encoding",
    "Examples",
    "FederatedData",
    "Mixtures",
    "Partitions",
    "Scaling",
    "Source",
    "Split",
    "federate",
    "load_arrays",
    "load_cifar10",
    "load_digits",
    "load_fedprox_mnist",
    "load_huggingface",
    "load_image_folder",
    "load_mnist",
    "load_quadratic_game",
    "load_robust_least_squares",
    "load_rotated_digits",
    "load_rotated_mnist",
    "load_shakespeare",
    "load_stdlib",
    "load_synthetic",
    "load_synthetic_iid",
    "load_table",
    "participation_rates",
    "per_channel",
    "rotated",
    "table_encoding",
]
