"""Every topology there is a configuration for, at several numbers of nodes."""

from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf

import fl

CONF = Path(fl.__file__).parent / "conf"
TOPOLOGIES = sorted(path.stem for path in (CONF / "topology").glob("*.yaml"))
WEIGHTS = sorted(path.stem for path in (CONF / "topology" / "weights").glob("*.yaml"))
SIZES = {"hypercube": (4, 8, 16), "matcha": (9, 12)}
CASES = [(name, n) for name in TOPOLOGIES for n in SIZES.get(name, (9, 16, 30))]


@cache
def configuration(name):
    with initialize_config_module("fl.conf", version_base=None):
        return OmegaConf.to_container(compose(f"topology/{name}")["topology"], resolve=False)


def built(name, num_clients, seed=0, **changes):
    """A fresh topology, as a run would build it."""
    root = OmegaConf.create(
        {"num_clients": num_clients, "seed": seed, "topology": configuration(name) | changes}
    )
    return instantiate(root.topology)
