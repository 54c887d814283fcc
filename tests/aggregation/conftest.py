import pytest
from aggregation_members import AGGREGATORS, PRE_AGGREGATIONS, member


def pytest_generate_tests(metafunc):
    """Every rule with a configuration takes every test that asks for one."""
    if "aggregator_name" in metafunc.fixturenames:
        metafunc.parametrize("aggregator_name", AGGREGATORS)
    if "pre_aggregation_name" in metafunc.fixturenames:
        metafunc.parametrize("pre_aggregation_name", PRE_AGGREGATIONS)


@pytest.fixture
def aggregator(aggregator_name):
    return member("aggregator", aggregator_name)


@pytest.fixture
def pre_aggregation(pre_aggregation_name):
    return member("preaggregation", pre_aggregation_name)
