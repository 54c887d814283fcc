"""The page about runs: what is on it, that it needs nothing else, and what it says of bad runs."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import pytest

from fl.errors import ConfigError
from fl.reports.jobs import JOBS
from fl.reports.report import main, page
from fl.reports.run_writer import RunWriter, Totals
from fl.reports.runs import find_runs, load_runs
from fl.reports.shell import SCRIPT, policy
from fl.reports.target import Target
from fl.simulation.kernel.trace import Event, Trace

VOID = {"meta", "img", "br", "input"}


class Reader(HTMLParser):
    """Collects the text of headings and cells, the sources of pictures, and where links lead."""

    def __init__(self):
        super().__init__()
        self.open, self.rows, self.sources, self.links, self.tags = [], [], [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        attrs = dict(attrs)
        self.sources += [attrs["src"]] if "src" in attrs else []
        self.links += [attrs["href"]] if "href" in attrs else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "the page is not well formed"

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def read(text):
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def figures(text):
    """Returns the SVG of a page's curves; what is written in them is in comments."""
    data = [source.partition("base64,")[2] for source in read(text).sources if "svg" in source]
    return "".join(base64.b64decode(one).decode("utf-8") for one in data)


def leave(directory, row, seed, accuracies, target=None, status="completed", trace=None, **config):
    config = {**config, "seed": seed}
    writer = RunWriter(directory, config, seed, target, tensorboard=False, plots=trace is not None)
    for r, accuracy in enumerate(accuracies):
        writer.evaluation(row(r, 60.0 * r, accuracy=accuracy))
    error = None if status == "completed" else ValueError("<too> large")
    totals = Totals(virtual_s=120.0, compute_j=3.0, radio_j=1.0, utilisation=0.25, wall_s=2.0)
    writer.finish(totals, status=status, error=error, trace=trace)


@pytest.fixture
def runs(tmp_path, row):
    """Two configurations of two seeds, of which one never gets to the target."""
    target = Target("accuracy", 0.8)
    for lr in (0.1, 0.2):
        for seed in (0, 1):
            accuracies = [0.0, 0.5, 0.9 if lr == 0.1 or seed else 0.6]
            leave(tmp_path / f"{lr}-{seed}", row, seed, accuracies, target, lr=lr, name="<b>&")
    return tmp_path


def test_page_has_every_run_and_what_it_cost_to_reach_the_target(runs):
    text = page(find_runs(runs), base=runs)
    rows = read(text).rows
    costs = {row[0]: row for row in rows if row[0].startswith("lr=")}
    assert set(costs) == {"lr=0.1", "lr=0.2"}
    heading = next(row for row in rows if "time to 0.8" in row)
    reached = next(row for row in rows if row[0] == "lr=0.2")
    assert reached[heading.index("time to 0.8")] == "2 min (1/2)"
    folders = [row[-1] for row in rows if row[0].startswith("lr=") and "completed" in row]
    assert folders == ["0.1-0", "0.1-1", "0.2-0", "0.2-1"]


def test_page_needs_no_network_no_other_file_and_no_script_but_its_own(runs):
    text = page(find_runs(runs), base=runs)
    reader = read(text)
    assert reader.sources
    assert all(source.startswith("data:image/") for source in reader.sources)
    assert not reader.tags & {"link", "iframe", "object"}
    assert text.count("<script") == 1
    assert f"<script>{SCRIPT}</script>" in text  # which the policy allows by its hash
    assert policy(live=False) in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert all((runs / link).is_dir() for link in reader.links)  # the folders of runs


def test_title_is_what_the_runs_differ_in_or_what_one_wants(runs, tmp_path):
    assert "<title>lr=0.1, lr=0.2 · fl</title>" in page(find_runs(runs))
    main([str(runs), "-o", str(tmp_path / "page.html"), "--title", "<Rates> & more"])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<title>&lt;Rates&gt; &amp; more · fl</title>" in text
    assert text.count("&lt;Rates&gt; &amp; more</h1>") == 1


