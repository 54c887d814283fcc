"""The command line as a user meets it: results, messages, exit status."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fl.cli import _explain, main

QUICK = ["executor=serial", "progress=false", "fleet=uniform", "num_clients=10", "num_rounds=1"]


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["fl", *arguments])
    main()


def refused(monkeypatch, capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, *arguments)
    assert stopped.value.code == 1
    message = capsys.readouterr().err.strip()
    assert "Traceback" not in message
    return message.splitlines()[0]


def test_a_run_prints_a_table_and_leaves_its_files(monkeypatch, capsys, tmp_path):
    call(monkeypatch, *QUICK, f"hydra.run.dir={tmp_path}")
    assert "accuracy" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "completed"
    assert summary["config"]["num_clients"] == 10
    left = {path.name for path in tmp_path.iterdir()}
    assert left >= {"summary.json", "metrics.csv", "trace.parquet", "timeline.json", "tb", "plots"}


def test_a_sweep_runs_every_combination(monkeypatch, tmp_path):
    call(monkeypatch, "-m", *QUICK, "seed=0,1", f"hydra.sweep.dir={tmp_path}")
    summaries = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("*/summary.json"))]
    assert [summary["seed"] for summary in summaries] == [0, 1]
    assert summaries[0]["model_sha256"] != summaries[1]["model_sha256"]


def test_the_module_is_the_command_and_its_status_tells_failure(tmp_path):
    command = [sys.executable, "-m", "fl", *QUICK, "client.rule.lr=-1"]
    done = subprocess.run(
        [*command, f"hydra.run.dir={tmp_path}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "fl: lr is -1; it must be finite and above 0"


def test_an_unknown_key_is_refused_with_the_nearest(monkeypatch, capsys):
    message = refused(monkeypatch, capsys, "clint.rule.lr=1")
    assert message.startswith("fl: there is no key 'clint.rule.lr'; did you mean client.rule.lr")


def test_an_unknown_member_is_refused_with_what_exists(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, "strategy=fedavgg")
    message = capsys.readouterr().err
    assert "strategy/fedavgg" in message
    assert "fedavgm" in message
    assert "Traceback" not in message


def test_a_missing_app_directory_is_named(monkeypatch, capsys, tmp_path):
    message = refused(monkeypatch, capsys, f"app={tmp_path}", f"hydra.run.dir={tmp_path}/out")
    assert message.startswith(f"fl: app={tmp_path}: {tmp_path}/pyproject.toml does not exist")


def test_a_flower_app_directory_runs_with_overrides(monkeypatch, capsys, tmp_path):
    app = tmp_path / "app"
    (app / "tiny").mkdir(parents=True)
    (app / "pyproject.toml").write_text(
        "[tool.flwr.app.components]\n"
        'serverapp = "tiny.server_app:app"\nclientapp = "tiny.client_app:app"\n'
        "[tool.flwr.app.config]\nnum-server-rounds = 1\nlr = 0.5\n"
    )
    (app / "tiny" / "__init__.py").write_text("")
    (app / "tiny" / "server_app.py").write_text(
        "import numpy as np\n"
        "from flwr.app import Array, ArrayRecord, ConfigRecord\n"
        "from flwr.serverapp import ServerApp\n"
        "from flwr.serverapp.strategy import FedAvg\n"
        "app = ServerApp()\n"
        "@app.main()\n"
        "def main(grid, context):\n"
        "    config = context.run_config\n"
        "    FedAvg(fraction_evaluate=0.0).start(\n"
        "        grid, ArrayRecord({'w': Array(np.zeros(3))}),\n"
        "        num_rounds=config['num-server-rounds'],\n"
        "        train_config=ConfigRecord({'lr': config['lr']}))\n"
    )
    (app / "tiny" / "client_app.py").write_text(
        "from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict\n"
        "from flwr.clientapp import ClientApp\n"
        "app = ClientApp()\n"
        "@app.train()\n"
        "def train(message, context):\n"
        "    w = message.content['arrays']['w'].numpy() + message.content['config']['lr']\n"
        "    return Message(RecordDict({'arrays': ArrayRecord({'w': Array(w)}),\n"
        "        'metrics': MetricRecord({'num-examples': 1, 'loss': 0.1})}), reply_to=message)\n"
    )
    out = tmp_path / "out"
    call(
        monkeypatch,
        *QUICK,
        f"app={app}",
        "+run_config.num-server-rounds=4",
        "target=null",
        f"hydra.run.dir={out}",
    )
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["totals"]["client_updates"] == 4 * 10
    message = refused(
        monkeypatch, capsys, *QUICK, f"app={app}", "+run_config.lrr=1", f"hydra.run.dir={out}"
    )
    assert message.startswith("fl: run_config.lrr is no key of this app; did you mean 'lr'?")


def test_messages_that_are_not_about_keys_pass_unchanged():
    assert _explain(ValueError("plain")) == "plain"
