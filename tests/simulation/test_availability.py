"""Availability: pure functions of (client, time), their statistics, and published trace formats."""

import collections
import json
import math
import pickle

import numpy as np
import pytest
from scipy import stats

from fl.errors import ConfigError
from fl.simulation.world.availability import Always, Diurnal, ExponentialOnOff, TraceAvailability
from fl.simulation.world.measurements import Behaviour, load_plain, read_behaviour
from fl.simulation.world.slots import Bernoulli, Cyclic, Markov
from fl.simulation.world.volunteers import WeibullSessions

DAY = 86400.0
RECORDS = [
    Behaviour(((3.0, 5.0), (8.0, 9.5)), 10.0),
    Behaviour(((0.0, 2.0), (7.0, 10.0)), 10.0),  # on across the end of the period
    Behaviour(((4.0, 10.0),), 10.0),  # on until the end, off at the beginning
    Behaviour(((0.0, 1.0), (1.0, 2.5), (2.0, 3.0)), 7.0),  # touching and overlapping
    Behaviour(((0.0, 10.0),), 10.0),  # always on
    Behaviour((), 10.0),  # never on
    Behaviour(((0.1, 0.25),), 0.3),  # a period that is not a sum of powers of two
]


def exponential(n=200, seed=1):
    return ExponentialOnOff(n, seed, mean_on_s=30.0, mean_off_s=70.0)


def diurnal(n=200, seed=1):
    return Diurnal(n, seed, low=0.1, high=0.4, period_s=100.0, peak_s=30.0)


def recorded(n=200):
    return TraceAvailability(n, RECORDS)


def always(n=200):
    return Always(n)


SLOT_S = 2.7  # no sum of powers of two


def rates(n=200):
    return (7 * np.arange(n) % 50 + 1) / 50  # from FedAU's least rate to clients that never leave


def bernoulli(n=200, seed=1):
    return Bernoulli(n, seed, rates(n), slot_s=SLOT_S)


def markov(n=200, seed=1):
    return Markov(n, seed, rates(n), activation=0.3, slot_s=SLOT_S)


def cyclic(n=200, seed=1):
    return Cyclic(n, seed, rates(n), period=40, slot_s=SLOT_S)


def weibull(n=200, seed=1):
    return WeibullSessions(n, seed, mean_on_s=90.0, mean_off_s=210.0, shape=0.5)


MODELS = [always, weibull, exponential, diurnal, recorded, bernoulli, markov, cyclic]
SLOTS = [bernoulli, markov, cyclic]


# ---- what holds for every model ------------------------------------------------------------------


@pytest.mark.parametrize("make", MODELS)
def test_online_agrees_with_is_online_for_every_client(make):
    whole, single = make(), make()
    for t in (0.0, 0.3, 1.0, 9.999999, 10.0, 33.3, 500.0, 499.0, 7.0, 1e5):
        online = whole.online(t)
        assert online.shape == (200,)
        assert online.dtype == np.bool_
        assert online.tolist() == [single.is_online(client, t) for client in range(200)]


@pytest.mark.parametrize("make", MODELS)
def test_answers_do_not_depend_on_the_order_of_questions(make):
    rng = np.random.default_rng(0)
    questions = [
        (int(c), float(t))
        for c, t in zip(rng.integers(0, 200, 300), rng.uniform(0, 2000, 300), strict=True)
    ]
    model = make()
    answers = {q: (model.is_online(*q), model.next_change(*q)) for q in questions}
    model.online(5000.0)
    for q in sorted(questions, key=lambda q: -q[1]):
        fresh = make()
        assert (model.is_online(*q), model.next_change(*q)) == answers[q]
        assert (fresh.is_online(*q), fresh.next_change(*q)) == answers[q]


@pytest.mark.parametrize("make", MODELS)
def test_next_change_is_the_first_change_on_a_fine_grid(make):
    model = make()
    for client in range(14):
        t, horizon = 0.0, 60.0
        while True:
            state, change = model.is_online(client, t), model.next_change(client, t)
            assert change > t
            grid = np.linspace(t, min(change, horizon), 200, endpoint=False)
            assert all(model.is_online(client, float(x)) == state for x in grid)
            if change > horizon:
                break
            assert model.is_online(client, change) != state  # at that very time
            assert model.is_online(client, math.nextafter(change, 0)) == state
            t = change


