"""`fl resume DIR`: the command line of the run in DIR once more.

What is in DIR may be somebody else's. It says which parts of fl a run is made of, with which
numbers, and what clients answered. Code that is not fl's or Flower's runs only if the user of this
command has named it; see docs/recovery.md.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fl.errors import ConfigError
from fl.reports.atomic import replacing
from fl.reports.files import SUMMARY_BYTES, printable, read_file
from fl.runs.command_parser import CommandParser
from fl.runs.journal.claim import FOLDER, Claim
from fl.runs.journal.journal import (
    EXTENDS,
    FILE,
    check_replaceable,
    holds_answers,
    longer,
    read_head,
)
from fl.runs.trust import foreign_targets

COMMAND = "command.json"
"""How the run was started, for as long as there is no journal that says so."""

_MOST_BYTES = 10**6


@dataclass(frozen=True)
class Resumption:
    """What the user of `fl resume` has asked for.

    Attributes:
        directory: of the run.
        journal: whether there is one to go on with; a run that was killed before has lost nothing,
            and simply begins.
        allowed: what may be used beside fl's and Flower's parts, as given: import paths, folders,
            addresses.
        folders: `allowed` as absolute paths.
        changed_code: go on although the app, or the user's modules, are not what they were.
    """

    directory: Path
    journal: bool
    allowed: frozenset[str] = frozenset()
    folders: frozenset[Path] = frozenset()
    changed_code: bool = False

    def check_config(self, config: DictConfig) -> None:
        """Checks what the run is made of, before any of it is imported.

        Raises:
            ConfigError: code or an address among it is neither fl's, Flower's nor allowed.
        """
        self.check(foreign_parts(config, self.allowed).items(), Path())

    def check(
        self, needed: Iterable[tuple[str, str]], base: Path, more: Iterable[str] = ()
    ) -> None:
        """Checks that all of these is allowed.

        Args:
            needed: keys, and what stands there.
            base: folder that relative paths start from.
            more: what will have to be allowed as well, by what the run's directory says.

        Raises:
            ConfigError: something is not.
        """

        def is_allowed(value: str) -> bool:
            return value in self.allowed or (base / _path(value)).resolve() in self.folders

        lacking = [(key, value) for key, value in needed if not is_allowed(value)]
        if lacking:
            values = dict.fromkeys(value for _, value in lacking)
            modules = tuple(f"{name}." for name in self.allowed)
            others = [
                value
                for value in more
                if not (value in values or is_allowed(value) or value.startswith(modules))
            ]
            told = ", ".join([*(f"{key}={value}" for key, value in lacking), *others])
            command = resume_command(self.directory, [*sorted(self.allowed), *values, *others])
            raise ConfigError(
                f"{self.directory} was started with {printable(told)}, which may run code that is "
                f"neither fl's nor Flower's. Only if you trust that: {printable(command)}"
            )


def foreign_parts(config: DictConfig, allowed: Iterable[str] = ()) -> dict[str, str]:
    """Returns what in a configuration may run code that is neither fl's nor Flower's, by its key.

    Args:
        config: of a run.
        allowed: modules and names that count as ours.
    """
    named = {}
    if config.get("app") is not None:
        named["app"] = str(_path(str(config.app)).absolute())
    if (address := OmegaConf.select(config, "executor.address")) is not None:
        named["executor.address"] = str(address)
    return {**named, **foreign_targets(config, allowed)}


def resume_command(directory: Path, foreign: Iterable[str]) -> str:
    """Returns the command that goes on with a run.

    Args:
        directory: of the run.
        foreign: what the user has to allow.
    """
    allowed = [word for value in dict.fromkeys(foreign) for word in ("--allow", value)]
    return shlex.join(["fl", "resume", str(directory), *allowed])


def command_of_job() -> dict[str, Any]:
    """Returns what it takes to start this Hydra job again; nothing where Hydra does not run."""
    return _command(HydraConfig.get()) if HydraConfig.initialized() else {}


def _command(hydra: Any) -> dict[str, Any]:
    sources = [(str(s.provider), f"{s.schema}://{s.path}") for s in hydra.runtime.config_sources]
    return {
        "overrides": list(hydra.overrides.task),
        "searchpath": [url for by, url in sources if by == "hydra.searchpath in command-line"],
        "config_dirs": [url.removeprefix("file://") for by, url in sources if by == "command-line"],
        "config_name": hydra.job.config_name,
        "cwd": hydra.runtime.cwd,
    }


# ---- when a run starts ---------------------------------------------------------------------------


class Resuming:
    """What this process resumes; None if it was not started by `fl resume`."""

    run: Resumption | None = None


class Admit(Callback):
    """Lets a run begin only if its parts are trusted, and if no other run needs its directory."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Ends the process if it must not begin: of an exception Hydra makes a warning."""
        own = OmegaConf.masked_copy(config, [key for key in map(str, config) if key != "hydra"])
        directory = Path(config.hydra.run.dir)
        try:
            if Resuming.run is not None:
                Resuming.run.check_config(own)
            elif (directory / FOLDER).exists():
                claim = Claim(directory)
                try:
                    check_replaceable(claim.folder / FILE)
                finally:
                    claim.release(remove=False)
        except (ConfigError, OmegaConfBaseException) as error:
            _refuse(error)


