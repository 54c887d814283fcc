import math

import pytest

from fl.reports import units


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (2.5e-5, "25 µs"),
        (0.35, "350 ms"),
        (0.9996, "1.0 s"),
        (12.34, "12.3 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (3599.6, "1 h"),
        (2 * 3600 + 13 * 60, "2 h 13 min"),
        (86400 - 1, "1 d"),
        (3 * 86400 + 4 * 3600, "3 d 4 h"),
        (400 * 86400, "400 d"),
        (-125, "-2 min 5 s"),
        (None, units.MISSING),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_951, "1.0 MB"),
        (1_234_000_000, "1.2 GB"),
        (5e18, "5.0 EB"),
        (5e21, "5000.0 EB"),
        (None, units.MISSING),
    ],
)
def test_sizes_use_decimal_prefixes(num_bytes, text):
    assert units.size(num_bytes) == text


@pytest.mark.parametrize(
    ("joules", "text"),
    [(0, "0.0 J"), (0.012, "12.0 mJ"), (1e-5, "1e-05 J"), (3.2, "3.2 J"), (35_149, "35.1 kJ")],
)
def test_energies(joules, text):
    assert units.energy(joules) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (950, "950"), (12_345, "12,345"), (1_234_567, "1.2 M"), (None, units.MISSING)],
)
def test_counts(number, text):
    assert units.count(number) == text


@pytest.mark.parametrize(
    ("per_second", "text"),
    [
        (0.417, "0.42/s"),
        (0.996, "1.0/s"),
        (87.46, "87.5/s"),
        (99.96, "100/s"),
        (12_345.4, "12,345/s"),
    ],
)
def test_rates(per_second, text):
    assert units.rate(per_second) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.91321, "0.9132"), (1e-5, "1e-05"), (7, "7"), (math.nan, "nan")]
)
def test_metrics_have_four_digits(value, text):
    assert units.metric(value) == text


@pytest.mark.parametrize(
    ("largest", "symbol", "shown"),
    [
        (0.0, "s", 0.0),
        (0.5e-3, "µs", 500.0),
        (0.25, "ms", 250.0),
        (120, "s", 120.0),
        (600, "min", 10.0),
        (36_000, "h", 10.0),
        (864_000, "d", 10.0),
    ],
)
def test_the_time_axis_gets_a_unit_with_readable_numbers(largest, symbol, shown):
    unit = units.time_unit(largest)
    assert unit.symbol == symbol
    assert largest / unit.divisor == pytest.approx(shown)


def test_byte_and_energy_axes():
    assert units.byte_unit(999) == (1.0, "B")
    assert units.byte_unit(2.5e9) == (1e9, "GB")
    assert units.energy_unit(35_000) == (1e3, "kJ")