@pytest.mark.parametrize("make", MODELS)
def test_walking_from_change_to_change_never_stalls_at_large_times(make):
    model = make()
    # Periods of random lengths have to be drawn one after another, so that far is not as far.
    start = 2e4 if make in (exponential, markov, weibull) else 1e7
    for client in range(7):
        t = start + client / 7
        state = model.is_online(client, t)
        for _ in range(20):
            change = model.next_change(client, t)
            assert change > t
            if change == math.inf:
                break
            assert model.is_online(client, change) != state
            assert model.online(change)[client] != state
            t, state = change, not state


@pytest.mark.parametrize("make", MODELS)
def test_a_client_does_not_change_when_others_are_added(make):
    few, many = make(n=20), make(n=500)
    for t in (0.0, 12.0, 777.0):
        assert few.online(t).tolist() == many.online(t)[:20].tolist()


@pytest.mark.parametrize(
    "make",
    [
        lambda n: Always(n),
        lambda n: ExponentialOnOff(n, 0, 1.0, 1.0),
        lambda n: Diurnal(n, 0),
        lambda n: TraceAvailability(n, RECORDS),
    ],
)
def test_a_model_without_clients_is_refused(make):
    with pytest.raises(ConfigError, match="num_clients is 0"):
        make(0)


# ---- exponential ---------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.0, 11.0, 400.0])
def test_on_off_clients_are_stationary(t):
    n, share = 20_000, 0.3
    online = exponential(n).online(t).mean()
    assert online == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n))


@pytest.mark.parametrize("t", [0.0, 250.0])
def test_what_is_left_of_a_period_is_exponential_at_any_time(t):
    model = exponential(4000)
    online = model.online(t)
    left = np.array([model.next_change(client, t) - t for client in range(4000)])
    assert stats.kstest(left[online], stats.expon(scale=30.0).cdf).pvalue > 0.01
    assert stats.kstest(left[~online], stats.expon(scale=70.0).cdf).pvalue > 0.01


def test_lengths_of_consecutive_periods_are_independent():
    model, ratios = exponential(2000), []
    for client in range(2000):
        first = model.next_change(client, 0.0)
        second = model.next_change(client, first)
        ratios.append((first, second - first))
    first, second = np.array(ratios).T
    on = model.online(0.0)
    assert abs(stats.spearmanr(first[on], second[on]).statistic) < 4 / math.sqrt(on.sum())


@pytest.mark.parametrize("mean", [0.0, -1.0, math.inf, math.nan])
def test_a_mean_period_out_of_range_is_refused(mean):
    with pytest.raises(ConfigError, match="mean_on_s is"):
        ExponentialOnOff(3, 0, mean, 1.0)
    with pytest.raises(ConfigError, match="mean_off_s is"):
        ExponentialOnOff(3, 0, 1.0, mean)


def test_periods_that_together_are_shorter_than_any_message_are_refused():
    ExponentialOnOff(3, 0, 0.05, 0.05)
    with pytest.raises(ConfigError, match=r"mean_on_s is 0\.01 and mean_off_s 0\.02; together"):
        ExponentialOnOff(3, 0, 0.01, 0.02)


def test_a_leap_over_many_periods_ends_where_single_ones_lead(monkeypatch):
    leaping, single = (ExponentialOnOff(5, 3, 0.5, 0.3) for _ in range(2))
    draws, lengths = [], ExponentialOnOff._lengths

    def counted(self, clients, period):
        draws.append(len(period))
        return lengths(self, clients, period)

    monkeypatch.setattr(ExponentialOnOff, "_lengths", counted)
    online = leaping.online(500.0)
    assert len(draws) < 20  # of some 1,250 periods of each client
    for i in range(5):
        t, on = 0.0, single.is_online(i, 0.0)
        while (change := single.next_change(i, t)) <= 500.0:
            t, on = change, not on
        assert (online[i], leaping.next_change(i, 500.0)) == (on, change)