class Note(Callback):
    """Notes how a run is started before Hydra writes to its directory."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Ends the process if the directory is not to be had."""
        try:
            _note(Path(config.hydra.run.dir), config.hydra)
        except ConfigError as error:
            _refuse(error)


def _refuse(error: Exception) -> NoReturn:
    print("fl:", " ".join(str(error).splitlines()), file=sys.stderr)
    sys.exit(1)


def how_to_start() -> dict[str, bool]:
    """Returns the arguments of `run_experiment` by which this Hydra job begins or goes on.

    A job of a sweep that was stopped goes on; a single run does if `fl resume` has asked for it.

    Raises:
        ConfigError: the folder of a sweep's job is not to be had.
    """
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        directory = Path(hydra.runtime.output_dir)
        _note(directory, hydra)
        return {"resume": holds_answers(directory / FOLDER / FILE)}
    run = Resuming.run
    return {} if run is None else {"resume": run.journal, "changed_code": run.changed_code}


def how_to_begin(config: DictConfig, directory: Path) -> str:
    """Returns the command that starts a run which was stopped before it had a journal.

    It is "" for one that has a journal, which tells by itself how to go on, or has ended.
    """
    folder = directory / FOLDER
    if not (folder / COMMAND).exists() or (folder / FILE).exists():
        return ""
    if (directory / "summary.json").exists():
        return ""
    told = command_of_job()
    places = [*told["config_dirs"], *told["searchpath"]]
    return resume_command(directory, [*foreign_parts(config).values(), *places])


def forget(directory: Path) -> None:
    """Removes the note in the directory of a run that did not begin, unless another has it."""
    folder = directory / FOLDER
    if not folder.is_dir() or (folder / FILE).exists():
        return
    with suppress(ConfigError):
        claim = Claim(directory)
        (claim.folder / COMMAND).unlink(missing_ok=True)
        claim.release(remove=True)


