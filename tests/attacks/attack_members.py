"""Every attack there is a configuration for."""

from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import fl

CONF = Path(fl.__file__).parent / "conf"
ATTACKS = sorted(path.stem for path in (CONF / "attack").glob("*.yaml"))


@cache
def configuration(name):
    with initialize_config_module("fl.conf", version_base=None):
        return OmegaConf.to_container(compose(f"attack/{name}")["attack"])
