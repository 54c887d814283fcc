"""The members of the config group, and vectors to try them on."""

from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf

import fl
from fl.compression import Channel, Compressor, Shapes

CONF = Path(fl.__file__).parent / "conf" / "compressor"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
SURROUNDINGS = {"seed": 0, "num_clients": 4}

# A matrix, two biases, a convolution and a scalar: 588 entries.
SHAPES = Shapes(((24, 16), (16,), (3, 3, 4, 5), (7,), ()))


def load(name):
    """The object a config describes, in the surroundings it interpolates from."""
    config = OmegaConf.create({**SURROUNDINGS, "compressor": OmegaConf.load(CONF / f"{name}.yaml")})
    return instantiate(config.compressor)


MEMBERS = {name: load(name) for name in NAMES}
CHANNELS = [name for name in NAMES if isinstance(MEMBERS[name], Channel)]
COMPRESSORS = [name for name in NAMES if isinstance(MEMBERS[name], Compressor)]


def vectors(d, seed=0):
    """Vectors of d entries, float32, of the kinds that theory is careful about."""
    r = np.random.default_rng(seed)
    one_hot = np.zeros(d)
    one_hot[r.integers(d)] = -3.0
    sparse = np.where(r.random(d) < 0.05, r.standard_normal(d), 0.0)
    sparse[0] = 1.0
    kinds = {
        "gaussian": r.standard_normal(d),
        "laplace": r.laplace(size=d),
        "heavy": r.standard_t(1.5, size=d),
        "sparse": sparse,
        "one-hot": one_hot,
        "constant": np.full(d, -0.7),
        "small": 1e-8 * r.standard_normal(d),
    }
    return {kind: x.astype(np.float32) for kind, x in kinds.items()}


def relative_error(y, x):
    """|y - x|^2 / |x|^2 in float64."""
    x64 = x.astype(np.float64)
    return float(np.sum((y - x64) ** 2) / np.sum(x64**2))