# ---- diurnal -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0.05, 0.25), (0.3, 0.3), (0.2, 0.8)])
def test_the_fraction_online_is_a_sine_of_the_time_of_day(low, high):
    n = 40_000
    model = Diurnal(n, 7, low, high, period_s=DAY, peak_s=3 * 3600.0)
    for hour in range(0, 48, 3):
        expected = (low + high) / 2 + (high - low) / 2 * math.cos(2 * math.pi * (hour - 3) / 24)
        tolerance = 4 * math.sqrt(expected * (1 - expected) / n)
        assert model.online(hour * 3600.0).mean() == pytest.approx(expected, abs=tolerance)


def test_every_client_has_one_window_a_day_of_equal_length():
    model = Diurnal(50, 0, low=0.1, high=0.2)
    for client in range(50):
        t = model.next_change(client, 0.0)
        if not model.is_online(client, t):
            t = model.next_change(client, t)
        off = model.next_change(client, t)
        assert off - t == pytest.approx(0.15 * DAY)
        assert model.next_change(client, off) - t == pytest.approx(DAY)


@pytest.mark.parametrize("period", [0.1, 100 / 3, DAY])
def test_a_window_opens_and_closes_at_the_very_times_announced(period):
    model = Diurnal(300, 1, low=0.1, high=0.4, period_s=period)
    for client in range(300):
        t = (123_456 + 997 * client) * period
        for _ in range(6):
            t = model.next_change(client, t)
            state = model.is_online(client, t)
            assert model.is_online(client, math.nextafter(t, 0)) != state
            assert model.online(t)[client] == state
            assert model.online(math.nextafter(t, 0))[client] != state


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 0.0, "high": 0.5}, r"low is 0\.0"),
        ({"low": 0.5, "high": 0.2}, r"0 < low <= high < 1"),
        ({"low": 0.5, "high": 1.0}, r"high is 1\.0"),
        ({"low": math.nan, "high": 0.5}, "low is nan"),
        ({"low": 0.05, "high": 0.95}, "too far apart"),
        ({"period_s": 0.0}, r"period_s is 0\.0"),
        ({"peak_s": math.inf}, "peak_s is inf"),
    ],
)
def test_a_daily_rhythm_out_of_range_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Diurnal(3, 0, **arguments)


def test_the_range_proposed_instead_is_accepted():
    with pytest.raises(ConfigError, match=r"Raise low to (\S+) and lower high to (\S+),") as error:
        Diurnal(3, 0, low=0.05, high=0.95)
    words = str(error.value).split()
    low, high = float(words[words.index("to") + 1]), float(words[-4].rstrip(","))
    Diurnal(3, 0, low=low + 1e-3, high=high - 1e-3)


# ---- traces --------------------------------------------------------------------------------------

FEDSCALE = {
    1: {
        "duration": 100,
        "inactive": [20, 70],
        "finish_time": 100,
        "active": [10, 50],
        "model": "a",
    },
    2: {"duration": 40, "inactive": [90], "finish_time": 50, "active": [30], "model": "b"},
}


def test_fedscale_time_is_taken_modulo_the_finish_time(tmp_path):
    path = tmp_path / "client_behave_trace"
    path.write_bytes(pickle.dumps(FEDSCALE))
    model = TraceAvailability.from_file(4, str(path))

    def reference(client, t):
        entry = FEDSCALE[client % 2 + 1]
        now = t % entry["finish_time"]
        return any(a <= now < b for a, b in zip(entry["active"], entry["inactive"], strict=True))

    for t in np.arange(0.0, 400.0, 0.5):
        expected = [reference(client, t) for client in range(4)]
        assert model.online(t).tolist() == expected
        assert [model.is_online(client, t) for client in range(4)] == expected
    assert model.next_change(0, 25.0) == 50.0
    assert model.next_change(0, 70.0) == 110.0
    assert model.next_change(1, 40.0) == 50.0  # cut off at the finish time
    assert model.next_change(1, 50.0) == 80.0


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_behaviour_file_may_be_json_or_a_plain_pickle(tmp_path, protocol):
    plain, text = tmp_path / "behave", tmp_path / "behave.json"
    plain.write_bytes(pickle.dumps(FEDSCALE, protocol=protocol))
    text.write_text("\n " + json.dumps(FEDSCALE))
    assert (
        read_behaviour(plain)
        == read_behaviour(text)
        == [
            Behaviour(((10.0, 20.0), (50.0, 70.0)), 100.0),
            Behaviour(((30.0, 50.0),), 50.0),
        ]
    )


