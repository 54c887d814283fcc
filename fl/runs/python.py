"""What `fl` runs on the command line, run from Python and from notebooks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from fl.checks import is_a
from fl.errors import ConfigError
from fl.reports import Callback
from fl.runs.composing import files_stay
from fl.runs.configuration import check_values, take_away
from fl.runs.explaining import composition_problems, explain
from fl.runs.groups import without_null
from fl.runs.simulator import SimulatedRun


def run(
    *overrides: str,
    directory: Path | str | None = None,
    config_dir: Path | str | None = None,
    callbacks: Sequence[Callback] = (),
    **keys: Any,
) -> SimulatedRun:
    """Runs what `fl` runs with these overrides, and returns the run.

    >>> import fl
    >>> run = fl.run(strategy="fedbuff", num_rounds=20)  # doctest: +SKIP
    >>> run.frame().plot("time_s", "accuracy")  # doctest: +SKIP
    >>> fl.run("client.rule.lr=0.05", compressor="topk", directory="runs/a")  # doctest: +SKIP

    Args:
        overrides: as on the command line, `"KEY=VALUE"` and `"GROUP=MEMBER"`.
        directory: where the run's files go, all that `fl` writes; None writes none.
        config_dir: a folder with configuration of your own, as `-cd` has it.
        callbacks: objects that are told what is measured while the run goes on.
        keys: the same as overrides, with values of Python: numbers, text, truth values, None, lists
            and dictionaries; of names with a dot, `**{"client.rule.lr": 0.05}`.

    Raises:
        ConfigError: what `fl` refuses.
        SimulationError: clients were asked to train, and nothing was learnt.
        Exception: whatever your own parts raise.
    """
    from fl.runs.build import prepare  # heavy, as on the command line
    from fl.runs.run import run_prepared

    words = [*overrides, *(f"{key}={_text(value)}" for key, value in keys.items())]
    for word in words:
        if word.lstrip("+~").startswith("hydra"):
            raise ConfigError(
                f"{word} has no effect on fl.run: directory and config_dir say where things are"
            )
    for callback in callbacks:
        is_a("callbacks", callback, Callback, "fl.reports.Callback()")
    place = None if directory is None else Path(directory).absolute()
    path = () if config_dir is None else (f"file://{Path(config_dir).absolute()}",)
    with files_stay(), composed(words, path=path, directory=place) as config:
        given = check_values(config)
        take_away(config, given)
        prepared = prepare(config, given)
        return run_prepared(config, prepared, directory=place, callbacks=callbacks)


@contextmanager
def composed(
    overrides: Sequence[str], *, path: Sequence[str] = (), directory: Path | None = None
) -> Iterator[DictConfig]:
    """Gives the configuration that `fl` would run, with Hydra's own where jobs look for it.

    Args:
        overrides: as on the command line.
        path: URLs of folders with more configuration.
        directory: of the run, if there is one.

    Raises:
        ConfigError: Hydra does not understand an override, or knows no such member or key.
    """
    known, hydra = HydraConfig.instance(), GlobalHydra.instance()
    before, outer = known.cfg, hydra.hydra
    hydra.clear()  # of a program that is a Hydra application itself
    try:
        with initialize_config_module("fl.conf", version_base=None, job_name="fl"):
            more = [f"hydra.searchpath={_text(list(path))}"] if path else []
            words = without_null([*more, *overrides])
            try:
                config = compose("config", words, return_hydra_config=True)
            except Exception as error:
                problems = composition_problems(overrides, "config", more)
                raise ConfigError("\n".join(problems) or explain(error) or str(error)) from error
            with read_write(config), open_dict(config):
                config.hydra.runtime.cwd = os.getcwd()
                if directory is not None:
                    config.hydra.runtime.output_dir = str(directory)
                known.set_config(config)
                del config["hydra"]
            yield config
    finally:
        known.cfg, hydra.hydra = before, outer


def _escaped(found: re.Match[str]) -> str:
    """Returns a quotation mark, or the end, so that backslashes before it stand for themselves."""
    backslashes, mark = found.groups()
    return 2 * backslashes + ("\\'" if mark else "")


def _text(value: Any) -> str:
    """Returns a value in the grammar of Hydra's overrides."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}: {_text(each)}' for key, each in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, str | Path):
        escaped = re.sub(r"(\\*)('|$)", _escaped, str(value))
        return f"'{escaped}'"
    raise ConfigError(
        f"a value is {value!r:.80}, of type {type(value).__name__}; it must be a number, text, "
        "True, False, None, a list or a dictionary of such"
    )
