import math

import numpy as np
import pytest

from fl.errors import ConfigError
from fl.reports import plots
from fl.reports.client_rows import ClientRow
from fl.reports.runs import Run
from fl.reports.target import Target
from fl.simulation.kernel.trace import Event, Trace

PNG = b"\x89PNG\r\n\x1a\n"
EDGES = np.linspace(0.0, 12.0, 201)  # of bins over the whole `trace`, s


def lines(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def test_metrics_are_drawn_against_time_bytes_and_rounds(tmp_path, row):
    history = [row(0, 0.0, accuracy=0.1), row(1, 600.0, accuracy=0.5), row(2, 1200.0, accuracy=0.7)]
    figure = plots.metrics(history, tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes().startswith(PNG)
    time, moved, rounds = figure.axes
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "virtual time (min)",
        "data moved (kB)",
        "round",
    ]
    assert time.get_ylabel() == "accuracy"
    assert lines(time)["accuracy"] == [[0, 0.1], [10, 0.5], [20, 0.7]]
    assert lines(moved)["accuracy"] == [[0, 0.1], [1.5, 0.5], [3.0, 0.7]]
    assert lines(rounds)["accuracy"] == [[0, 0.1], [1, 0.5], [2, 0.7]]
    assert all(tick == round(tick) for tick in rounds.get_xticks())


def test_the_target_is_marked_where_it_was_reached(row):
    history = [row(0, 0.0, accuracy=0.1), row(1, 600.0, accuracy=0.5), row(2, 1200.0, accuracy=0.7)]
    figure = plots.metrics(history, target=Target("accuracy", 0.5))
    texts = [axes.texts[0].get_text() for axes in figure.axes]
    assert texts == ["10 min", "1.5 kB", "1"]
    assert [axes.texts[0].xy for axes in figure.axes] == [(10, 0.5), (1.5, 0.5), (1, 0.5)]
    missed = plots.metrics(history, target=Target("accuracy", 0.9))
    assert all(not axes.texts for axes in missed.axes)


def test_rows_are_the_target_then_accuracies_then_losses_with_counterparts_together(row):
    values = {"train_loss": 1.0, "train_num_examples": 9.0, "loss": 1.0, "accuracy": 0.5, "f1": 0.2}
    values |= {"latest_accuracy": 0.4, "latest_loss": 1.0}  # beside those of an averaged model
    figure = plots.metrics([row(1, 1.0, **values)], target=Target("f1", 0.9))
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["f1", "accuracy", "loss"]
    assert list(lines(figure.axes[3])) == ["accuracy", "latest accuracy"]
    assert list(lines(figure.axes[6])) == ["loss", "train loss", "latest loss"]


def test_only_named_metrics_are_drawn_and_unknown_ones_refused(row):
    history = [row(1, 1.0, accuracy=0.5, loss=1.0)]
    assert len(plots.metrics(history, names=["loss"]).axes) == 3
    with pytest.raises(ConfigError, match=r"no evaluation has \['f1'\]"):
        plots.metrics(history, names=["loss", "f1"])
    with pytest.raises(ConfigError, match="no evaluation has any metric"):
        plots.metrics([row(1, 1.0)])


def test_a_diverged_metric_leaves_a_gap(tmp_path, row):
    values = [1.0, math.inf, math.nan, 2.0]
    history = [row(r, float(r), loss=value) for r, value in enumerate(values)]
    figure = plots.metrics(history, tmp_path / "m.png")
    drawn = np.array(lines(figure.axes[0])["loss"])[:, 1]
    assert np.isnan(drawn).tolist() == [False, True, True, False]


def test_shares_of_time_count_overlapping_stages_once(trace):
    _, ids, share = plots._activity(trace, EDGES)
    # client 1 downloads 0-2 and 6-7, computes 2-5 and 7-10, uploads 10-12 where not computing.
    # client 0 downloads 0-1 and 4-5, computes 1-3, uploads 3-4.
    assert ids.tolist() == [1, 0]
    np.testing.assert_allclose(12 * share, [[3, 2], [6, 2], [2, 1], [0, 0]])


def test_mean_numbers_of_active_tasks_integrate_to_the_time_spent(trace):
    counts, _, _ = plots._activity(trace, EDGES)
    total = (counts * np.diff(EDGES)).sum(axis=1)
    # download 1 + 1 + 2 + 1 + 1.5; compute 2 + 3 + 2 + 1; upload 1 + 3 + 2
    np.testing.assert_allclose(total, [6.5, 8.0, 6.0, 0.0])
    middle = (EDGES[:-1] + EDGES[1:]) / 2
    np.testing.assert_allclose(counts[2, (middle > 10.1) & (middle < 11.9)], 2.0)
    assert counts[:, (middle > 5.1) & (middle < 5.9)].max() == 0.0


def test_clients_are_drawn_as_bars_or_as_a_ranking(tmp_path, trace):
    figure = plots.clients(trace, tmp_path / "few.png")
    assert (tmp_path / "few.png").read_bytes().startswith(PNG)
    assert [t.get_text() for t in figure.axes[1].get_xticklabels()] == ["1", "0"]
    many = Trace()
    for client in range(3000):
        many.record(0.0, Event.COMPUTE_START, client, 0)
    for client in range(3000):
        many.record(1.0 + client, Event.COMPUTE_END, client, 0)
    figure = plots.clients(many, tmp_path / "many.png")
    assert (tmp_path / "many.png").read_bytes().startswith(PNG)
    assert figure.axes[1].get_xlabel() == "rank among the 3,000 clients that had a task"


def test_idle_time_is_left_out_where_the_axis_does_not_reach_all_of_it():
    trace = Trace()
    trace.record(0.0, Event.COMPUTE_START, 0, 0)
    trace.record(1.0, Event.COMPUTE_END, 0, 0)
    trace.record(100.0, Event.DISPATCH, 0, 1)
    per_client = plots.clients(trace).axes[-1]
    assert per_client.get_ylim()[1] == pytest.approx(1.25)
    assert per_client.get_legend_handles_labels()[1] == ["compute"]


def test_all_reduces_and_what_peers_send_are_drawn_beside_computing():
    # Two clients compute for 1 s of 10 and meet for 4 s; in the last second one sends 300 bytes.
    trace = Trace()
    for client in (0, 1):
        trace.record(0.0, Event.COMPUTE_START, client, 0)
    for client in (0, 1):
        trace.record(1.0, Event.COMPUTE_END, client, 0)
    for client in (0, 1):
        trace.record(5.0, Event.ALL_REDUCE, client, -1, size=7, value=4.0)
    trace.record(9.5, Event.TRANSFER, 1, -1, size=300, value=0.0)
    trace.record(10.0, Event.DISPATCH, 0, 1)
    figure = plots.clients(trace)
    over_time, between, per_client = figure.axes
    _, labels = per_client.get_legend_handles_labels()
    assert labels == ["compute", "all-reduce"]  # the axis ends below all of the time
    heights = [[bar.get_height() for bar in bars] for bars in per_client.containers]
    np.testing.assert_allclose(heights, [[0, 0], [10, 10], [0, 0], [40, 40]], atol=1e-9)
    assert over_time.get_ylim()[1] >= 2
    (steps,) = between.patches
    arrived, edges, _ = steps.get_data()
    assert arrived.sum() == 300
    assert edges[np.flatnonzero(arrived)[0]] == pytest.approx(9.5)
    assert "(B)" in between.get_ylabel()


def test_what_changes_is_drawn_before_what_does_not(row):
    rows = [row(r, float(r), a=1.0, b=2.0, c=3.0, d=4.0, e=float(r)) for r in range(3)]
    assert [axes.get_ylabel() for axes in plots.metrics(rows).axes[::3]] == ["e", "a", "b", "c"]


def test_where_nothing_changes_what_the_rounds_took_is_drawn(row):
    rows = [row(r, 60.0 * r, staleness=0.0) for r in range(1, 4)]
    panels = plots.metrics(rows).axes
    assert [axes.get_ylabel() for axes in panels] == ["rounds", "data moved (kB)", "energy (J)"]
    np.testing.assert_allclose(panels[0].lines[0].get_xydata(), [[1, 1], [2, 2], [3, 3]])
    assert len(plots.metrics(rows, names=["staleness"]).axes) == 3
    assert plots.metrics(rows, names=["staleness"]).axes[0].get_ylabel() == "staleness"


def test_a_trace_without_any_work_can_be_drawn(tmp_path):
    trace = Trace()
    trace.record(0.0, Event.DISPATCH, 0, 0)
    plots.clients(trace, tmp_path / "none.png")
    assert (tmp_path / "none.png").read_bytes().startswith(PNG)


def run_of(tmp_path, rows):
    return Run(tmp_path, {}, rows)


def test_the_band_is_that_of_student_t(tmp_path, row):
    values = (0.4, 0.5, 0.9)
    seeds = [run_of(tmp_path, [row(r, 10.0 * r, staleness=v) for r in (1, 2)]) for v in values]
    figure = plots.compare({"a": seeds}, "staleness", tmp_path / "c.png", axes=["round"])
    assert (tmp_path / "c.png").read_bytes().startswith(PNG)
    (axes,) = figure.axes
    # mean 0.6; s = sqrt((0.04 + 0.01 + 0.09) / 2); the 97.5 % point of t with 2 degrees of freedom
    # is 4.302653 (tables).
    half = 4.302653 * math.sqrt(0.07) / math.sqrt(3)
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[1, 0.6], [2, 0.6]])
    edges = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert edges.min() == pytest.approx(0.6 - half, rel=1e-6)
    assert edges.max() == pytest.approx(0.6 + half, rel=1e-6)