class Exploit:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the pickle ran')",))


@pytest.mark.parametrize(
    "payload",
    [
        Exploit(),
        {1: {"active": Exploit()}},
        {1: collections.OrderedDict(active=[1])},
        {1: np.float64(1.0)},
        {1: len},
    ],
)
def test_a_pickle_that_asks_for_anything_but_plain_data_is_refused(tmp_path, payload):
    path = tmp_path / "behave"
    path.write_bytes(pickle.dumps(payload))
    with pytest.raises(ConfigError, match="Only pickles of plain dicts"):
        load_plain(path)


def test_plain_containers_of_a_pickle_are_loaded(tmp_path):
    content = {"a": [1, 2.5, None, True, (b"x", "y")], 2: {3, 4}, 3: frozenset({5})}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / f"plain{protocol}"
        content_here = content if protocol >= 3 else {"a": [1, 2.5, None, True, "y"], 2: {3, 4}}
        path.write_bytes(pickle.dumps(content_here, protocol=protocol))
        assert load_plain(path) == content_here


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"\x80\x04}", b"garbage", b"{not json", pickle.dumps(FEDSCALE)[:-20]]
)
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "behave"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="behave"):
        read_behaviour(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="FL_DATA_DIR"):
        read_behaviour(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"active": [1, 2]}, "2 active and 1 inactive"),
        ({"active": [30]}, "0 <= active <= inactive"),
        ({"active": ["x"]}, "active 'x'"),
        ({"finish_time": 0}, "finish_time 0"),
        ({"finish_time": math.nan}, "finish_time nan"),
        ({"inactive": None}, "inactive"),
    ],
)
def test_a_behaviour_entry_that_cannot_be_is_refused(tmp_path, change, message):
    entry = {"active": [10], "inactive": [20], "finish_time": 100, **change}
    path = tmp_path / "behave"
    path.write_bytes(pickle.dumps({"d7": {k: v for k, v in entry.items() if v is not None}}))
    with pytest.raises(ConfigError, match=message) as error:
        read_behaviour(path)
    assert "'d7'" in str(error.value)


def test_flash_phones_are_online_while_locked_charging_and_on_wifi(tmp_path):
    lines = [
        ("00:00:00", "battery_charged_on"),
        ("00:00:10", "screen_lock"),
        ("00:00:30", "Wifi"),  # from here
        ("00:00:40", "87%"),
        ("00:01:00", "4g"),  # to here
        ("00:01:10", "wifi"),  # and from here
        ("00:01:15", "screen_on"),
        ("00:01:20", "screen_unlock"),  # to here
        ("00:02:00", "screen_lock"),  # from here to the end
        ("00:03:20", "screen_off"),
    ]
    messages = "\n".join(f"2020-02-03 {time}\t{state}" for time, state in lines)
    path = tmp_path / "state_traces.json"
    path.write_text(json.dumps({"u1": {"guid": "u1", "model": "x", "messages": messages}}))
    assert read_behaviour(path) == [Behaviour(((30.0, 60.0), (70.0, 80.0), (120.0, 200.0)), 200.0)]


