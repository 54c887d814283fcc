import shutil

import pytest

from fl.errors import ConfigError
from fl.reports.run_writer import RunWriter, Totals
from fl.reports.runs import ended, find_runs, group_runs, load_runs, read_run


def leave_run(directory, row, seed, **config):
    writer = RunWriter(directory, {**config, "seed": seed}, seed, tensorboard=False, plots=False)
    writer.evaluation(row(1, 1.0, accuracy=0.5))
    writer.finish(Totals())
    return writer


def test_a_run_is_read_back_as_written(tmp_path, row):
    writer = leave_run(tmp_path, row, 0, lr=0.1)
    run = read_run(tmp_path)
    assert run.history == writer.history
    assert run.summary["config"] == {"lr": 0.1, "seed": 0}
    assert run.directory == tmp_path


def test_a_directory_without_a_summary_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="give the directory of a run that has ended"):
        read_run(tmp_path)
    with pytest.raises(ConfigError, match=r"no summary\.json at or below"):
        find_runs(tmp_path)


def test_a_directory_that_is_not_there_is_told_as_such_and_not_to_be_resumed(tmp_path):
    with pytest.raises(ConfigError) as error:
        read_run(tmp_path / "gone")
    assert "gone" in str(error.value)
    assert "resume" not in str(error.value)


def test_seeds_of_one_configuration_are_one_group(tmp_path, row):
    targets = ("fl.strategies.fedavg.FedAvg", "fl.strategies.fedprox.FedProx")
    for name in targets:
        for seed in (0, 1):
            folder = tmp_path / f"{name.rpartition('.')[2]}-{seed}"
            leave_run(folder, row, seed, strategy={"_target_": name, "fraction": 0.5})
    groups = group_runs(find_runs(tmp_path))
    assert {label: [r.summary["seed"] for r in runs] for label, runs in groups.items()} == {
        "FedAvg": [0, 1],
        "FedProx": [0, 1],
    }


def test_labels_name_what_differs(tmp_path, row):
    leave_run(tmp_path / "1", row, 0, lr=0.1, model={"name": "cnn"}, momentum=0.9)
    leave_run(tmp_path / "2", row, 0, lr=0.2, model={"name": "mlp"})
    runs = find_runs(tmp_path)
    assert list(group_runs(runs)) == ["lr=0.1, cnn, momentum=0.9", "lr=0.2, mlp"]
    assert list(group_runs(runs, by=["lr"])) == ["lr=0.1", "lr=0.2"]
    assert list(group_runs(runs[:1])) == ["all runs"]


def leave_simulated(directory, row, trace, seed=0, model="m", status="completed", **config):
    writer = RunWriter(directory, {**config, "seed": seed}, seed, tensorboard=False, plots=False)
    writer.evaluation(row(1, 1.0, accuracy=0.5))
    writer.finish(Totals(), trace=trace, model_sha256=model, status=status)


def test_a_run_that_was_run_again_counts_once_wherever_it_ran(tmp_path, row, trace):
    leave_simulated(tmp_path / "a", row, trace, executor="ray")
    leave_simulated(tmp_path / "b", row, trace, executor="serial")
    leave_simulated(tmp_path / "c", row, trace, seed=1)
    leave_simulated(tmp_path / "d", row, trace, model="of other code")
    leave_simulated(tmp_path / "e", row, trace, lr=0.1)
    runs, problems = load_runs([tmp_path])
    assert [run.directory.name for run in runs] == ["a", "c", "d", "e"]
    (problem,) = problems
    assert str(tmp_path / "b") in problem
    assert str(tmp_path / "a") in problem


def test_two_deployments_are_two_runs(tmp_path, row):
    leave_run(tmp_path / "a", row, 0)  # no trace: on a deployment nothing is repeated
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    runs, problems = load_runs([tmp_path])
    assert (len(runs), problems) == (2, [])


def test_where_runs_ran_does_not_tell_groups_apart(tmp_path, row):
    for seed, executor in enumerate(("ray", "serial")):
        leave_run(tmp_path / executor, row, seed, executor={"_target_": executor}, lr=0.1)
    assert list(group_runs(find_runs(tmp_path))) == ["all runs"]


def test_what_did_not_end_is_no_result_and_is_named(tmp_path, row, trace):
    for status in ("completed", "diverged", "interrupted", "failed"):
        leave_simulated(tmp_path / status, row, trace, status=status, lr=status)
    runs, told = ended(find_runs(tmp_path))
    assert [run.directory.name for run in runs] == ["completed", "diverged"]
    assert len(told) == 2
    assert str(tmp_path / "failed") in told[0]
    assert str(tmp_path / "interrupted") in told[1]
