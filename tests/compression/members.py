"""The members of the config group, and vectors to try them on."""

from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_module

import fl
from fl.compression import Channel, Compressor, Shapes, chained
from fl.runs.making import make

CONF = Path(fl.__file__).parent / "conf" / "compressor"
OF_THE_FOLDER = sorted(path.stem for path in CONF.glob("*.yaml"))
WRITTEN = {  # on the command line, from members
    "bf16_stochastic": "compressor=bf16 compressor.stochastic=true",
    "codebook_quantile": "compressor=codebook_int8 compressor.bins=quantile",
    "diana": "compressor=qsgd feedback=diana",
    "econtrol": "compressor=topk feedback=econtrol",
    "ef21_of_topk": "compressor=topk feedback=ef21",
    "ef21_sgdm": "compressor=topk feedback=ef21_sgdm",
    "ef21_sign": "compressor=ef21 compressor@compressor.compressor=sign",
    "ef_sign": "compressor=sign feedback=ef",
    "ef_topk_and_int8": "compressor=topk compressor@then=int8 then.stochastic=false feedback=ef",
    "grass_sampled": "compressor=grass compressor.selection=sampled",
    "int8_nearest": "compressor=int8 compressor.stochastic=false compressor.bucket=4096",
    "marina": "compressor=randk compressor.density=0.1 compressor.scaled=true feedback=marina",
    "qsgd_sparse": "compressor=qsgd compressor.levels=1 compressor.bucket=null",
    "randk_block": "compressor=randk compressor.contiguous=true",
    "randk_unbiased": "compressor=randk compressor.density=0.1 compressor.scaled=true",
    "sign_l2": "compressor=sign compressor.scale=l2",
    "signsgd": "compressor=sign compressor.scale=none",
    "terngrad_unclipped": "compressor=terngrad compressor.clip=null",
    "topk_by_tensor": "compressor=topk compressor.scope=tensor",
    "topk_int8": "compressor=topk compressor@then=int8 then.stochastic=false",
}
NAMES = sorted([*OF_THE_FOLDER, *WRITTEN])

# A matrix, two biases, a convolution and a scalar: 588 entries.
SHAPES = Shapes(((24, 16), (16,), (3, 3, 4, 5), (7,), ()))


def load(name):
    """The channel of a member, or of what is written."""
    written = WRITTEN.get(name, f"compressor={name}").split()
    config = compose("config", ["seed=0", "num_clients=4", *written])
    return chained(*(make(config, key) for key in ("compressor", "then", "feedback")))


with initialize_config_module("fl.conf", version_base=None):
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