@pytest.mark.parametrize(("scale", "edges"), [(1, (0, 1)), (100, (-5.72, 125.72))])
def test_the_band_of_an_accuracy_ends_where_accuracies_do_unless_they_are_in_percent(
    tmp_path, row, scale, edges
):
    """The band above, 0.6 -+ 0.6572."""
    seeds = [
        run_of(tmp_path, [row(r, 10.0, test_accuracy=scale * v) for r in (1, 2)])
        for v in (0.4, 0.5, 0.9)
    ]
    figure = plots.compare({"a": seeds}, "test_accuracy", axes=["round"])
    drawn = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (drawn.min(), drawn.max()) == pytest.approx(edges, abs=0.01)


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0, -3.0])
def test_a_metric_that_stays_is_in_the_middle_of_its_axis(tmp_path, row, value):
    rows = [row(r, 10.0 * r, accuracy=value * (1 + 1e-15 * r)) for r in range(4)]
    figures = [
        plots.compare({"a": [run_of(tmp_path, rows)]}, "accuracy", axes=["round"]),
        plots.metrics(rows, names=["accuracy"]),
    ]
    for figure in figures:
        low, high = figure.axes[0].get_ylim()
        assert (low + high) / 2 == pytest.approx(value, abs=1e-9)
        assert high - low == pytest.approx(0.2 * (abs(value) or 1.0))


