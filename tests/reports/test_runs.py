import pytest

from fl.errors import ConfigError
from fl.reports.run_writer import RunWriter, Totals
from fl.reports.runs import find_runs, group_runs, read_run


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
