"""An app, or a module of the user's, that was changed after its run was stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import SMALL

from fl.cli import main

SERVER = """
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()

@app.main()
def main(grid, context):
    def evaluate(server_round, arrays):
        if server_round == 3:
            BUG

    FedAvg(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2).start(
        grid, ArrayRecord({"w": Array(np.zeros(2))}), num_rounds=5, evaluate_fn=evaluate
    )
"""
CLIENT = """
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    w = message.content["arrays"]["w"].numpy() + STEP
    arrays = ArrayRecord({"w": Array(w)})
    content = RecordDict({"arrays": arrays, "m": MetricRecord({"num-examples": 1, "w": w[0]})})
    return Message(content, reply_to=message)
"""


@pytest.fixture
def fl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    """Runs `fl`, which imports the user's files anew; returns its status and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # edits within a second are not seen

    def run(*arguments: str) -> tuple[int, str]:
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
                del sys.modules[name]
        monkeypatch.setattr(sys, "argv", ["fl", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = int(str(stopped.code))
        return code, capsys.readouterr().err

    return run


def write_app(folder: Path, *, bug: str, step: int) -> None:
    folder.mkdir(exist_ok=True)
    name = f"app_{folder.parent.name}"
    (folder / f"{name}_server.py").write_text(SERVER.replace("BUG", bug))
    (folder / f"{name}_client.py").write_text(CLIENT.replace("STEP", str(step)))
    (folder / "pyproject.toml").write_text(
        "[tool.flwr.app.components]\n"
        f'serverapp = "{name}_server:app"\n'
        f'clientapp = "{name}_client:app"\n'
        "[tool.flwr.app.config]\n"
    )


def summary_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "summary.json").read_text("utf-8"))
    return found


def test_mended_app_goes_on_if_the_user_says_so_and_the_summary_tells_from_where(
    fl: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    app, run = tmp_path / "my app", tmp_path / "run"
    quick = ["executor=serial", "progress=false", "fleet=uniform", "num_clients=3", "views=false"]
    write_app(app, bug="raise LookupError('a bug')", step=1)
    code, told = fl("app=my app", *quick, "target=null", f"hydra.run.dir={run}")
    assert code == 1
    command = f"fl resume {run} --allow '{app}'"
    assert f"can go on when the cause is gone: {command}; other versions" in told
    assert "changed code of your own unless --changed-code is given" in told

    write_app(app, bug="pass", step=10)  # the clients as well, from the fourth round on
    code, told = fl("resume", str(run), "--allow", "my app")
    assert code == 1
    assert "cannot be resumed: its app was " in told
    assert "with --changed-code, the code as it is now answers what is left" in told
    assert summary_of(run)["status"] == "failed"

    code, told = fl("resume", str(run), "--allow", "my app", "--changed-code")
    assert code == 0, told
    summary = summary_of(run)
    assert summary["status"] == "completed"
    # Three rounds of the old clients, two of the new ones.
    assert summary["final"]["train_w"] == 3 * 1 + 2 * 10
    (change,) = summary["extra"]["changed_code"]
    assert change["answers"] == 3 * 3  # of three clients
    assert set(change["code"]) == {"app"}


def test_app_that_asks_something_else_after_the_change_is_told_so(
    fl: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    app, run = tmp_path / "app", tmp_path / "run"
    quick = ["executor=serial", "progress=false", "fleet=uniform", "num_clients=3", "views=false"]
    write_app(app, bug="raise LookupError('a bug')", step=1)
    fl("app=app", *quick, "target=null", f"hydra.run.dir={run}")
    write_app(app, bug="pass", step=1)
    (server,) = app.glob("*_server.py")
    server.write_text(server.read_text().replace("np.zeros(2)", "np.ones(2)"))
    code, told = fl("resume", str(run), "--allow", "app", "--changed-code")
    assert code == 1
    assert "Its code was changed, and asks something else than before" in told
    assert "can go on" not in told  # since it cannot


def test_module_of_the_user_is_part_of_the_code(
    fl: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    name, run = f"rules_{tmp_path.name}", tmp_path / "run"
    rule = "from fl.clients import Sgd\nclass Rule(Sgd):\n    pass\n"
    stopping = f"{rule}    def init(self, received):\n        raise KeyboardInterrupt\n"
    own = [*SMALL, "strategy=fedavg", "num_clients=10", "num_rounds=2", "fleet=uniform"]
    own += [f"client.rule._target_={name}.Rule", f"hydra.run.dir={run}"]
    (tmp_path / f"{name}.py").write_text(stopping)
    code, told = fl(*own)
    assert code == 130
    assert f"this run can go on: fl resume {run} --allow {name}.Rule\n" in told
    (tmp_path / f"{name}.py").write_text(rule)
    code, told = fl("resume", str(run), "--allow", name)
    assert code == 1
    assert "its modules was " in told
    code, told = fl("resume", str(run), "--allow", name, "--changed-code")
    assert code == 0, told
    assert set(summary_of(run)["extra"]["changed_code"][0]["code"]) == {"modules"}
