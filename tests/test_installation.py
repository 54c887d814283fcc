"""An installation from nothing, by the lines of the Containerfile: its size, and what it can do.

No container is needed: the lines run in an empty folder, with an environment of their own in the
place of the image's Python.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import venv
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from test_extras import PARTS

from fl.extras import EXTRAS

ROOT = Path(__file__).parents[1]
MOST_BYTES = 1.5e9
MORE = ("summary.json", "metrics.csv", "model.safetensors", "timeline.json.gz", "tb", "plots")


def instructions(text: str) -> list[tuple[str, str]]:
    lines = text.replace("\\\n", " ").splitlines()
    found = [line.partition(" ") for line in lines if line.strip() and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in found]


@dataclass
class Image:
    """What the lines of a Containerfile leave.

    Attributes:
        root: in the place of /.
        work: the working directory, in it.
        environment: of what runs there.
        command: of `CMD`.
    """

    root: Path
    work: Path
    environment: dict[str, str]
    command: list[str] = field(default_factory=list)

    def run(self, *words: str, expect: int = 0) -> str:
        done = subprocess.run(
            words, cwd=self.work, env=self.environment, capture_output=True, text=True
        )
        said = done.stdout + done.stderr
        assert done.returncode == expect, said[-3000:]
        return said

    def copy(self, *names: str) -> None:
        *sources, target = names
        for source in map(ROOT.joinpath, sources):
            if source.is_dir():  # whose content is copied, not the folder
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, self.work / target, ignore=ignored)
            else:
                shutil.copy(source, self.work / target)


def built(root: Path) -> Image:
    program = root / "bin"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FL_", "PYTHON", "VIRTUAL"))}
    image = Image(root, root, {**kept, "HOME": str(root), "PIP_QUIET": "1"})
    for name, rest in instructions((ROOT / "Containerfile").read_text("utf-8")):
        match name:
            case "FROM":
                assert rest == "python:3.11-slim"
                venv.create(root / "env", with_pip=True)
                program.mkdir()
                (program / "useradd").write_text("#!/bin/sh\n")
                (program / "useradd").chmod(0o755)
                path = f"{root / 'env' / 'bin'}:{program}:{os.environ['PATH']}"
                image.environment["PATH"] = path
            case "ARG":
                key, _, value = rest.partition("=")
                if value:
                    image.environment[key] = value.strip('"')
            case "WORKDIR":
                image.work = root / rest.lstrip("/")
                image.work.mkdir(parents=True)
            case "COPY":
                image.copy(*shlex.split(rest))
            case "RUN":
                image.run("sh", "-c", rest)
            case "USER":
                assert rest == "fl"
            case "CMD":
                image.command = json.loads(rest)
            case _:
                raise AssertionError(f"{name} is not known to this test")
    return image


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files of each package, by its folder's name."""
    found: dict[str, int] = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            parts = path.relative_to(folder).parts
            name = parts[3] if parts[2:3] == ("site-packages",) else parts[0]
            found[name] = found.get(name, 0) + path.stat().st_size
    return found


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    began = time.monotonic()
    made = built(tmp_path_factory.mktemp("image"))
    found = sizes(made.root / "env")
    print(f"\ninstalled in {time.monotonic() - began:.0f} s: {sum(found.values()) / 1e9:.2f} GB")
    for name in sorted(found, key=found.__getitem__, reverse=True)[:15]:
        print(f"  {found[name] / 1e6:6.0f} MB  {name}")
    return made


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the image's Python")
def test_the_core_is_small_and_runs_the_demo(image):
    said = image.run("python", "-c", "from importlib.metadata import *; print(*("
                     "each.name for each in distributions()))")  # fmt: skip
    names = {name.lower().replace("-", "_") for name in said.split()}
    assert "torch" in names
    assert not names & {"ray", "pyarrow", "pandas", "datasets", "scikit_learn"}
    if not any(name.startswith("nvidia") for name in names):  # PyTorch for CPUs
        assert sum(sizes(image.root / "env").values()) < MOST_BYTES
    said = image.run(*image.command, "hydra.run.dir=demo")
    assert "Run completed" in said
    assert {path.name for path in (image.work / "demo").iterdir()} >= {*MORE}


@pytest.mark.slow
@pytest.mark.parametrize("key", PARTS)
def test_it_says_what_brings_each_part_that_it_has_not(image, key):
    package, words = PARTS[key]
    said = image.run("fl", *words, "num_clients=4", "hydra.run.dir=refused", expect=1)
    brings = f"pip install 'fl-simulator[{EXTRAS[package]}]'"
    assert said.strip() == f"fl: {key} needs the package {package}: {brings}"
    assert not (image.work / "refused").exists()
