import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from fl.data import Examples, Partitions, Source, Split, load_quadratic_game, partition
from fl.errors import ConfigError
from fl.randomness import torch_seed

RULES: dict[str, Callable[..., Split]] = {
    "iid": partition.iid,
    "dirichlet": partition.dirichlet,
    "pathological": partition.pathological,
    "shard": partition.shard,
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def counts(source: Source, split: Split) -> np.ndarray:
    """Examples of each class in each partition, (P, 10)."""
    y = source.train.y
    return np.array([np.bincount(y[rows], minlength=10) for rows in map_rows(split.train)])


def map_rows(partitions: Partitions) -> list[np.ndarray]:
    return [partitions[p] for p in range(len(partitions))]


@pytest.fixture
def text_source() -> Source:
    examples = Examples(np.zeros((40, 5), np.uint8), np.zeros((40, 5), np.int64))
    return Source(
        name="toy-text",
        train=examples,
        test=examples,
        num_classes=3,
        input_shape=(5,),
        task="next-token",
        natural=Partitions.contiguous([10, 20, 4, 6]),
        natural_test=Partitions.contiguous([1, 30, 5, 4]),
    )


@every_rule
def test_partitions_are_disjoint_and_cover_all_examples(rule, sorted_source):
    split = rule(sorted_source, num_partitions=20, seed=3)
    assert len(split.train) == 20
    assert sorted(split.train.indices.tolist()) == list(range(1000))
    assert split.test is None


@every_rule
@pytest.mark.parametrize("held_out", [0.001, 0.25, 0.999])
def test_held_out_examples_are_the_clients_own_and_nobody_trains_on_them(
    rule, sorted_source, held_out
):
    whole = rule(sorted_source, num_partitions=20, seed=3)
    split = rule(sorted_source, num_partitions=20, seed=3, held_out=held_out)
    assert split.test_in_train
    for own, train, test in zip(
        *map(map_rows, (whole.train, split.train, split.test)), strict=True
    ):
        assert sorted([*train, *test]) == sorted(own)
        assert [row for row in own if row not in test] == list(train)  # in the order of before
        assert len(test) == min(math.ceil(held_out * len(own)), max(len(own) - 1, 0))


@pytest.mark.parametrize("held_out", [-0.1, 1.0, True, "some"])
def test_a_share_of_held_out_examples_that_cannot_be_is_refused(sorted_source, held_out):
    with pytest.raises(ConfigError, match=f"held_out is {held_out!r}"):
        partition.iid(sorted_source, 4, 0, held_out=held_out)


def test_clients_that_have_held_out_examples_keep_them(text_source):
    with pytest.raises(ConfigError, match=r"held_out is 0\.2"):
        partition.natural(text_source, None, 0, held_out=0.2)
    alone = replace(text_source, natural_test=None)
    split = partition.natural(alone, 2, 0, held_out=0.5)
    assert split.test_in_train
    assert [*split.train.sizes] == [*split.test.sizes]


@every_rule
def test_the_seed_alone_decides_the_partition(rule, sorted_source):
    first, again, other = (
        rule(sorted_source, num_partitions=20, seed=seed).train for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.indices, again.indices)
    np.testing.assert_array_equal(first.offsets, again.offsets)
    assert not np.array_equal(first.indices, other.indices)


@every_rule
def test_the_seed_decides_which_examples_of_a_class_a_client_gets(rule, sorted_source):
    rows = [set(rule(sorted_source, num_partitions=20, seed=s).train[0].tolist()) for s in (0, 1)]
    assert rows[0] != rows[1]


@every_rule
def test_partitioning_leaves_global_generators_alone(rule, sorted_source):
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    rule(sorted_source, num_partitions=20, seed=3)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@every_rule
def test_more_partitions_than_examples_are_refused_with_the_limit(rule, sorted_source):
    with pytest.raises(ConfigError, match=r"num_partitions=1001 .* 1000 training .*at most 1000"):
        rule(sorted_source, num_partitions=1001, seed=0)
    with pytest.raises(ConfigError, match="num_partitions=0"):
        rule(sorted_source, num_partitions=0, seed=0)


def test_iid_clients_get_a_random_sample_though_the_examples_are_sorted(sorted_source):
    found = counts(sorted_source, partition.iid(sorted_source, num_partitions=10, seed=0))
    assert found.sum(axis=1).tolist() == [100] * 10
    # Drawing 100 of 1,000 with 100 of the class: mean 10, variance 100 x 0.1 x 0.9 x 900 / 999.
    assert np.abs(found - 10).max() < 5 * np.sqrt(100 * 0.1 * 0.9 * 900 / 999)
    assert found.std() > 0


def test_iid_sizes_differ_by_at_most_one(sorted_source):
    sizes = partition.iid(sorted_source, num_partitions=7, seed=0).train.sizes
    assert set(sizes.tolist()) == {142, 143}


@pytest.mark.parametrize("alpha", [0.5, 5.0])
def test_dirichlet_shares_have_the_variance_of_the_distribution(sorted_source, alpha):
    shares = np.concatenate(
        [
            counts(
                sorted_source,
                partition.dirichlet(
                    sorted_source, num_partitions=10, seed=s, alpha=alpha, min_partition_size=0
                ),
            ).ravel()
            / 100
            for s in range(20)
        ]
    )
    # Share of one of P: mean 1/P, variance (1/P)(1 - 1/P) / (P alpha + 1).
    assert shares.mean() == pytest.approx(0.1)
    assert shares.var() == pytest.approx(0.1 * 0.9 / (10 * alpha + 1), rel=0.15)


def test_dirichlet_respects_the_smallest_partition(sorted_source):
    sizes = partition.dirichlet(
        sorted_source, num_partitions=10, seed=0, alpha=1.0, min_partition_size=40
    ).train.sizes
    assert sizes.min() >= 40


@pytest.mark.filterwarnings("error")
def test_dirichlet_says_what_to_change_when_no_draw_is_good_enough(sorted_source):
    with pytest.raises(
        ConfigError,
        match=r"^min_partition_size is 90, .*alpha=0\.1 .*10 .*1000 .*: lower it .*with 0",
    ):
        partition.dirichlet(
            sorted_source, num_partitions=10, seed=0, alpha=0.1, min_partition_size=90
        )


def test_dirichlet_refuses_what_cannot_be(sorted_source):
    with pytest.raises(ConfigError, match=r"at least 101 examples each .*at most 9"):
        partition.dirichlet(sorted_source, num_partitions=10, seed=0, min_partition_size=101)
    with pytest.raises(ConfigError, match=r"alpha=0: .*positive"):
        partition.dirichlet(sorted_source, num_partitions=10, seed=0, alpha=0)
    with pytest.raises(ConfigError, match="min_partition_size=-1"):
        partition.dirichlet(sorted_source, num_partitions=10, seed=0, min_partition_size=-1)


@pytest.mark.parametrize("mode", ["random", "deterministic", "first-deterministic"])
def test_pathological_clients_have_exactly_their_number_of_classes(sorted_source, mode):
    split = partition.pathological(
        sorted_source,
        num_partitions=30,
        seed=1,
        num_classes_per_partition=3,
        class_assignment_mode=mode,
    )
    assert ((counts(sorted_source, split) > 0).sum(axis=1) == 3).all()


def test_pathological_leaves_out_classes_that_nobody_drew_and_says_so(sorted_source):
    with pytest.warns(UserWarning, match="will NOT be used"):
        split = partition.pathological(
            sorted_source, num_partitions=2, seed=0, num_classes_per_partition=2
        )
    found = counts(sorted_source, split)
    assert found.sum() == 100 * (found.sum(axis=0) > 0).sum() < 1000


@pytest.mark.parametrize("classes", [0, 11])
def test_pathological_refuses_more_classes_than_there_are(sorted_source, classes):
    with pytest.raises(ConfigError, match=f"num_classes_per_partition={classes}.*1 to 10"):
        partition.pathological(
            sorted_source, num_partitions=5, seed=0, num_classes_per_partition=classes
        )


def test_a_class_with_fewer_examples_than_clients_is_refused(sorted_source):
    with pytest.raises(ConfigError, match=r"'toy' cannot be dealt.*needed to be assigned to more"):
        partition.pathological(
            sorted_source, num_partitions=600, seed=0, num_classes_per_partition=2
        )


@pytest.mark.filterwarnings("error")
def test_shards_hold_one_class_each_when_they_divide_the_classes(sorted_source):
    # 20 shards of 50 examples, two in each class of 100.
    found = counts(sorted_source, partition.shard(sorted_source, num_partitions=10, seed=0))
    assert set(found.ravel().tolist()) <= {0, 50, 100}
    assert found.sum(axis=1).tolist() == [100] * 10


def test_shards_that_do_not_fit_are_dropped_or_dealt(sorted_source):
    # 1,000 = 33 x 30 + 10
    dealt = {
        keep: partition.shard(
            sorted_source,
            num_partitions=4,
            seed=0,
            num_shards_per_partition=None,
            shard_size=30,
            keep_incomplete_shard=keep,
        ).train
        for keep in (False, True)
    }
    assert len(dealt[False].indices) == 990
    assert len(dealt[True].indices) == 1000


def test_shards_that_the_examples_cannot_fill_are_refused(sorted_source):
    with pytest.raises(ConfigError, match=r"shard_size=60 needs 1200 examples, but .* has 1000"):
        partition.shard(sorted_source, num_partitions=10, seed=0, shard_size=60)
    with pytest.raises(ConfigError, match="both null"):
        partition.shard(sorted_source, num_partitions=10, seed=0, num_shards_per_partition=None)


def test_natural_clients_are_the_sources_own(text_source):
    for wanted in (None, 4):
        split = partition.natural(text_source, num_partitions=wanted, seed=0)
        assert split.train is text_source.natural
        assert split.test is text_source.natural_test


def test_some_natural_clients_keep_their_order_and_their_held_out_rows(text_source):
    sizes = {10: 1, 20: 30, 4: 5, 6: 4}  # of training and held-out rows of each client
    chosen = set()
    for seed in range(20):
        split = partition.natural(text_source, num_partitions=2, seed=seed)
        assert split.test is not None
        train, test = split.train.sizes.tolist(), split.test.sizes.tolist()
        assert [sizes[n] for n in train] == test
        assert split.train[0][0] < split.train[1][0]
        chosen.add(tuple(train))
    assert len(chosen) > 1


def test_natural_refuses_more_clients_than_there_are(text_source, sorted_source):
    with pytest.raises(ConfigError, match=r"num_partitions=5: .* 4 natural .*num_partitions=null"):
        partition.natural(text_source, num_partitions=5, seed=0)
    with pytest.raises(ConfigError, match=r"'toy' has no natural clients: use partition=iid"):
        partition.natural(sorted_source, num_partitions=5, seed=0)


def test_sequences_can_be_dealt_at_random_but_not_by_class(text_source):
    split = partition.iid(text_source, num_partitions=4, seed=0)
    assert sorted(split.train.indices.tolist()) == list(range(40))
    for rule in ("dirichlet", "pathological", "shard"):
        with pytest.raises(ConfigError, match=f"partition={rule} .*5 targets: use partition=nat"):
            RULES[rule](text_source, num_partitions=4, seed=0)


def test_games_which_have_no_classes_cannot_be_dealt_by_class():
    game = load_quadratic_game(num_players=3, samples=4, dimension=2)
    assert len(partition.iid(game, num_partitions=3, seed=0).train) == 3
    for rule in ("dirichlet", "pathological", "shard"):
        with pytest.raises(ConfigError, match=f"partition={rule} .*have none: use partition=nat"):
            RULES[rule](game, num_partitions=3, seed=0)


def drawn_again(sorted_source) -> int:
    """A seed whose first draw leaves somebody with fewer than 60 examples, and a later one none."""
    for seed in range(100):
        sizes = partition.dirichlet(sorted_source, 8, seed, 2.0, 0).train.sizes
        if sizes.min() < 60:
            try:
                partition.dirichlet(sorted_source, 8, seed, 2.0, 60)
            except ConfigError:
                continue
            return seed
    raise AssertionError("no such seed")


@pytest.mark.parametrize("self_balancing", [False, True], ids=["as drawn", "self-balancing"])
@pytest.mark.parametrize(
    ("clients", "alpha", "least"), [(7, 0.5, 1), (60, 0.05, 0), (200, 10.0, 0), (8, 2.0, 60)]
)
def test_dirichlet_is_flowers_to_the_last_example(
    sorted_source, clients, alpha, least, self_balancing
):
    from flwr_datasets.partitioner import DirichletPartitioner

    seed = drawn_again(sorted_source) if least == 60 and not self_balancing else 3
    own = partition.dirichlet(sorted_source, clients, seed, alpha, least, self_balancing)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The specified min_partition_size")
        flowers = partition.deal(
            sorted_source,
            seed,
            lambda: DirichletPartitioner(
                num_partitions=clients,
                partition_by="label",
                alpha=alpha,
                min_partition_size=least,
                self_balancing=self_balancing,
                seed=torch_seed(seed, "partition"),
            ),
        )
    for mine, other in zip(map_rows(own.train), map_rows(flowers.train), strict=True):
        assert mine.tolist() == other.tolist()


@pytest.mark.parametrize("clients", [1, 7, 1000])
def test_iid_is_flowers_to_the_last_example(sorted_source, clients):
    from flwr_datasets.partitioner import IidPartitioner

    own = partition.iid(sorted_source, clients, seed=3)
    flowers = partition.deal(sorted_source, 3, lambda: IidPartitioner(num_partitions=clients))
    for mine, other in zip(map_rows(own.train), map_rows(flowers.train), strict=True):
        assert mine.tolist() == other.tolist()


def test_any_partitioner_of_flower_can_deal(sorted_source):
    from flwr_datasets.partitioner import LinearPartitioner

    deal = partial(partition.deal, partitioner=partial(LinearPartitioner, num_partitions=4))
    split = deal(sorted_source, seed=0)
    assert split.train.sizes.tolist() == [100, 200, 300, 400]  # in proportion to 1, 2, 3, 4
    assert sorted(split.train.indices.tolist()) == list(range(1000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a second use of the same rule starts afresh
        assert len(deal(replace(sorted_source, name="again"), seed=1).train) == 4


@pytest.mark.slow
def test_dealing_does_not_wait_for_plots_which_are_there_when_asked_for():
    code = (
        "import sys\n"
        "import fl.data.partition\n"
        "import flwr_datasets\n"
        "print(sorted({'matplotlib', 'seaborn'} & set(sys.modules)))\n"
        "from flwr_datasets.visualization import plot_label_distributions as plot\n"
        "print(plot.__name__, sorted({'matplotlib', 'seaborn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[]",
        "plot_label_distributions ['matplotlib', 'seaborn']",
    ]


# ---- any partitioner of flwr_datasets ------------------------------------------------------------


def test_any_partitioner_deals_each_example_once_in_the_sizes_that_it_says(sorted_source):
    from flwr_datasets.partitioner import LinearPartitioner, SizePartitioner

    linear = partition.flwr_datasets(sorted_source, LinearPartitioner, num_partitions=4, seed=0)
    assert linear.train.sizes.tolist() == [100, 200, 300, 400]
    sizes = partial(SizePartitioner, partition_sizes=[900, 100])
    split = partition.flwr_datasets(sorted_source, sizes, num_partitions=7, seed=0)
    assert split.train.sizes.tolist() == [900, 100]
    for each in (linear, split):
        assert sorted(each.train.indices.tolist()) == list(range(1000))


def test_the_runs_seed_and_the_label_are_filled_in(sorted_source):
    from flwr_datasets.partitioner import DirichletPartitioner

    rule = partial(DirichletPartitioner, alpha=0.3, min_partition_size=1)
    ours = partition.dirichlet(sorted_source, num_partitions=5, seed=3, alpha=0.3)
    split = partition.flwr_datasets(sorted_source, rule, num_partitions=5, seed=3)
    np.testing.assert_array_equal(split.train.offsets, ours.train.offsets)
    np.testing.assert_array_equal(split.train.indices, ours.train.indices)


def test_a_partitioner_may_go_by_the_natural_client(text_source):
    from flwr_datasets.partitioner import GroupedNaturalIdPartitioner

    rule = partial(GroupedNaturalIdPartitioner, partition_by="client", group_size=2)
    split = partition.flwr_datasets(text_source, rule, num_partitions=2, seed=0)
    assert sorted(split.train.sizes.tolist()) == sorted(
        sum(pair) for pair in _pairs(split, text_source)
    )
    assert sorted(split.train.indices.tolist()) == list(range(40))


def _pairs(split, source):
    """The sizes of the natural clients that each partition has rows of: all of them, or none."""
    for rows in map_rows(split.train):
        own = [set(source.natural[c].tolist()) for c in range(4)]
        yield [len(of) for of in own if of & set(rows.tolist())]


@pytest.mark.parametrize(
    ("name", "bound", "said"),
    [
        ("SizePartitioner", {}, "SizePartitioner, which needs partition_sizes"),
        ("SizePartitioner", {"partition_sizes": [2000]}, "cannot be dealt in this way"),
        ("SizePartitioner", {"sizes": [1]}, "SizePartitioner, which needs partition_sizes"),
        ("PathologicalPartitioner", {"num_classes_per_partition": 11}, "cannot be dealt"),
        ("NaturalIdPartitioner", {"partition_by": "client"}, "cannot be dealt in this way"),
        ("VerticalEvenPartitioner", {}, "deals columns"),
    ],
)
def test_what_a_partitioner_lacks_or_refuses_is_told(sorted_source, name, bound, said):
    import flwr_datasets.partitioner as package

    rule = partial(getattr(package, name), **bound)
    with pytest.raises(ConfigError, match=said):
        partition.flwr_datasets(sorted_source, rule, num_partitions=4, seed=0)


def test_a_partitioner_by_label_is_refused_where_examples_have_several(text_source):
    from flwr_datasets.partitioner import ShardPartitioner

    rule = partial(ShardPartitioner, num_shards_per_partition=1)
    with pytest.raises(ConfigError, match="ShardPartitioner, which goes by"):
        partition.flwr_datasets(text_source, rule, num_partitions=4, seed=0)