def _note(directory: Path, hydra: Any) -> None:
    claim = Claim(directory)
    try:
        with replacing(claim.folder / COMMAND) as temporary:
            temporary.write_text(json.dumps(_command(hydra)), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{claim.folder} cannot be written: {error.strerror}") from error
    finally:
        claim.release(remove=False)


# ---- the command line ----------------------------------------------------------------------------


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="fl resume",
        description="Continues the run in DIR, whose process was killed, interrupted or failed, to "
        "the result that it would have had. What its clients had answered is in DIR/checkpoint and "
        "is not trained again. A run that has completed is left as it is. See docs/recovery.md.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="of one run")
    parser.add_argument(
        "length",
        metavar="num_rounds=N",
        nargs="?",
        help="make a run longer that has completed with checkpoint.keep=true: what it answered is "
        "not trained again, and DIR-N has what a run of N rounds would have had; or, of one that "
        "time_limit_s has ended, time_limit_s=S, in DIR-S",
    )
    parser.add_argument(
        "--allow",
        metavar="WHAT",
        action="append",
        default=[],
        help="use what the run needs beside the parts of fl and Flower, because you trust it: the "
        "folder of an app or of configurations, a module, the address of a Ray cluster",
    )
    parser.add_argument(
        "--changed-code",
        action="store_true",
        help="go on although the app, or your own modules, are not what they were: what has not "
        "been answered yet becomes the result of the code as it is now, and the summary says so",
    )
    return parser


def resumed(arguments: Sequence[str]) -> tuple[list[str], Resumption] | None:
    """Returns the arguments that start a run again, after moving to the folder it was started in.

    Args:
        arguments: of `fl resume`.

    Returns:
        The arguments and what was asked for; None if there is nothing to do, and the user was told
        so.

    Raises:
        ConfigError: the run cannot be resumed, or needs something that is not allowed.
    """
    given = _parser().parse_args(arguments)
    directory: Path = given.directory.expanduser().resolve()
    if not directory.is_dir():
        raise ConfigError(f"{directory} does not exist; give the directory of a run")
    _check_files(directory)
    if given.length is None:
        return _resumed(directory, given)
    directory = _longer(directory, given.length)
    try:
        return _resumed(directory, given)
    except BaseException:
        shutil.rmtree(directory)  # nothing has run there, and the next try makes it again
        raise


def _resumed(directory: Path, given: Namespace) -> tuple[list[str], Resumption] | None:
    journal = directory / FOLDER / FILE
    status = _status(directory)
    head = read_head(journal) if journal.is_file() else None
    kept = head is not None and not (directory / FOLDER / COMMAND).exists()
    if status == "completed" and (head is None or head.get("obstacle") is not None or kept):
        print(f"{directory} has completed: there is nothing to resume", file=sys.stderr)
        return None
    if head is not None:
        if head.get("obstacle") is not None:
            raise ConfigError(f"{directory} cannot be resumed: {printable(str(head['obstacle']))}")
        told = head.get("command")
    elif status is not None:
        raise ConfigError(f"{directory} holds a run ({status}) without a journal: start it again")
    else:
        told = _noted(directory)
    command = _checked(directory, told)
    resumption = Resumption(
        directory,
        journal.is_file(),
        frozenset(given.allow),
        frozenset(_path(name).resolve() for name in given.allow),
        given.changed_code,
    )
    cwd = Path(command["cwd"])
    places = [("--config-dir", each) for each in command["config_dirs"]]
    places += [("hydra.searchpath", each) for each in command["searchpath"]]
    resumption.check(places, cwd, command.get("foreign", ()))
    _keep_imports()
    for top in {name.partition(".")[0] for name in given.allow if not _path(name).exists()}:
        if top.isidentifier() and find_spec(top) is None:
            raise ConfigError(
                f"--allow names {top}, and there is no such module in {Path.cwd()}, where fl was "
                f"called: call it in the folder of {top}.py; the run was started in {cwd}"
            )
    try:
        os.chdir(cwd)
    except OSError as error:
        raise ConfigError(
            f"{cwd}, where the run was started, cannot be entered: {error.strerror}"
        ) from error
    found = [*command["overrides"], f"hydra.run.dir={_quoted(str(directory))}"]
    if command["searchpath"]:
        found.append(f"hydra.searchpath=[{','.join(map(_quoted, command['searchpath']))}]")
    for folder in command["config_dirs"]:
        found += ["--config-dir", folder]
    return [*found, "--config-name", command["config_name"]], resumption


def _longer(directory: Path, asked: str) -> Path:
    """Makes the directory of a longer run that goes on where one has ended; returns it.

    Raises:
        ConfigError: the run has not completed, has kept no journal, or is not shorter.
    """
    key, _, value = asked.partition("=")
    wanted = _length(key, value)
    if wanted is None:
        raise ConfigError(
            f"{asked!r} is no num_rounds=N, with a whole number N, nor a time_limit_s=S: nothing "
            "else of a run can be changed when it goes on"
        )
    journal = directory / FOLDER / FILE
    if _status(directory) != "completed":
        raise ConfigError(f"{directory} has not completed: fl resume {directory} goes on with it")
    if not journal.is_file():
        raise ConfigError(
            f"{directory} has completed without checkpoint.keep=true, so that what its clients "
            f"answered is gone: start a run with {asked}"
        )
    head = read_head(journal)
    summary = json.loads(read_file(directory / "summary.json", SUMMARY_BYTES))
    config = summary.get("config")
    done = _length(key, str(config.get(key))) if isinstance(config, dict) else None
    if done is None or head.get("obstacle") is not None:
        raise ConfigError(
            f"{directory} holds no run that was started with {key}=... and could be made longer: "
            "start it again"
        )
    if wanted <= done:
        raise ConfigError(
            f"{key} is {value}, and {directory} has done {done:g}: it must be more than that"
        )
    command = _checked(directory, head.get("command"))
    others = [o for o in command["overrides"] if o.lstrip("+").split("=")[0] != key]
    new = directory.with_name(f"{directory.name}-{value}")
    if new.exists():
        raise ConfigError(f"{new} is there already: fl resume {new}, if it is to go on")
    (new / FOLDER).mkdir(parents=True)
    told = {**command, "overrides": [*others, asked]}
    longer(journal, new / FOLDER / FILE, {"command": told, EXTENDS: {key: config[key]}})
    print(f"fl: {directory} goes on to {asked}, in {new}", flush=True)
    return new


def _length(key: str, value: str) -> float | None:
    """Returns a length of a run; None if it is none."""
    if key == "num_rounds":
        return int(value) if value.isascii() and value.isdecimal() else None
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if key == "time_limit_s" and 0 < seconds < math.inf else None


def _noted(directory: Path) -> Any:
    """Returns the command of a run that was killed before it had a journal."""
    path = directory / FOLDER / COMMAND
    if not path.exists():
        raise ConfigError(
            f"{directory} holds no run, or one that was killed before it had noted its command and "
            "has lost nothing: start it by that command"
        )
    try:
        return json.loads(read_file(path, _MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be used: {error}; start the run again") from error


_TEXTS = ("overrides", "searchpath", "config_dirs")
_MAY_LACK = ("foreign",)  # of a run that was killed before it had a journal


def _checked(directory: Path, told: Any) -> dict[str, Any]:
    """Returns a command that was read, if it is one that chooses and changes parts of a run.

    Raises:
        ConfigError: it is none, or would configure Hydra itself, which calls what it is told.
    """
    if not isinstance(told, Mapping) or not told:
        raise ConfigError(
            f"{directory} holds no run that `fl key=value ...` has started: resume it by the "
            "program that did"
        )
    lists = [told.get(name) for name in _TEXTS]
    lists += [told[name] for name in _MAY_LACK if name in told]
    texts = [told.get("config_name"), told.get("cwd")]
    for each in lists:
        texts += each if isinstance(each, list) else [each]
    wrong = [t for t in texts if not isinstance(t, str) or re.search(r"^-|[\x00-\x1f\x7f-\x9f]", t)]
    if not all(isinstance(each, list) for each in lists) or wrong:
        raise ConfigError(f"the command in {directory} is none of fl's: start the run again")
    try:
        overrides = OverridesParser.create().parse_overrides(told["overrides"])
    except HydraException as error:
        raise ConfigError(f"the command in {directory} cannot be read: {error}") from error
    for override in overrides:
        places = (override.key_or_group, override.package or "")
        if any(re.split(r"[./]", place)[0] == "hydra" for place in places):
            raise ConfigError(
                f"the command in {directory} has {printable(str(override.input_line))}, which "
                "configures Hydra itself: start the run again"
            )
    return dict(told)


def _check_files(directory: Path) -> None:
    """Checks that a run which goes on in a directory reads and writes there, and nowhere else.

    Raises:
        ConfigError: a link or something else that is no plain file is there.
    """
    for folder in [directory, *(each for each in directory.iterdir() if each.is_dir())]:
        for path in [folder, *folder.iterdir()]:
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ConfigError(
                    f"{printable(str(path))} is a link, or no plain file: a run that goes on would "
                    "write somewhere else. Remove it, or put what it stands for in its place"
                )


def _keep_imports() -> None:
    """Has modules found where they are found now, whatever folder is entered next."""
    sys.path[:] = map(os.path.abspath, sys.path)
    if places := os.environ.get("PYTHONPATH"):  # of processes that are started
        os.environ["PYTHONPATH"] = os.pathsep.join(
            os.path.abspath(place) for place in places.split(os.pathsep)
        )


def check_lost_by(directory: Path) -> None:
    """Checks that a new run in a directory would replace no results.

    Raises:
        ConfigError: a run has completed there.
    """
    if _status(directory) in ("completed", "diverged"):
        raise ConfigError(
            f"{directory} holds a completed run, which would be lost: give another directory, "
            "hydra.run.dir=DIR, or delete it"
        )


def _status(directory: Path) -> str | None:
    path = directory / "summary.json"
    if not path.exists():
        return None
    try:
        return printable(str(json.loads(read_file(path, SUMMARY_BYTES))["status"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _path(name: str) -> Path:
    return Path(name.removeprefix("file://")).expanduser()


def _quoted(text: str) -> str:
    """Returns text as Hydra's grammar reads it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
