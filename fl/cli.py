"""The command line: `fl key=value ...` runs one experiment, `fl -m key=a,b ...` a sweep."""

from __future__ import annotations

import os
import re
import sys
from difflib import get_close_matches
from importlib.resources import files
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fl.errors import ConfigError


@hydra.main(version_base=None, config_path="conf", config_name="config")
def _run(config: DictConfig) -> float | None:
    from fl.experiment import run_experiment  # heavy: only once the configuration is complete

    return run_experiment(config)


def main() -> None:
    """Runs the command line; exits with status 1, and a message, if the run failed."""
    # With this set, Hydra raises what it would print, so that one place words all messages.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        _run()
    except KeyboardInterrupt:
        _stop("interrupted", 130)
    except Exception as error:
        cause = _configuration_error(error)
        if cause is None:
            raise
        _stop(_explain(cause), 1)


def _stop(message: str, status: int) -> None:
    print(f"fl: {message}", file=sys.stderr)
    sys.exit(status)


def _configuration_error(error: BaseException) -> BaseException | None:
    """Returns the exception in a chain that says what is wrong with the configuration, if any."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for kind in (ConfigError, HydraException, OmegaConfBaseException):
        for link in chain:
            if isinstance(link, kind):
                return link
    return None


def _explain(error: BaseException) -> str:
    """Returns an error's message, with the nearest valid key if a key is unknown."""
    message = str(error).strip()
    match = re.search(r"Could not override '([^']+)'", message)
    if match is None:
        return message
    key = match.group(1)
    known = _known_keys()
    near = get_close_matches(key, known, n=3, cutoff=0.6)
    if not near:
        near = [name for name in known if name.split(".")[-1] == key.split(".")[-1]][:3]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"there is no key '{key}'{hint} (fl --cfg job shows every key)"


def _known_keys() -> list[str]:
    """Returns the dotted names of all keys of the default configuration and of every group member."""
    root = files("fl").joinpath("conf")
    names: set[str] = set()

    def collect(node: Any, prefix: str) -> None:
        if isinstance(node, DictConfig):
            for key in node:
                if key not in ("defaults", "hydra", "_target_"):
                    names.add(f"{prefix}{key}")
                    collect(node._get_node(key), f"{prefix}{key}.")

    for entry in root.iterdir():
        if entry.is_dir():
            for member in entry.iterdir():
                if member.name.endswith(".yaml"):
                    prefix = "" if entry.name == "experiment" else f"{entry.name}."
                    collect(OmegaConf.create(member.read_text(encoding="utf-8")), prefix)
            names.add(entry.name)
        elif entry.name.endswith(".yaml"):
            collect(OmegaConf.create(entry.read_text(encoding="utf-8")), "")
    return sorted(names)
