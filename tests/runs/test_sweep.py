"""What a sweep leaves behind beside its jobs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import metadata

from fl.execution import cluster
from fl.reports.history import COLUMNS
from fl.reports.jobs import JOBS, Job, by_overrides, overrides, read_jobs
from fl.reports.run_writer import config_digest
from fl.reports.runs import Run, find_runs
from fl.reports.tensorboard_log import TensorBoardLog, flattened, write_hparams
from fl.runs import sweep
from fl.runs.sweep import (
    FILE,
    ShareRay,
    Sweep,
    compare_jobs,
    job_folder,
    side_by_side,
)


def job(root, number, overrides, accuracies, staleness=None, config=None, status="completed"):
    """Writes what a job leaves: its overrides, summary and evaluations."""
    folder = root / str(number)
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {o}\n" for o in overrides))
    summary = {
        "status": status,
        "config": config or {},
        "final": {"accuracy": accuracies[-1]},
        "best": {"accuracy": {"value": max(accuracies), "round": 1}},
        "target": None,
        "totals": {
            "virtual_s": 10.0,
            "bytes_down": 5,
            "bytes_up": 5,
            "energy_j": {"total": 1.0},
            "utilisation": 0.25,
        },
        "staleness": staleness,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = [f"{i},{i}.0,0.1,{i},{i},1.0,{a}" for i, a in enumerate(accuracies)]
    header = "round,time_s,wall_s,bytes_down,bytes_up,energy_j,accuracy"
    (folder / "metrics.csv").write_text("\n".join([header, *rows]) + "\n")


def test_jobs_that_differ_in_their_seed_only_are_one_row_named_by_what_differs(tmp_path):
    for number, (strategy, seed) in enumerate([("a", 0), ("a", 1), ("b", 0), ("b", 1)]):
        job(tmp_path, number, [f"strategy={strategy}", f"seed={seed}", "x=1"], [0.1, 0.5])
    groups = by_overrides(find_runs(tmp_path))
    assert {label: len(runs) for label, runs in groups.items()} == {
        "strategy=a": 2,
        "strategy=b": 2,
    }


def test_a_sweep_ends_with_one_table_and_one_plot(tmp_path, capsys):
    stale = {"updates": 3, "mean": 2.5, "max": 4.0}
    job(tmp_path, 0, ["strategy=a"], [0.1, 0.5])
    job(tmp_path, 1, ["strategy=b"], [0.1, 0.7], stale)
    compare_jobs(tmp_path)
    printed = capsys.readouterr().out
    for text in ("strategy=a", "strategy=b", "0.7", "staleness", "2.5", "computing", "25 %"):
        assert text in printed
    assert (tmp_path / FILE).read_bytes().startswith(b"\x89PNG")


def test_equal_overrides_with_different_configurations_are_not_one_row(tmp_path):
    for folder, lr in [("old", 0.1), ("new", 0.2)]:
        job(tmp_path, folder, ["strategy=a", f"seed={len(folder)}"], [0.1], config={"lr": lr})
    assert by_overrides(find_runs(tmp_path)).keys() == {"lr=0.1", "lr=0.2"}


def test_a_process_reads_a_summary_once_until_it_changes(tmp_path, monkeypatch):
    path, read = tmp_path / "summary.json", []
    own = sweep._summary
    monkeypatch.setattr(sweep, "_summary", lambda path: read.append(path) or own(path))
    assert sweep._Ended.digest(path) is None  # there is none
    path.write_text('{"status": "running"}')
    assert [sweep._Ended.digest(path) for _ in range(3)] == [None] * 3
    path.write_text('{"status": "completed", "config": {"seed": 1}}')
    first, again = sweep._Ended.digest(path), sweep._Ended.digest(path)
    assert first == again
    assert first
    assert len(read) == 2


def test_damaged_runs_are_left_out_of_the_comparison(tmp_path, capsys):
    for name in "abcd":
        job(tmp_path, name, [f"strategy={name}"], [0.1])
    (tmp_path / "c" / "summary.json").write_text("{")
    (tmp_path / "d" / "metrics.csv").unlink()
    compare_jobs(tmp_path)
    printed = capsys.readouterr().out
    assert "strategy=a" in printed
    assert "strategy=b" in printed
    assert "strategy=c" not in printed


def test_jobs_that_did_not_end_are_left_out_of_means_and_named(tmp_path, capsys):
    for seed, status in enumerate(["completed", "completed", "interrupted", "failed"]):
        accuracy = 0.8 if status == "completed" else 0.1
        job(tmp_path, seed, [f"seed={seed}"], [accuracy], config={"seed": seed}, status=status)
    compare_jobs(tmp_path)
    said = capsys.readouterr()
    assert "│ all runs │     2 │" in said.out
    assert "0.1" not in said.out.split("comparison.png")[0]
    assert str(tmp_path / "2") in said.err
    assert str(tmp_path / "3") in said.err


def test_jobs_are_listed_as_numbered_and_half_written_lines_are_left_out(tmp_path):
    lines = [
        '{"number": 1, "overrides": "a=2", "status": "failed", "directory": "y", "reason": "r"}'
    ]
    lines += [
        '{"number": 0, "overrides": "a=1", "status": "completed", "directory": "x"}',
    ]
    (tmp_path / JOBS).write_text("\n".join([*lines, '{"number": 2, "over']))
    assert read_jobs(tmp_path) == [
        Job(0, "a=1", "completed", "x"),
        Job(1, "a=2", "failed", "y", "r"),
    ]
    assert read_jobs(tmp_path / "nowhere") == []


def folder_of(dirname, **config):
    hydra = {"job": {"override_dirname": dirname}, "now": config.pop("now", 1)}
    return job_folder(_root_=OmegaConf.create({**config, "hydra": hydra}))


def test_folder_is_named_by_overrides_and_by_the_digest_of_the_run_itself():
    name = folder_of("a=1,b=[x/y]", a=1, b=["x/y"])
    assert name == f"a=1,b=_x_y_-{config_digest({'a': 1, 'b': ['x/y']})[:8]}"
    assert folder_of("a=1", a=1, now=2) == folder_of("a=1", a=1, now=3)
    assert folder_of("a=1", a=1, c=2) != folder_of("a=1", a=1, c=3)
    assert len(folder_of("x" * 999, a=1)) < 255
    assert folder_of("a=1", a=1, c="${oc.env:NO_SUCH_VARIABLE}")  # the job itself will complain


def test_side_by_side_is_one_outside_of_a_sweep():
    assert side_by_side() == 1


def job_config(tmp_path, **launcher):
    sweep = {
        "mode": RunMode.MULTIRUN,
        "launcher": launcher,
        "runtime": {"output_dir": str(tmp_path)},
    }
    return OmegaConf.create({"hydra": sweep})


@pytest.mark.parametrize(
    ("launcher", "jobs"), [({}, 1), ({"n_jobs": 3}, 3), ({"n_jobs": -1}, 4), ({"n_jobs": -9}, 1)]
)
def test_side_by_side_is_what_the_launcher_runs_at_a_time(tmp_path, monkeypatch, launcher, jobs):
    monkeypatch.setattr("fl.vectors.threads.cores", lambda: 4)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", job_config(tmp_path, **launcher))
    assert side_by_side() == jobs


@pytest.mark.parametrize(
    ("overrides", "starts"),
    [
        ([], None),  # each finds out by itself whether it needs one
        (["executor=ray"], 0),
        (["executor=serial"], None),
        (["executor=serial,ray"], 0),
        (["executor.num_actors=1,5"], 5),
        (["executor.address=auto"], None),
    ],
)
def test_one_ray_is_started_for_a_sweep_whose_jobs_need_one(
    tmp_path, monkeypatch, overrides, starts
):
    started, stopped = [], []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "start_shared", lambda actors: started.append(actors) or True)
    monkeypatch.setattr(cluster, "stop_shared", lambda: stopped.append(True))
    config = OmegaConf.create(
        {
            "hydra": {
                "overrides": {"task": [*overrides, "seed=0,1", "+new=3"], "hydra": []},
                "sweep": {"dir": str(tmp_path / "sweep")},
                "runtime": {"choices": {"executor": "auto"}},
            }
        }
    )
    Sweep().on_multirun_start(config)
    ShareRay().on_multirun_start(config)
    assert started == ([] if starts is None else [starts])
    (names,) = config.hydra.overrides.hydra
    assert "'new'" in names
    assert "seed" not in names
    assert Sweep.end() == tmp_path / "sweep"
    assert len(stopped) == len(started)
    assert Sweep.end() is None


def test_hparams_page_of_a_sweep_lists_what_differs_and_metrics_of_all_runs(tmp_path):
    summaries = [
        {
            "config": {"lr": 0.1, "b": {"x": 1}, "c": {"y": 5, "lr": 0.1}, "same": 3},
            "final": {"loss": 1.0},
            "best": {"loss": {}},
            "target": None,
        },
        {
            "config": {"lr": 0.2, "b": {"x": 2}, "c": {"lr": 0.2}, "same": 3},
            "final": {"accuracy": 1.0, "absent_nodes": 2.0},
            "best": {"accuracy": {}},
            "target": {},
        },
    ]
    for name, summary in zip("ab", summaries, strict=True):
        log = TensorBoardLog(tmp_path / name / "tb", flattened(summary["config"]), None)
        log.evaluation(dict.fromkeys(COLUMNS, 0) | summary["final"])
    write_hparams(tmp_path, summaries)
    write_hparams(tmp_path, summaries)  # replaces the first
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    content = multiplexer.PluginRunToTagToContent("hparams")
    # TensorBoard takes the first experiment it finds, which must be the sweep's.
    first = next(tags for tags in content.values() if metadata.EXPERIMENT_TAG in tags)
    experiment = metadata.parse_experiment_plugin_data(first[metadata.EXPERIMENT_TAG])
    # c.y comes with another choice, and c.lr is what lr is.
    assert [info.name for info in experiment.hparam_infos] == ["lr", "b.x"]
    tags = {info.name.tag for info in experiment.metric_infos}
    assert {"metrics/loss", "metrics/accuracy", "cost/time_s"} <= tags
    assert {tag for tag in tags if tag.startswith("best/")} == {"best/loss", "best/accuracy"}


QUICK = ["progress=false", "model=logistic", "num_clients=10", "num_rounds=2", "views=false"]


def command(*arguments, expect=0):
    done = subprocess.run(
        [sys.executable, "-m", "fl", "-m", *QUICK, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expect, done.stderr
    return done


@pytest.mark.slow
def test_jobs_side_by_side_on_one_ray_give_what_they_give_one_after_another(tmp_path):
    sweep = ("fleet=uniform", "strategy=fedavg,fedbuff", "seed=0,1")
    runs = {}
    for name, *more in (
        ("serial", "executor=serial"),
        ("shared", "executor=ray"),
        ("joblib", "executor=ray", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
        ("both", "executor=serial", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    ):
        command(*sweep, f"hydra.sweep.dir={tmp_path / name}", *more)
        found = find_runs(tmp_path / name)
        runs[name] = {
            str(overrides(run)): (run.summary["trace_sha256"], run.summary["model_sha256"])
            for run in found
        }
        assert len({value for value in runs[name].values()}) == 4
    results = [sorted(found.values()) for found in runs.values()]
    assert all(found == results[0] for found in results)


@pytest.mark.slow
def test_jobs_side_by_side_do_not_tell_again_that_they_were_refused(tmp_path):
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "executor=serial")
    done = command(*launcher, "client.rule.lr=-1,0.1", f"hydra.sweep.dir={tmp_path}", expect=1)
    assert done.stderr.count("client.rule.lr is -1;") == 2  # first of all, and at the end
    assert [job.status for job in read_jobs(tmp_path)] == ["failed", "completed"]
    assert [path.parent.name.rpartition("-")[0] for path in tmp_path.glob("*/summary.json")] == [
        "client.rule.lr=0.1"
    ]


@pytest.mark.slow
def test_a_sweep_of_three_strategies_two_fleets_and_three_seeds_survives_a_failing_job(tmp_path):
    sweep = [
        "strategy=fedavg,fedprox,fedbuff",
        "fleet=uniform,cross_silo",
        "seed=0,1,2",
        "executor=serial",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        f"hydra.sweep.dir={tmp_path}",
    ]
    command(*sweep)
    lost = next(tmp_path.glob("fleet=cross_silo,seed=1,strategy=fedbuff-*"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/summary.json")}
    assert len(before) == 18
    # A folder where the run needs a file makes that one job fail.
    shutil.rmtree(lost)
    (lost / "metrics.csv").mkdir(parents=True)
    done = command(*sweep, expect=1)
    assert done.stdout.count("completed before") == 17
    assert "1 of 18 jobs failed" in done.stderr
    assert "IsADirectoryError" in done.stderr.splitlines()[-1]
    (lost / "metrics.csv").rmdir()
    done = command(*sweep)
    assert done.stdout.count("completed before") == 17
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/summary.json")}
    assert [path.parent for path in after if after[path] != before[path]] == [lost]
    assert (tmp_path / FILE).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_sweep_with_another_executor_repeats_no_job(tmp_path):
    sweep = ("seed=0,1", f"hydra.sweep.dir={tmp_path}")
    command(*sweep, "executor=serial")
    done = command(*sweep, "executor=ray", "executor.num_actors=1")
    assert done.stdout.count("completed before") == 2


def test_one_job_or_none_needs_no_comparison(tmp_path, capsys):
    compare_jobs(tmp_path)
    job(tmp_path, 0, ["strategy=a"], [0.1])
    compare_jobs(tmp_path)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / FILE).exists()


def test_runs_without_the_overrides_of_others_are_the_defaults(tmp_path):
    job(tmp_path, 0, ["seed=0"], [0.5])
    job(tmp_path, 1, ["seed=1"], [0.5])
    job(tmp_path, 2, ["lr=1", "seed=0"], [0.5])
    groups = by_overrides(find_runs(tmp_path))
    assert {label: len(runs) for label, runs in groups.items()} == {"defaults": 2, "lr=1": 1}


def test_a_run_that_hydra_did_not_start_has_no_overrides():
    assert by_overrides([Run(None, {"config": {}}, [])]).keys() == {"all runs"}