@pytest.mark.parametrize("state", ["2g", "3g", "4g", "5g", "unknown", "screen_unlock"])
def test_flash_phones_go_offline_when_they_leave_wifi_or_are_unlocked(tmp_path, state):
    changes = ("battery_charged_on", "screen_lock", "wifi", state, "55%")
    messages = "\n".join(f"2020-02-03 00:00:0{i}\t{name}" for i, name in enumerate(changes))
    path = tmp_path / "state_traces.json"
    path.write_text(json.dumps({"u1": {"messages": messages}}))
    assert read_behaviour(path) == [Behaviour(((2.0, 3.0),), 4.0)]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("2020-02-03 00:00:00\tflying", "unknown state 'flying'"),
        ("yesterday\twifi", "no time"),
        ("2020-02-03 00:00:00\twifi", "span no time"),
        ("", "span no time"),
    ],
)
def test_flash_messages_that_cannot_be_read_are_refused(tmp_path, messages, message):
    path = tmp_path / "state_traces.json"
    path.write_text(json.dumps({"u1": {"messages": messages}}))
    with pytest.raises(ConfigError, match=message):
        read_behaviour(path)


@pytest.mark.parametrize(
    ("intervals", "period"), [(((1.0, 2.0),), 0.0), (((2.0, 1.0),), 5.0), (((1.0, 6.0),), 5.0)]
)
def test_a_record_whose_intervals_leave_its_period_is_refused(intervals, period):
    with pytest.raises(ConfigError, match="behaviour record"):
        Behaviour(intervals, period)


def test_a_trace_without_records_is_refused():
    with pytest.raises(ConfigError, match="no record"):
        TraceAvailability(3, [])


# ---- slots, as in FedAU (arXiv:2306.03401) -------------------------------------------------------


@pytest.mark.parametrize("make", SLOTS)
def test_clients_are_online_in_the_share_of_slots_that_is_their_rate(make):
    n, slots = 60, 4000
    model, p = make(n), rates(n)
    seen = np.mean([model.online(k * SLOT_S) for k in range(slots)], axis=0)
    if make is cyclic:
        np.testing.assert_allclose(seen, np.maximum(1, np.round(40 * p)) / 40, atol=1e-9)
        return
    # Slots of the chain are correlated: (1 + lambda) / (1 - lambda) times the variance of
    # independent ones, lambda = 1 - activation - deactivation, both divided by the latter above 1.
    going = 0.3 * (1 / p - 1)
    scale = np.maximum(going, 1.0)
    chain = 1 - (0.3 + going) / scale if make is markov else np.zeros(n)
    error = np.sqrt(p * (1 - p) / slots * (1 + chain) / (1 - chain))
    assert (np.abs(seen - p) <= 4.5 * error + 1e-9).all()


@pytest.mark.parametrize("make", SLOTS)
def test_states_change_at_the_beginning_of_slots_only(make):
    model = make(50)
    for client in range(50):
        t = model.next_change(client, 0.0)
        for _ in range(5):
            if math.isinf(t):
                break
            assert t / SLOT_S == pytest.approx(round(t / SLOT_S))
            t = model.next_change(client, t)


def test_a_chain_stays_and_leaves_with_its_probabilities():
    p, a, slots = 0.2, 0.1, 20_000
    model = Markov(1, 3, p, activation=a)
    states = np.array([model.is_online(0, float(k)) for k in range(slots)])
    before, after = states[:-1], states[1:]
    for was, leaves in ((False, a), (True, a * (1 / p - 1))):
        chosen = after[before == was] != was
        error = math.sqrt(leaves * (1 - leaves) / len(chosen))
        assert chosen.mean() == pytest.approx(leaves, abs=4 * error)


def test_independent_slots_are_independent():
    model = Bernoulli(1, 3, 0.3)
    states = np.array([model.is_online(0, float(k)) for k in range(20_000)])
    both = (states[:-1] & states[1:]).mean()
    assert both == pytest.approx(0.09, abs=4 * math.sqrt(0.09 * 0.91 / 20_000) * 1.5)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Bernoulli(3, 0, [0.1, 0.2]), "rates"),
        (lambda: Bernoulli(3, 0, 0.0), "rates"),
        (lambda: Bernoulli(3, 0, 1.1), "rates"),
        (lambda: Cyclic(3, 0, 0.1, period=0), "period is 0"),
        (lambda: Markov(3, 0, 0.1, activation=0.0), "activation is 0"),
        (lambda: Markov(3, 0, 0.1, slot_s=0.0), "slot_s is 0"),
    ],
)
def test_slots_that_cannot_be_are_refused(make, key):
    with pytest.raises(ConfigError, match=key):
        make()
