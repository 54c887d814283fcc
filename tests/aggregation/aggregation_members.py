"""Every rule and pre-aggregation there is a configuration for, and data to try them on."""

from functools import cache
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf

import fl
from fl.aggregation import Aggregator
from fl.errors import ConfigError

CONF = Path(fl.__file__).parent / "conf"
MEMBERS = sorted(path.stem for path in (CONF / "aggregator").glob("*.yaml"))
WRITTEN = {  # on the command line, from members
    "arc_nnm_geometric_median": "aggregator=geometric_median preaggregation=[arc,nnm]",
    "arc_nnm_trimmed_mean": "aggregator=trimmed_mean preaggregation=[arc,nnm]",
    "bucketing_centered_clipping": "aggregator=centered_clipping aggregator.tau=10 "
    "aggregator.iterations=3 preaggregation=bucketing",
    "bucketing_geometric_median": "aggregator=geometric_median preaggregation=bucketing",
    "bucketing_krum": "aggregator=krum preaggregation=bucketing",
    "bucketing_median": "aggregator=median preaggregation=bucketing",
    "clipping_trimmed_mean": "aggregator=trimmed_mean preaggregation=clipping",
    "flag_repo": "aggregator=flag aggregator.form=repo aggregator.iterations=1",
    "nnm_krum_of_parts": "aggregator=krum preaggregation=nnm",
    "nnm_geometric_median": "aggregator=geometric_median preaggregation=nnm",
    "nnm_median": "aggregator=median preaggregation=nnm",
    "resampling_trimmed_mean": "aggregator=trimmed_mean preaggregation=resampling",
}
AGGREGATORS = sorted([*MEMBERS, *WRITTEN])
PRE_AGGREGATIONS = sorted(path.stem for path in (CONF / "preaggregation").glob("*.yaml"))

# The fixture F5 of the method reference: x5 is an outlier.
F5 = np.array([[1.0, 2.0], [2.0, 1.0], [3.0, 3.5], [2.5, 4.0], [10.0, -8.0]])
MU = F5[:4].mean(axis=0)


@cache
def configuration(group, name):
    with initialize_config_module("fl.conf", version_base=None):
        if name in WRITTEN:
            made = compose("config", WRITTEN[name].split()).strategy.aggregator
            return OmegaConf.to_container(made, resolve=True)
        made = OmegaConf.to_container(compose(f"{group}/{name}")[group])
        return made[name] if group == "preaggregation" else made


@cache
def member(group, name):
    """The rule; rules are frozen, so all tests share it."""
    return instantiate(configuration(group, name))


FOLDING = [name for name in AGGREGATORS if member("aggregator", name).fold(3) is not None]


def tolerant(rule, n, most=2):
    """The rule with the largest f up to `most` that it accepts n vectors with."""
    x = np.random.default_rng(0).standard_normal((n, 3))
    for f in range(most, -1, -1):
        try:
            call(rule.tolerating(f), x)
        except ConfigError:
            continue
        return rule.tolerating(f)
    raise AssertionError(f"{rule} accepts no f for n={n}")


def reference_of(rule, x):
    """What the rule wants as reference: a vector that is no row, or the first row as one's own."""
    if rule.reference == "unused":
        return None
    if rule.reference == "own-vector":
        return x[0].copy()
    return np.linspace(0.5, 1.5, x.shape[1]).astype(x.dtype)


def call(rule: Aggregator, x, reference=None, seed=0, weights=None):
    if reference is None:
        reference = reference_of(rule, x)
    return rule(x, weights=weights, rng=np.random.default_rng(seed), reference=reference)


def gaussian(seed, n=11, d=7):
    """Vectors without ties, about a mean that is not zero."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) + rng.standard_normal(d)


def with_outliers(seed, f, n=11, d=7, distance=50.0):
    """n - f vectors about a mean, and f elsewhere, in random places."""
    rng = np.random.default_rng(seed)
    x = gaussian(seed, n, d)
    x[:f] += distance * rng.standard_normal((f, d))
    return x[rng.permutation(n)]