def test_a_run_alone_is_called_by_what_it_is_and_has_no_mean_over_seeds(tmp_path, row):
    parts = {"strategy": {"rule": {"_target_": "a.FedAdam"}}, "data": {"_target_": "b.digits"}}
    leave(tmp_path, row, 0, [0.1, 0.5], **parts, model={"_target_": "c.MLP"})
    text = page(find_runs(tmp_path))
    assert "<title>strategy=FedAdam, data=digits · fl</title>" in text
    assert "all runs" not in text
    assert "over seeds" not in text
    assert ["model", "MLP"] in read(text).rows
    (tmp_path / ".hydra").mkdir()
    choices = "{strategy: fedadam, data: digits, attack: null, hydra/launcher: basic}"
    (tmp_path / ".hydra/hydra.yaml").write_text(f"hydra: {{runtime: {{choices: {choices}}}}}")
    (tmp_path / ".hydra/overrides.yaml").write_text("[strategy=fedadam, seed=3, lr=0.1]")
    text = page(find_runs(tmp_path))
    assert "<title>strategy=fedadam, lr=0.1 · fl</title>" in text
    assert ["strategy", "fedadam"] in read(text).rows
    assert ["hydra/launcher", "basic"] not in read(text).rows


def test_what_all_data_in_one_place_reach_is_a_line_with_a_name(runs):
    assert "all data in one place" not in figures(page(find_runs(runs)))
    for path in runs.glob("*/summary.json"):
        summary = json.loads(path.read_text("utf-8"))
        summary["extra"] = {**(summary.get("extra") or {}), "central": {"accuracy": 0.95}}
        path.write_text(json.dumps(summary), encoding="utf-8")
    assert "all data in one place" in figures(page(find_runs(runs)))


@pytest.mark.parametrize("central", [{"accuracy": "high"}, [0.9], "0.9"])
def test_a_run_whose_central_result_is_none_is_left_out(runs, central, capsys):
    path = runs / "0.1-0" / "summary.json"
    summary = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**summary, "extra": {"central": central}}), encoding="utf-8")
    main([str(runs)])
    assert "extra" in capsys.readouterr().err


def test_equal_runs_make_equal_pages(runs):
    assert page(find_runs(runs), base=runs) == page(find_runs(runs), base=runs)


def test_only_keys_that_differ_are_shown_and_seeds_are_none_of_them(runs, row):
    leave(runs / "other", row, 0, [0.0, 0.9], lr=0.2, name="<b>&", nested={"x": True, "seed": 4})
    rows = read(page(find_runs(runs))).rows
    keys = {row[0]: row[1:] for row in rows}
    assert keys["lr"] == ["0.1", "0.2", "0.2"]
    assert keys["nested.x"] == ["–", "–", "true"]  # noqa: RUF001
    assert not {"name", "seed", "nested.seed"} & keys.keys()


def test_a_value_that_two_keys_have_is_one_row_and_what_strategies_chose_is_said(tmp_path, row):
    for name, fleet, rounds, f in (("FedAvg", "mobile", 9, 1), ("DiLoCo", "datacenters", 9, 2)):
        fleet = {"_target_": f"fl.simulation.world.fleets.{fleet}"}
        strategy = {"_target_": name, "aggregator": {"rule": {"f": f}}}
        more = {"strategy": strategy, "aggregator": {"f": f}, "num_rounds": rounds}
        leave(tmp_path / name, row, 0, [0.5], fleet=fleet, **more)
    text = page(find_runs(tmp_path))
    keys = [row[0] for row in read(text).rows]
    assert "aggregator.f" in keys
    assert "strategy.aggregator.rule.f" not in keys
    said = re.findall("<li>(fleet|client|model|num_clients|num_rounds): (.*?)</li>", text)
    ((what, values),) = said
    assert what == "fleet"
    assert all(value in values for value in ("mobile of ", "datacenters of ", "FedAvg", "DiLoCo"))


def test_runs_with_two_targets_are_not_compared_in_one_table(runs, row):
    leave(runs / "loss", row, 0, [0.0, 0.9], Target("accuracy", 0.3), lr=0.1, name="<b>&")
    heads = [row for row in read(page(find_runs(runs))).rows if "seeds" in row]
    assert [head[4] for head in heads] == ["time to 0.8", "time to 0.3"]


def test_utilisation_energy_and_faults_are_means_over_seeds(tmp_path, row, trace):
    leave(tmp_path / "0", row, 0, [0.5], trace=trace)
    quiet = Trace()
    quiet.record(0.0, Event.DISPATCH, 0, 0, 1)
    leave(tmp_path / "1", row, 1, [0.5], trace=quiet)
    text = page(find_runs(tmp_path))
    rows = read(text).rows
    busy = rows[next(i for i, row in enumerate(rows) if "energy: computing" in row) + 1]
    assert busy[1:5] == ["25 %", "75 %", "25 %", "0 %"]
    head = next(i for i, row in enumerate(rows) if "dropout" in row)
    assert rows[head + 1][rows[head].index("dropout")] == "0.5"  # one in the first run only
    assert text.count("What the clients did") >= 1
    assert any(source.startswith("data:image/png") for source in read(text).sources)


