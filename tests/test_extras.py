"""What works without the packages that only extras bring, and what is said where one is missing."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import fl
from fl.errors import ConfigError
from fl.extras import EXTRAS, check_installed, imported, installed

ROOT = Path(__file__).parents[1]
BLOCKED = f"import sys; sys.modules.update(dict.fromkeys({sorted(EXTRAS)}))\n"
RUN = """
import json, fl
from fl.clients import Sgd
first, loaded = Sgd.init, set()
def init(self, received):
    loaded.update(loaded or sys.modules)
    return first(self, received)
Sgd.init = init
run = fl.run(num_clients=4, num_rounds=2, fleet="uniform", progress=False, directory=sys.argv[1])
last = run.summary["extra"]["executor"], run.summary["final"]["accuracy"]
print(json.dumps([*last, sorted(loaded & set(json.loads(sys.argv[2])))]))
"""
EVERY_MODULE = """
import pkgutil, fl
for found in pkgutil.walk_packages(fl.__path__, "fl."):
    if not found.name.endswith("__main__"):
        __import__(found.name)
"""


def python(code: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + code, *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LATER = [
    *("matplotlib", "tensorboard", "networkx.classes", "numpy.f2py.rules", "scipy.linalg._basic"),
    *("torch._dynamo.utils", "fl.aggregation.krum", "fl.compression.marina", "fl.topologies.ring"),
]
"""What the first client does not wait for: modules that these packages import when they are."""


def test_a_run_needs_none_of_them_and_the_first_client_waits_for_little(tmp_path):
    said = python(RUN, str(tmp_path / "light"), json.dumps([*LATER, "fl.clients.sgd"]))
    whole = fl.run(num_clients=4, num_rounds=2, fleet="uniform", progress=False, executor="serial")
    final = whole.summary["final"]["accuracy"]
    assert json.loads(said) == ["serial", final, ["fl.clients.sgd"]]
    left = {path.name for path in (tmp_path / "light").iterdir()}
    assert left >= {"summary.json", "metrics.csv", "model.safetensors", "timeline.json.gz", "plots"}
    assert "trace.parquet" not in left


@pytest.mark.slow
def test_every_module_can_be_imported_without_them():
    python(EVERY_MODULE)


PARTS = {
    "executor=ray": ("ray", ["executor=ray"]),
    "data=table": ("pyarrow", ["data=table", "data.path=own.csv", "data.target=y"]),
    "data=mnist": ("pyarrow", ["data=mnist"]),
    "data=huggingface": ("datasets", ["data=huggingface", "data.path=a/b", "data.target=y"]),
    "partition=shard": ("flwr_datasets", ["partition=shard"]),
    "partition=pathological": ("flwr_datasets", ["partition=pathological"]),
    "partition.partitioner._target_=flwr_datasets.partitioner.LinearPartitioner": (
        "flwr_datasets",
        ["partition=flwr_datasets"],
    ),
    "model=torchvision": ("torchvision", ["model=torchvision", "model.name=resnet18"]),
    "model=huggingface": ("transformers", ["model=huggingface", "model.folder=x"]),
}


@pytest.mark.parametrize("key", PARTS)
def test_a_part_whose_package_is_missing_is_refused_with_what_brings_it(key, monkeypatch, tmp_path):
    package, words = PARTS[key]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("fl.runs.run.run_to_end", None)
    with pytest.raises(ConfigError) as refused:
        fl.run(*words, num_clients=4, progress=False, directory=tmp_path / "run")
    brings = f"pip install 'fl-simulator[{EXTRAS[package]}]'"
    assert str(refused.value) == f"{key} needs the package {package}: {brings}"
    assert not (tmp_path / "run").exists()


def test_each_is_brought_by_its_extra_and_by_no_other_installation():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    brought = {
        extra: " ".join(wanted).replace("-skinny", "").replace("flwr[simulation]", "ray")
        for extra, wanted in project["optional-dependencies"].items()
    }
    core = " ".join(project["dependencies"])
    for package, extra in EXTRAS.items():
        assert package.replace("_", "-") in brought[extra]
        assert package.replace("_", "-") not in core


def test_a_module_without_a_spec_and_one_that_is_broken_are_told_apart(monkeypatch, tmp_path):
    assert installed("pyarrow")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert not installed("wandb")
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("import no_such_thing")
    monkeypatch.syspath_prepend(tmp_path)
    check_installed("model=timm", "timm")
    with pytest.raises(ConfigError, match="model=timm needs the package no_such_thing: pip"):
        imported("model=timm", "timm")


@pytest.mark.parametrize(
    "broken",
    [
        "raise ImportError('libarrow.so.2500: cannot open shared object file')",
        "raise RuntimeError('compiled for another NumPy\\nand more')",
        "import pyarrow.lib",  # of which this one has none
    ],
)
def test_a_package_that_is_there_and_broken_is_named_in_one_line(broken, monkeypatch, tmp_path):
    (tmp_path / "pyarrow").mkdir()
    (tmp_path / "pyarrow" / "__init__.py").write_text(broken)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("fl.runs.run.run_to_end", None)
    with pytest.raises(ConfigError) as refused:
        fl.run("data=table", "data.path=own.csv", "data.target=y", progress=False)
    said = str(refused.value)
    assert said.startswith("data=table needs the package pyarrow, which is there at ")
    assert str(tmp_path) in said
    assert said.endswith("install it again (pip install --force-reinstall --no-deps pyarrow)")
    assert "\n" not in said


def test_what_draws_may_be_broken_too_though_no_extra_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match="a plot needs the package matplotlib, which is there a"):
        imported("a plot", "matplotlib.figure")


@pytest.mark.parametrize("keys", [{}, {"num_actors": 2}])
def test_a_ray_that_is_broken_is_refused_or_done_without(keys, monkeypatch, tmp_path, caplog):
    from fl.execution.moving import MovingExecutor
    from fl.execution.on_ray import RayExecutor
    from fl.execution.serial import SerialExecutor

    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise OSError('no core worker')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    on_ray = RayExecutor(**keys)
    with pytest.raises(ConfigError, match=r"executor=ray needs the package ray, which is there a"):
        on_ray.start(None, None)
    moving = MovingExecutor(SerialExecutor(), on_ray, after_s=0.0)
    moving._source = None, None
    moving._move()
    assert "training goes on in this process" in caplog.text


def test_the_default_executor_is_this_process_where_there_is_no_ray(monkeypatch):
    from hydra.utils import instantiate

    from fl.execution import SerialExecutor

    member = OmegaConf.load(ROOT / "fl" / "conf" / "executor" / "auto.yaml")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert isinstance(instantiate(member), SerialExecutor)
    member.num_actors = 2
    with pytest.raises(Exception, match=r"executor=ray needs the package ray: pip install"):
        instantiate(member)