def test_the_band_of_two_seeds_is_from_one_to_the_other(tmp_path, row):
    seeds = [run_of(tmp_path, [row(r, 10.0, accuracy=v * r) for r in (1, 2)]) for v in (0.1, 0.3)]
    figure = plots.compare({"a": seeds}, "accuracy", axes=["round"])
    corners = {(x, round(y, 6)) for x, y in figure.axes[0].collections[0].get_paths()[0].vertices}
    assert corners == {(1, 0.1), (1, 0.3), (2, 0.2), (2, 0.6)}
    assert figure.legends[0].get_title().get_text() == "mean and range of two seeds"


def test_over_time_seeds_keep_the_value_of_their_last_evaluation(tmp_path, row):
    first = run_of(tmp_path, [row(r, t, accuracy=v) for r, t, v in ((0, 0.0, 0.0), (1, 20.0, 0.4))])
    second = run_of(
        tmp_path, [row(r, t, accuracy=v) for r, t, v in ((0, 0.0, 0.2), (1, 30.0, 0.6))]
    )
    figure = plots.compare({"a": [first, second]}, "accuracy", axes=["time_s"])
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xydata(), [[0, 0.1], [20, 0.3]])
    assert line.get_drawstyle() == "steps-post"
    single = plots.metrics(first.history).axes
    assert [axes.lines[0].get_drawstyle() for axes in single] == ["steps-post", *["default"] * 2]


