import numpy as np
import pytest

from fl.errors import ConfigError
from fl.selection import ByCharge, Opening

CHARGE = np.array([0.27, 0.8, 0.0, 0.87])


def drawn(alpha, count, seed=0):
    rng = np.random.default_rng(seed)
    opening = Opening(1, [0, 1, 2, 3], [], count, lambda key: rng, lambda clients: CHARGE[clients])
    choice, _ = ByCharge(alpha).select(None, opening)
    return list(choice.clients)


@pytest.mark.parametrize("alpha", [2000, 20_000, 1e6])
def test_the_fullest_are_chosen_where_powers_of_charges_are_no_numbers_any_more(alpha):
    assert drawn(alpha, 3) == [3, 1, 0]


def test_the_first_is_drawn_in_proportion_to_the_power_of_its_charge():
    first = [drawn(2.0, 1, seed)[0] for seed in range(4000)]
    share = np.bincount(first, minlength=4) / len(first)
    law = CHARGE**2 / (CHARGE**2).sum()
    assert share == pytest.approx(law, abs=4 * np.sqrt(0.25 / len(first)))


def test_an_alpha_without_a_meaning_is_refused():
    with pytest.raises(ConfigError, match="alpha is 1e\\+308; it must be at most 1e\\+06"):
        ByCharge(1e308)
