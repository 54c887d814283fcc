"""The models that a run leaves, and the run that begins with one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from safetensors.numpy import save_file
from safetensors.torch import load_file

import fl
from fl.errors import ConfigError
from fl.models import MLP
from fl.reports.model_file import read_facts, read_model, write_model
from fl.reports.run_writer import MODELS, RunWriter
from fl.runs.recorder import arrays_sha256
from fl.runs.warm_start import warm_start

Call = Callable[..., None]

QUICK = (
    *("data=digits", "executor=serial", "num_clients=4", "num_rounds=3", "progress=false"),
    *("views=false", "checkpoint=off", "fleet=uniform"),
)


def run(call: Call, directory: Path, *arguments: str) -> dict[str, Any]:
    call(*QUICK, f"hydra.run.dir={directory}", *arguments)
    summary: dict[str, Any] = json.loads((directory / "summary.json").read_text("utf-8"))
    return summary


def rows(directory: Path) -> list[dict[str, float]]:
    header, *lines = (directory / "metrics.csv").read_text("utf-8").splitlines()
    names = header.split(",")
    return [
        {name: float(x) for name, x in zip(names, line.split(","), strict=True) if x}
        for line in lines
    ]


def record(**arrays: Any) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})


def test_a_run_leaves_its_final_and_its_best_model_and_another_begins_where_it_ended(
    call: Call, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    # A rate at which the loss is lowest somewhere in between.
    keys = ("save_models=[final,best]", "target.metric=loss", "target.value=0.1", "target.mode=min")
    summary = run(call, first, "client.rule.lr=1.5", *keys)
    losses = [row["loss"] for row in rows(first)]
    assert summary["best"]["loss"]["value"] == min(losses)

    model = MLP((1, 8, 8), 10, hidden=(64,))
    model.load_state_dict(load_file(first / "model.safetensors"))
    final = ArrayRecord(model.state_dict())
    assert arrays_sha256(final) == summary["model_sha256"]

    for name, loss in (("model", losses[-1]), ("model_best", min(losses))):
        again = tmp_path / name
        run(call, again, f"initial_model={first / f'{name}.safetensors'}", "num_rounds=1")
        assert rows(again)[0]["loss"] == pytest.approx(loss, rel=1e-6)

    none = tmp_path / "none"
    run(call, none, "save_models=[]", "num_rounds=1")
    assert not list(none.glob("*.safetensors"))


def test_a_directory_has_no_model_of_an_earlier_run(tmp_path: Path) -> None:
    for name in MODELS:
        write_model(tmp_path / name, {"w": np.zeros(1)})
    RunWriter(tmp_path, {}, 0, tensorboard=False)
    assert not list(tmp_path.glob("*.safetensors"))


def test_values_come_in_the_models_own_order_and_types(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path, {"n": np.array(3), "w": np.array([0.1, 0.2]), "v": np.float16([1, 2])})
    fresh = record(w=np.zeros(2, np.float32), n=np.array(0), v=np.zeros(2, np.float32))
    found = warm_start(fresh, path)
    assert list(found) == ["w", "n", "v"]
    assert [array.dtype for array in found.values()] == ["float32", "int64", "float32"]
    np.testing.assert_array_equal(found["w"].numpy(), np.float32([0.1, 0.2]))
    assert found["n"].numpy() == 3


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"w": np.zeros(3, np.float32)}, ["'w'", "(3,)", "(2,)"]),
        ({"v": np.zeros(2, np.float32)}, ["'w'", "'v'"]),
        ({"w": np.zeros(2, np.int64)}, ["'w'", "int64", "float32"]),
        ({"w": np.float32([0, np.inf])}, ["'w'", "finite"]),
    ],
)
def test_another_model_is_refused_by_what_differs(
    arrays: dict[str, Any], named: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(arrays, path)
    with pytest.raises(ConfigError) as refused:
        warm_start(record(w=np.zeros(2, np.float32)), path)
    assert all(word in str(refused.value) for word in ["initial_model", str(path), *named])


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 100, b"PK\x03\x04 no such archive"])
def test_what_is_no_model_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        read_model(path)


def test_what_a_file_pretends_to_hold_is_not_allocated(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ConfigError, match=str(path)):
        read_model(path)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["save_models=[last]"], ["save_models", "last"]),
        (["save_models=[best]", "target=null"], ["save_models", "target.metric"]),
        (["initial_model=nowhere.safetensors"], ["initial_model", "nowhere.safetensors"]),
    ],
)
def test_what_no_run_can_keep_or_begin_with_is_refused_before_it_starts(
    call: Call,
    arguments: list[str],
    named: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    with pytest.raises(SystemExit):
        call(*QUICK, f"hydra.run.dir={tmp_path / 'out'}", *arguments)
    said = capsys.readouterr().err
    assert all(word in said for word in named)
    assert not (tmp_path / "out").exists()


def test_torch_reads_what_is_written_and_scalars_keep_their_shape(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    w = np.arange(6, dtype=np.float32).reshape(2, 3).T  # not contiguous
    write_model(path, {"w": w, "n": np.array(7), "b": np.array([True, False])})
    found = load_file(path)
    assert torch.equal(found["w"], torch.from_numpy(w))
    assert found["n"].shape == ()
    assert found["b"].dtype == torch.bool


def test_the_same_model_is_the_same_bytes_whatever_the_order_of_its_facts(tmp_path: Path) -> None:
    facts = {name: f"of {name}, é" for name in "abcdefgh"}
    found = set()
    for turn in (facts, dict(reversed(facts.items())), facts):
        write_model(tmp_path / "model.safetensors", {"w": np.arange(3.0)}, turn)
        found.add((tmp_path / "model.safetensors").read_bytes())
    assert len(found) == 1
    assert read_facts(tmp_path / "model.safetensors").items() >= facts.items()


# ---- what is beside the model that travels -------------------------------------------------------

FEW = {
    "data": "digits",
    "num_clients": 6,
    "num_rounds": 1,
    "executor": "serial",
    "progress": False,
    "views": False,
    "fleet": "uniform",
}


def test_layers_of_the_clients_own_may_be_in_the_file_and_are_not_used(tmp_path: Path) -> None:
    fl.run(directory=tmp_path, **FEW)
    file = tmp_path / "model.safetensors"
    run = fl.run(strategy="lg_fedavg", initial_model=file, **FEW)
    assert set(run.arrays) < set(read_model(file))


def test_a_file_that_lacks_layers_says_what_it_was_written_by(tmp_path: Path) -> None:
    fl.run(strategy="fedper", directory=tmp_path, **FEW)
    with pytest.raises(ConfigError, match=r"lacks 'layers\.2.*local layers"):
        fl.run(initial_model=tmp_path / "model.safetensors", **FEW)


def test_adapters_begin_beside_the_frozen_part_that_they_were_trained_beside(
    tmp_path: Path,
) -> None:
    fl.run(adapter="lora", directory=tmp_path, **FEW)
    file = tmp_path / "model.safetensors"
    fl.run(adapter="lora", initial_model=file, **FEW)
    with pytest.raises(ConfigError, match="other frozen parameters"):
        fl.run(adapter="lora", initial_model=file, seed=1, **FEW)
    with pytest.raises(ConfigError, match="adapter=lora"):
        fl.run(initial_model=file, **FEW)


def test_a_plain_file_under_an_adapter_is_its_base(tmp_path: Path) -> None:
    fl.run(directory=tmp_path, **FEW)
    file = tmp_path / "model.safetensors"
    with pytest.raises(ConfigError, match=rf"adapter\.base={file}"):
        fl.run(adapter="lora", initial_model=file, **FEW)


@pytest.mark.parametrize("path", [3, "", [1], "/", "/dev/null", True])
def test_what_is_no_path_of_a_file_is_refused(path: object) -> None:
    with pytest.raises(ConfigError, match="initial_model"):
        fl.run(initial_model=path, **FEW)