@pytest.mark.parametrize(("longer", "scale"), [(20.0, "linear"), (21.0, "symlog")])
def test_an_axis_is_logarithmic_where_runs_differ_by_more_than_20_times(
    tmp_path, row, longer, scale
):
    short = run_of(tmp_path, [row(r, 10.0 * r, accuracy=0.1) for r in range(3)])
    long = run_of(tmp_path, [row(r, 10.0 * longer * r, accuracy=0.1) for r in range(3)])
    figure = plots.compare({"a": [short], "b": [long]}, "accuracy", tmp_path / "c.png")
    time, _, rounds = figure.axes
    assert (time.get_xscale(), rounds.get_xscale()) == (scale, "linear")
    assert ("logarithmic" in time.get_xlabel()) == (scale == "symlog")


def test_seeds_evaluated_at_different_energies_are_interpolated_where_all_have_values(
    tmp_path, row
):
    # Straight lines accuracy = t / 100 and t / 50: at every t the mean is 1.5 t / 100.
    first = run_of(tmp_path, [energetic(row, t, t / 100) for t in (0.0, 20.0, 40.0)])
    second = run_of(tmp_path, [energetic(row, t, t / 50) for t in (5.0, 25.0, 30.0)])
    figure = plots.compare({"a": [first, second]}, "accuracy", axes=["energy_j"])
    points = figure.axes[0].lines[0].get_xydata()
    assert points[:, 0].tolist() == [5.0, 20.0, 25.0, 30.0]
    np.testing.assert_allclose(points[:, 1], 1.5 * points[:, 0] / 100)


def energetic(row, joules, accuracy):
    return {**row(1, 1.0, accuracy=accuracy), "energy_j": joules}


def test_methods_are_named_with_their_number_of_seeds(tmp_path, row):
    run = run_of(tmp_path, [row(1, 1.0, accuracy=0.5), row(2, 2.0, accuracy=0.7)])
    figure = plots.compare({"one": [run], "two": [run, run]}, "accuracy")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["one (1 seed)", "two (2 seeds)"]


def test_bad_comparisons_are_refused(tmp_path, row):
    run = run_of(tmp_path, [row(1, 1.0, accuracy=0.5)])
    late = run_of(tmp_path, [row(1, 99.0, accuracy=0.5)])
    with pytest.raises(ConfigError, match="axes are"):
        plots.compare({"a": [run]}, "accuracy", axes=["seconds"])
    with pytest.raises(ConfigError, match="confidence is 95"):
        plots.compare({"a": [run]}, "accuracy", confidence=95)
    with pytest.raises(ConfigError, match="at least one run"):
        plots.compare({}, "accuracy")
    with pytest.raises(ConfigError, match="no finite value of 'loss'"):
        plots.compare({"a": [run]}, "loss")
    with pytest.raises(ConfigError, match="share no stretch"):
        plots.compare({"a": [run, late]}, "accuracy", axes=["time_s"])


def test_drawing_leaves_matplotlib_as_it_was(tmp_path, row):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.metrics([row(1, 1.0, accuracy=0.5)], tmp_path / "m.png")
    assert dict(matplotlib.rcParams) == before


def test_the_histogram_of_clients_has_each_of_them_once_for_each_model():
    accuracies = {"global": [0.02, 0.51, 0.52, 0.53], "personal": [0.97, 0.98, 0.99, 1.0]}
    rows = [
        ClientRow(i, 10, {name: (0.5, of[i]) for name, of in accuracies.items()}) for i in range(4)
    ]
    figure = plots.personal(rows)
    (axes,) = figure.axes
    for patch, highest in zip(axes.patches, (3, 4), strict=True):
        assert patch.get_xy()[:, 1].max() == highest
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["global (mean 0.395)", "personal (mean 0.985)"]