def test_damaged_and_failed_runs_are_named_and_the_rest_is_reported(runs, row, capsys):
    leave(runs / "failed", row, 0, [0.1], status="failed", lr=0.1, name="<b>&")
    for name in ("a", "b", "c", "d", "e"):
        leave(runs / name, row, 0, [0.1], lr=0.3)
    (runs / "a" / "summary.json").unlink()
    (runs / "b" / "summary.json").write_text('{"status": "comp')
    (runs / "c" / "summary.json").write_text('{"status": "completed"}')
    (runs / "d" / "metrics.csv").write_bytes(b"round,time_s\n1,2\n")
    with (runs / "e" / "metrics.csv").open("a") as file:
        file.write("1,2.0,x,4,5,6.0,7.0\n")
    job = {"number": 7, "overrides": "lr=-1", "status": "failed", "directory": "gone"}
    (runs / JOBS).write_text(json.dumps({**job, "reason": "lr is -1"}) + "\n")
    main([str(runs)])
    said = capsys.readouterr()
    text = (runs / "report.html").read_text()
    for name, reason in (
        ("a", "summary.json does not exist"),
        ("b", "summary.json cannot be read: "),
        (
            "c",
            "is no summary of a run: it lacks a usable config, final, best, target, totals; run it",
        ),
        ("d", "starts with columns"),
        ("e", "line 3: could not convert string to float: 'x'; delete the line"),
    ):
        (line,) = [line for line in said.err.splitlines() if str(runs / name / "") in line]
        assert reason in line
        assert str(runs / name) in text
    assert "failed was failed: ValueError: &lt;too&gt; large" in text
    assert "job 7 (lr=-1): lr is -1" in text
    assert "report.html: 5 runs" in said.out
    read(text)


def test_what_did_not_end_is_in_no_mean(runs, row):
    before = read(page(find_runs(runs))).rows
    leave(
        runs / "stopped", row, 2, [0.1], Target("accuracy", 0.8), "interrupted", lr=0.1, name="<b>&"
    )
    after = read(page(find_runs(runs))).rows
    index = next(i for i, cells in enumerate(before) if "seeds" in cells)
    assert after[index : index + 3] == before[index : index + 3]
    assert "interrupted" in [cells[2] for cells in after if len(cells) > 2]


def test_page_about_several_directories_goes_into_none_of_them(runs, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    main([str(runs / "0.1-0"), str(runs / "0.1-1")])
    assert (here / "report.html").exists()
    assert list(runs.rglob("report.html")) == [here / "report.html"]


def test_directory_without_runs_is_refused_with_what_to_give(tmp_path, capsys):
    with pytest.raises(ConfigError, match="there is no run to report at or below"):
        main([str(tmp_path)])
    with pytest.raises(ConfigError, match="gone is no directory"):
        main([str(tmp_path / "gone")])


def test_run_below_two_of_the_directories_is_read_once(runs):
    assert len(load_runs([runs, runs / "0.1-0"])[0]) == 4


def test_page_goes_where_it_is_told_and_links_start_there(runs, tmp_path):
    main([str(runs), "-o", str(tmp_path / "new" / "page.html")])
    links = read((tmp_path / "new" / "page.html").read_text()).links
    assert all((tmp_path / "new" / re.sub("%2B", "+", link)).is_dir() for link in links)


def test_runs_that_evaluated_nothing_still_have_a_page(tmp_path, row):
    leave(tmp_path / "0", row, 0, [])
    assert "No metric was evaluated." in page(find_runs(tmp_path))


def test_axis_that_seeds_do_not_share_is_left_out_and_said(tmp_path, row):
    for seed, start in enumerate((0.0, 1e6)):
        writer = RunWriter(tmp_path / str(seed), {"seed": seed}, seed, tensorboard=False)
        for r in range(2):
            writer.evaluation(row(r, start + r, accuracy=0.5))
        writer.finish(Totals())
    text = page(find_runs(tmp_path))
    assert "accuracy, virtual time: the seeds of a method share no stretch" in text
    assert "accuracy against round, data moved, energy" in text


def test_runs_that_still_run_are_counted_beside_those_that_ended(tmp_path, row):
    leave(tmp_path / "0", row, 0, [0.5])
    (run,) = find_runs(tmp_path)
    assert "1 run that ended and 1 that still runs, 1 of them completed" in page(
        [run], running=[run]
    )
