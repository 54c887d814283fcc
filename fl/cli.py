"""The command line: `fl key=value ...` runs one experiment, `fl -m key=a,b ...` a sweep."""

from __future__ import annotations

import os
import re
import sys
import traceback
from difflib import get_close_matches
from importlib.resources import files
from typing import Any, NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fl.errors import ConfigError


@hydra.main(version_base=None, config_path="conf", config_name="config")
def _run(config: DictConfig) -> float | None:
    try:
        from fl.experiment import run_experiment  # heavy: only once the configuration is complete

        return run_experiment(config)
    except (KeyboardInterrupt, Exception) as error:
        _fail(error)  # here, because Hydra would put a line of its own before the message


def main() -> None:
    """Runs the command line; exits with status 1, and a message, if the run failed."""
    # With this set, Hydra raises what it would print, so that one place words all messages.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        _run()
    except (KeyboardInterrupt, Exception) as error:
        _fail(error)


def _fail(error: BaseException) -> NoReturn:
    """Says what went wrong and exits: one line for a wrong input, the traceback for all else."""
    if isinstance(error, KeyboardInterrupt):
        print("fl: interrupted", file=sys.stderr)
        sys.exit(130)
    cause = _configuration_error(error)
    if cause is None:
        traceback.print_exception(error)
        print(f"fl: the run failed: {type(error).__name__}: {error}", file=sys.stderr)
    else:
        print(f"fl: {_explain(cause)}", file=sys.stderr)
    sys.exit(1)


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
    message = str(error).split("\nConfig search path")[0].strip()
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
    """Returns the dotted names of the keys of the root configuration and of all group members."""
    root = files("fl").joinpath("conf")
    names: set[str] = set()

    def collect(node: Any, prefix: str) -> None:
        if isinstance(node, DictConfig):
            for key in map(str, node):
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
