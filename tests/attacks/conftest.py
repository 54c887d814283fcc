import numpy as np
import pytest
from attack_members import ATTACKS, configuration
from hydra.utils import instantiate


def pytest_generate_tests(metafunc):
    """Every attack with a configuration takes every test that asks for one."""
    if "attack_name" in metafunc.fixturenames:
        metafunc.parametrize("attack_name", ATTACKS)


@pytest.fixture
def attack_configuration(attack_name):
    return configuration(attack_name)


@pytest.fixture
def attack(attack_name):
    return instantiate(configuration(attack_name))


@pytest.fixture
def honest():
    """The honest vectors of fixture F5 of the method reference."""
    return np.array([[1.0, 2.0], [2.0, 1.0], [3.0, 3.5], [2.5, 4.0]])
