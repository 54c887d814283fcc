"""Laws of paces: their moments, bounds and shapes."""

import numpy as np
import pytest

from fl.errors import ConfigError
from fl.simulation.world.fleets import uniform
from fl.simulation.world.paces import Classes, Equal, Exponential, Linear, Normal

N = 20_000


def test_normal_paces_have_the_given_mean_and_deviation():
    paces = Normal(mean=2.0, sigma=0.3)(0, N)
    assert paces.mean() == pytest.approx(2.0, abs=4 * 0.3 / N**0.5)
    assert paces.std() == pytest.approx(0.3, rel=0.03)


def test_exponential_paces_have_the_given_mean_and_quantiles():
    paces = Exponential(mean=3.0, least=1e-9)(0, N)
    assert paces.mean() == pytest.approx(3.0, rel=0.03)
    assert np.quantile(paces, 0.9) == pytest.approx(-3.0 * np.log(0.1), rel=0.04)


@pytest.mark.parametrize("law", [Normal(1.0, 2.0, 0.25), Exponential(1.0, 0.25)])
def test_paces_are_raised_to_the_least(law):
    paces = law(0, N)
    assert paces.min() == 0.25
    assert (paces > 0.25).any()


def test_classes_come_with_their_shares():
    paces = Classes([1.3, 1.0, 0.7], [1, 2, 1])(0, N)
    for pace, share in ((1.3, 0.25), (1.0, 0.5), (0.7, 0.25)):
        assert np.mean(paces == pace) == pytest.approx(share, abs=0.02)


def test_linear_paces_are_those_of_scenario_f_80():
    assert Linear(0.8)(0, 5) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert Linear(0.8)(0, 1) == pytest.approx([1.0])


def test_a_client_of_pace_p_takes_p_times_as_long():
    fleet = uniform(3, 0, flops=10.0, paces=Linear(0.5))
    seconds = [fleet.compute_seconds(client, 0, 40.0) for client in range(3)]
    assert seconds == pytest.approx([4.0, 3.0, 2.0])


@pytest.mark.parametrize("law", [Normal(), Exponential(), Classes(), Equal()])
def test_a_pace_depends_on_seed_and_client_only(law):
    assert law(3, 7).tolist() == law(3, 1000)[:7].tolist()
    assert isinstance(law, Equal) or law(3, 7).tolist() != law(4, 7).tolist()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Normal(mean=0.0), "paces.mean is 0.0"),
        (lambda: Normal(sigma=-1.0), "paces.sigma is -1.0"),
        (lambda: Exponential(least=0.0), "paces.least is 0.0"),
        (lambda: Classes([1.0], [1, 2]), "1 entries and paces.shares 2"),
        (lambda: Classes([1.0, -2.0], [1, 2]), "paces.paces is -2.0"),
        (lambda: Classes([1.0, 2.0], [0, 0]), "not all 0"),
        (lambda: Linear(1.0), "paces.spread is 1.0"),
    ],
)
def test_impossible_paces_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
