"""Ways of dealing a data set to clients, as the partitioners of `flwr_datasets` do.

Every rule takes the source first and returns a `Split`. The partitioners see a table of labels and
row numbers, never the inputs, in an order drawn from the run's seed: their own seed decides who
gets how much of which class, the order decides which examples these are (`IidPartitioner` has no
randomness of its own and cuts the table into consecutive pieces).

`iid` and `dirichlet`, which nearly every run uses, are written out: the package brings pandas and
`datasets`, most of a second, and takes a millisecond per client. A test compares them.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from fl.checks import at_least, is_a, positive
from fl.checks import share as check_share
from fl.data.drift import Drift, Mixtures, counts_of
from fl.data.federated import IntArray, Partitions, Source, Split
from fl.errors import ConfigError
from fl.extras import check_importable
from fl.lazy import defer
from fl.randomness import generator, torch_seed

# Its plots bring matplotlib, seaborn and scipy.stats, half of the time that the package takes.
defer("flwr_datasets.visualization")

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

_FASTEST_S = 1e-3  # in which a mixture may move: times since 1970 are known to 2.4e-7 s


def iid(source: Source, num_partitions: int, seed: int, held_out: float = 0.0) -> Split:
    """Deals the examples at random into partitions whose sizes differ by at most one.

    Args:
        source: the data.
        num_partitions: number of partitions P.
        seed: root seed of the run.
        held_out: share of each partition that is kept from training; see `hold_out`.

    Raises:
        ConfigError: fewer examples than partitions, or a share out of range.
    """
    _check_enough(source, num_partitions, 1)
    parts = np.array_split(_order(source, seed), num_partitions)
    return hold_out(Split(Partitions.from_arrays(parts)), held_out, seed)


def dirichlet(
    source: Source,
    num_partitions: int,
    seed: int,
    alpha: float = 0.5,
    min_partition_size: int = 1,
    self_balancing: bool = False,
    held_out: float = 0.0,
) -> Split:
    """Deals each class in proportions drawn from Dirichlet(alpha, ..., alpha) (arXiv:1905.12022).

    Args:
        source: classification data.
        num_partitions: number of partitions P.
        seed: root seed of the run.
        alpha: concentration > 0. Small: few classes per client and unequal sizes. Large: like iid.
        min_partition_size: smallest acceptable partition; the draw is repeated up to ten times.
        self_balancing: a partition that has the mean size receives no further class.
        held_out: share of each partition that is kept from training; see `hold_out`.

    Raises:
        ConfigError: no labels to go by, alpha not positive, a minimum that cannot be met, or that
            was not met in ten draws.
    """
    _check_labels(source, "dirichlet")
    _check_enough(source, num_partitions, min_partition_size)
    if not alpha > 0:
        raise ConfigError(f"alpha={alpha}: a Dirichlet concentration must be positive, as 0.5")
    order = _order(source, seed)
    labels = source.train.y[order]
    rows_of_class = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    concentration = np.full(num_partitions, float(alpha))
    rng = np.random.default_rng(torch_seed(seed, "partition"))  # as DirichletPartitioner's
    for _ in range(1 + 10):
        sizes = np.zeros(num_partitions, np.int64)
        pieces: list[list[IntArray]] = []
        for rows in rows_of_class:
            shares = rng.dirichlet(concentration)
            if self_balancing:
                shares[sizes > len(order) / num_partitions] = 0.0
                shares /= sum(shares)  # one after the other, as there: the last bit counts
            cuts = (np.cumsum(shares) * len(rows)).astype(np.int64)[:-1]
            pieces.append(np.split(rows, cuts))
            sizes += [len(piece) for piece in pieces[-1]]
        if sizes.min() >= min_partition_size:
            break
    else:
        raise ConfigError(
            f"min_partition_size is {min_partition_size}, and in ten draws with alpha={alpha} some "
            f"of {num_partitions} partitions of the {len(source.train)} examples of "
            f"{source.name!r} had fewer: lower it (with 0 clients may have none), raise alpha, or "
            "lower num_clients"
        )
    parts = [np.concatenate(of_one) for of_one in zip(*pieces, strict=True)]
    for part in parts:
        rng.shuffle(part)
    return hold_out(Split(Partitions.from_arrays([order[p] for p in parts])), held_out, seed)


def pathological(
    source: Source,
    num_partitions: int,
    seed: int,
    num_classes_per_partition: int = 2,
    class_assignment_mode: Literal[
        "random", "deterministic", "first-deterministic"
    ] = "first-deterministic",
    held_out: float = 0.0,
) -> Split:
    """Deals every client examples of a fixed number of classes only.

    Args:
        source: classification data.
        num_partitions: number of partitions P.
        seed: root seed of the run.
        num_classes_per_partition: classes of each client.
        class_assignment_mode: "random"; "deterministic": classes p, p + 1, ... modulo C;
            "first-deterministic": class p modulo C and others at random. Classes that nobody drew
            ("random", or fewer clients than classes) are left out, with a warning.
        held_out: share of each partition that is kept from training; see `hold_out`.

    Raises:
        ConfigError: no labels to go by, more classes per client than there are, or a class with
            fewer examples than clients that need it.
    """
    _check_labels(source, "pathological")
    _check_enough(source, num_partitions, 1)
    present = len(np.unique(source.train.y))
    if not 1 <= num_classes_per_partition <= present:
        raise ConfigError(
            f"num_classes_per_partition={num_classes_per_partition}: data {source.name!r} has "
            f"{present} classes, so 1 to {present} are possible"
        )
    check_importable("partition=pathological", "flwr_datasets")
    from flwr_datasets.partitioner import PathologicalPartitioner

    def make() -> Partitioner:
        return PathologicalPartitioner(
            num_partitions=num_partitions,
            partition_by="label",
            num_classes_per_partition=num_classes_per_partition,
            class_assignment_mode=class_assignment_mode,
            seed=torch_seed(seed, "partition"),
        )

    return hold_out(deal(source, seed, make), held_out, seed)


def shard(
    source: Source,
    num_partitions: int,
    seed: int,
    num_shards_per_partition: int | None = 2,
    shard_size: int | None = None,
    keep_incomplete_shard: bool = False,
    held_out: float = 0.0,
) -> Split:
    """Sorts the examples by class, cuts them into shards, and deals these (arXiv:1602.05629).

    Args:
        source: classification data.
        num_partitions: number of partitions P.
        seed: root seed of the run.
        num_shards_per_partition: shards of each client; None: all shards are dealt out.
        shard_size: examples per shard; None: as many as fit, n // (P * shards per client).
        keep_incomplete_shard: also deal the last, smaller shard.
        held_out: share of each partition that is kept from training; see `hold_out`.

    Raises:
        ConfigError: no labels to go by, neither number nor size of shards, or more shards than the
            examples can fill.
    """
    _check_labels(source, "shard")
    _check_enough(source, num_partitions, 1)
    if num_shards_per_partition is None and shard_size is None:
        raise ConfigError("num_shards_per_partition and shard_size are both null: set one of them")
    needed = num_partitions * (num_shards_per_partition or 1) * (shard_size or 1)
    if needed > len(source.train):
        raise ConfigError(
            f"num_partitions={num_partitions} with num_shards_per_partition="
            f"{num_shards_per_partition} and shard_size={shard_size} needs {needed} examples, but "
            f"data {source.name!r} has {len(source.train)}: lower one of the three"
        )
    check_importable("partition=shard", "flwr_datasets")
    from flwr_datasets.partitioner import ShardPartitioner

    def make() -> Partitioner:
        return ShardPartitioner(
            num_partitions=num_partitions,
            partition_by="label",
            num_shards_per_partition=num_shards_per_partition,
            shard_size=shard_size,
            keep_incomplete_shard=keep_incomplete_shard,
            seed=torch_seed(seed, "partition"),
        )

    return hold_out(deal(source, seed, make), held_out, seed)


@runtime_checkable
class Placement(Protocol):
    """Which chunks of equal size each worker holds, as `fl.strategies.CodedScheme` says it.

    Attributes:
        n: workers.
        num_chunks: chunks of the data.
        parts: of each worker, which follow one another.
    """

    @property
    def n(self) -> int: ...  # noqa: D102

    @property
    def num_chunks(self) -> int: ...  # noqa: D102

    @property
    def parts(self) -> int: ...  # noqa: D102

    def chunks(self, part: int) -> IntArray:
        """Returns the chunks of a part, shape (n, pieces)."""


def coded(source: Source, num_partitions: int, seed: int, scheme: Placement) -> Split:
    """Cuts the examples into chunks of equal size, and gives each worker those of a coded scheme.

    Shares overlap. What remains when the examples are cut, fewer of them than there are chunks, is
    with nobody.

    Args:
        source: the data.
        num_partitions: number of partitions P, one for each of the scheme's workers.
        seed: root seed of the run.
        scheme: says who holds which chunks.

    Raises:
        ConfigError: the scheme is none, or of another number of workers, or there are fewer
            examples than chunks.
    """
    if not isinstance(scheme, Placement):
        raise ConfigError(
            f"scheme is {type(scheme).__name__}, which does not say who holds what: use "
            "partition=coded with strategy=gradient_coding, sr_sgc or m_sgc, or another partition"
        )
    if num_partitions != scheme.n:
        raise ConfigError(
            f"num_partitions is {num_partitions}, and the scheme is of {scheme.n} workers: it must "
            "be their number"
        )
    size = len(source.train) // scheme.num_chunks
    if not size:
        raise ConfigError(
            f"the scheme cuts the data into {scheme.num_chunks} chunks, and {source.name!r} has "
            f"{len(source.train)} training examples: lower num_clients, s or lam, or use more data"
        )
    order = _order(source, seed)[: size * scheme.num_chunks].reshape(-1, size)
    held = np.concatenate([scheme.chunks(part) for part in range(scheme.parts)], axis=1)
    return Split(Partitions.from_arrays(order[chunks].ravel() for chunks in held))


def flwr_datasets(
    source: Source,
    partitioner: Callable[..., Partitioner],
    num_partitions: int,
    seed: int,
    held_out: float = 0.0,
) -> Split:
    """Deals the examples by a partitioner of `flwr_datasets`, or by one of the same kind.

    It sees a table with the columns "index", of row numbers, "label", the class or the number to
    predict of each example, if it has one, and "client", the number of the natural client whose an
    example is, if the source has them. Arguments that it takes and was not given are those here:
    `num_partitions`, a `seed` drawn from the run's, and `partition_by="label"`.

    Args:
        source: the data.
        partitioner: makes it, with its other arguments bound.
        num_partitions: number of partitions P, of those that take it.
        seed: root seed of the run.
        held_out: share of each partition that is kept from training; see `hold_out`.

    Raises:
        ConfigError: it lacks an argument or refuses one, it deals columns and not rows, or the data
            cannot be dealt in this way.
    """
    makes = getattr(partitioner, "func", partitioner)
    bound = getattr(partitioner, "keywords", {})
    name = getattr(makes, "__name__", str(makes))
    known = inspect.signature(makes).parameters
    ours = {
        "num_partitions": num_partitions,
        "seed": torch_seed(seed, "partition"),
        "partition_by": "label",
    }
    given = {key: value for key, value in ours.items() if key in known and key not in bound}
    lacking = [
        key
        for key, parameter in known.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and key not in given
        and key not in bound
    ]
    if lacking:
        raise ConfigError(
            f"partitioner is {name}, which needs {', '.join(lacking)} besides: set them, as "
            f"+partition.partitioner.{lacking[0]}=..."
        )
    by = bound.get("partition_by", given.get("partition_by"))
    if by == "label" and source.train.y.ndim != 1:
        raise ConfigError(
            f"partitioner is {name}, which goes by a class or number of each example, and examples "
            f"of {source.name!r} have several: use another"
        )
    return hold_out(deal(source, seed, lambda: partitioner(**given)), held_out, seed)


def clusters(
    source: Source,
    num_partitions: int,
    seed: int,
    alpha: float | None = None,
    partition_size: int | None = None,
    test_size: int | None = None,
    drift_s: float | None = None,
) -> Split:
    """Deals every client a mixture of the source's clusters, and held-out examples of the same.

    Of each cluster examples are dealt in an order drawn from the seed, one client after the other;
    those of a cluster that runs out are dealt again from its beginning, so that some are with
    several clients. All clients have equally many.

    Args:
        source: data with clusters, such as rotated images.
        num_partitions: number of partitions P.
        seed: root seed of the run.
        alpha: client p has a mixture drawn from Dirichlet(alpha, ..., alpha); None: all of cluster
            p modulo K.
        partition_size: training examples of a client; None: floor(n / P).
        test_size: held-out examples of a client; None: 100, or as many as there are. They are of
            its mixture, but the same examples may be with others.
        drift_s: s in which a client's mixture moves to another draw, and then on to the next, see
            `fl.data.Drift`; with `alpha` None from cluster to cluster. None: it stays. Time counts
            from 2025-01-01, which is virtual time 0 unless the run has another date.

    Raises:
        ConfigError: the source has no clusters, an argument is out of its range, or mixtures are to
            move and the source does not have each example once in every cluster.
    """
    if source.clusters is None or source.test_clusters is None:
        raise ConfigError(
            f"data {source.name!r} has no clusters: use data=rotated_digits or rotated_mnist, or "
            "another partition"
        )
    _check_enough(source, num_partitions, 1)
    for name, value in (("alpha", alpha), ("drift_s", drift_s)):
        if value is not None:
            positive(name, value)
    if drift_s is not None and drift_s < _FASTEST_S:
        raise ConfigError(
            f"drift_s is {drift_s:g}; it must be at least {_FASTEST_S:g}: messages say when they "
            "were sent to a fraction of that"
        )
    for name, count in (("partition_size", partition_size), ("test_size", test_size)):
        if count is not None:
            at_least(name, count, 1)
    k = int(source.clusters.max()) + 1
    mixtures = Mixtures(k, alpha, seed)
    size = len(source.train) // num_partitions if partition_size is None else partition_size
    held_out = min(100, len(source.test)) if test_size is None else test_size
    drift = None
    if drift_s is not None:
        for of in (source.clusters, source.test_clusters):
            if len(of) % k or not np.array_equal(of, np.repeat(np.arange(k), len(of) // k)):
                raise ConfigError(
                    f"drift_s is {drift_s}, and data {source.name!r} does not have each example "
                    "once in every cluster, one cluster after the other: leave it out"
                )
        drift = Drift(mixtures, drift_s)

    def dealt(of: IntArray, n: int, purpose: str) -> Partitions:
        pools = [
            generator(seed, "partition", purpose, c).permutation(np.flatnonzero(of == c))
            for c in range(k)
        ]
        begins = np.zeros(k, np.int64)
        parts = []
        for p in range(num_partitions):
            counts = counts_of(mixtures.drawn(p, 0), n)
            parts.append(
                np.concatenate(
                    [
                        pool[(begin + np.arange(count)) % len(pool)]
                        for pool, begin, count in zip(pools, begins, counts, strict=True)
                    ]
                )
            )
            begins += counts
        return Partitions.from_arrays(parts)

    train = dealt(source.clusters, size, "train")
    return Split(train, dealt(source.test_clusters, held_out, "test"), drift=drift)


def natural(source: Source, num_partitions: int | None, seed: int, held_out: float = 0.0) -> Split:
    """Takes the clients that the source itself has: devices, speakers, modules.

    Args:
        source: data with natural clients.
        num_partitions: how many of them, drawn at random and kept in the source's order; None: all.
            The pooled held-out examples stay those of all.
        seed: root seed of the run.
        held_out: share of each partition that is kept from training, where the source has no
            held-out examples of its clients; see `hold_out`.

    Raises:
        ConfigError: the source has no natural clients, or fewer than asked for.
    """
    if source.natural is None:
        raise ConfigError(
            f"data {source.name!r} has no natural clients: use partition=iid, dirichlet, "
            "pathological or shard; of a table, data.client names the column that has them"
        )
    count = len(source.natural)
    if num_partitions is None:
        return hold_out(Split(source.natural, source.natural_test), held_out, seed)
    if not 1 <= num_partitions <= count:
        raise ConfigError(
            f"num_partitions={num_partitions}: data {source.name!r} has {count} natural clients, "
            f"so 1 to {count} are possible; set num_clients={count} or fewer, or "
            f"partition.num_partitions=null to let client i use part i mod {count}"
        )
    if num_partitions == count:
        return hold_out(Split(source.natural, source.natural_test), held_out, seed)
    chosen = np.sort(generator(seed, "partition").permutation(count)[:num_partitions])
    test = source.natural_test
    split = Split(source.natural.take(chosen), None if test is None else test.take(chosen))
    return hold_out(split, held_out, seed)


def hold_out(split: Split, held_out: float, seed: int) -> Split:
    """Returns a split whose clients keep some of their examples for evaluation.

    Of n examples, ceil(held_out n) drawn at random are kept from training, but one is left to train
    on: a client with a single one has no held-out example.

    Args:
        split: of clients without held-out examples.
        held_out: share of each client's examples, in [0, 1); 0 leaves the split as it is.
        seed: root seed of the run.

    Raises:
        ConfigError: the share is out of range, or clients have held-out examples already.
    """
    check_share("held_out", held_out)
    if not held_out:
        return split
    if split.test is not None:
        raise ConfigError(
            f"held_out is {held_out}, but the source has held-out examples of its clients: leave "
            "it at 0"
        )
    train, test = [], []
    for p in range(len(split.train)):
        rows = split.train[p]
        count = min(math.ceil(held_out * len(rows)), max(len(rows) - 1, 0))
        kept = np.zeros(len(rows), bool)
        kept[generator(seed, "held out", p).permutation(len(rows))[:count]] = True
        train.append(rows[~kept])
        test.append(rows[kept])
    return Split(Partitions.from_arrays(train), Partitions.from_arrays(test), True)


def deal(source: Source, seed: int, partitioner: Callable[[], Partitioner]) -> Split:
    """Deals the examples by any partitioner of `flwr_datasets`.

    Args:
        source: the data, of which the partitioner sees what `flwr_datasets` says.
        seed: root seed of the run, for the order of the table.
        partitioner: makes a fresh partitioner, for example
            `partial(LinearPartitioner, num_partitions=10)`.

    Raises:
        ConfigError: the partitioner refuses; its reason is quoted.
    """
    check_importable("a partitioner of flwr_datasets", "flwr_datasets")
    from datasets import Dataset
    from flwr_datasets.partitioner import Partitioner

    class Table(Dataset):  # type: ignore[misc]
        """Selects without hashing the selection, which no one asks for here: half the time."""

        def select(self, indices: ArrayLike | range, **keywords: Any) -> Dataset:
            keywords["new_fingerprint"] = "unused"
            rows = indices if isinstance(indices, range) else np.asarray(indices, dtype=np.int64)
            return super().select(rows, **keywords)

    order = _order(source, seed)
    columns = {"index": order}
    if source.train.y.ndim == 1:
        columns["label"] = source.train.y[order]
    if source.natural is not None:
        columns["client"] = _client_of(source)[order]
    try:
        dealer = partitioner()
        is_a("partitioner", dealer, Partitioner)
        dealer.dataset = Table.from_dict(columns)
        with warnings.catch_warnings():
            # Of `datasets` sorting by an older form of a pyarrow option: not ours to change.
            warnings.filterwarnings("ignore", "Specifying null_placement", FutureWarning)
            num_partitions = dealer.num_partitions
        # The Arrow form gives a whole column at once; the default one goes row by row.
        dealt = [dealer.load_partition(p).with_format("arrow")[:] for p in range(num_partitions)]
        if any("index" not in rows.column_names for rows in dealt):
            raise ConfigError(
                f"partitioner is {type(dealer).__name__}, which deals columns, and a client of a "
                "run has examples: use one that deals rows"
            )
        parts = [rows["index"].to_numpy() for rows in dealt]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ConfigError(f"data {source.name!r} cannot be dealt in this way: {error}") from error
    return Split(Partitions.from_arrays(parts))


def _client_of(source: Source) -> IntArray:
    """Returns the natural client of each training example, shape (n,); -1 where it is nobody's."""
    owners = np.full(len(source.train), -1, np.int64)
    if source.natural is not None:
        owners[source.natural.indices] = np.repeat(
            np.arange(len(source.natural)), source.natural.sizes
        )
    return owners


def _order(source: Source, seed: int) -> IntArray:
    return generator(seed, "partition", "order").permutation(len(source.train))


def _check_labels(source: Source, rule: str) -> None:
    if source.task == "game":
        raise ConfigError(
            f"partition={rule} goes by one class per example, and examples of {source.name!r} "
            "have none: use partition=natural or partition=iid"
        )
    if source.task == "multi-label":
        raise ConfigError(
            f"partition={rule} goes by one class per example, and examples of {source.name!r} "
            "have any number of labels: use partition=iid, or partition=natural if the data have "
            "clients"
        )
    if source.task == "regression":
        raise ConfigError(
            f"partition={rule} goes by one class per example, and targets of {source.name!r} are "
            "numbers: use partition=iid, or partition=natural if the data have clients"
        )
    if source.train.y.ndim != 1:
        raise ConfigError(
            f"partition={rule} goes by one class per example, but an example of {source.name!r} "
            f"has {source.train.y.shape[1]} targets: use partition=natural or partition=iid"
        )


def _check_enough(source: Source, num_partitions: int, min_partition_size: int) -> None:
    n = len(source.train)
    if num_partitions < 1:
        raise ConfigError(f"num_partitions={num_partitions}: must be at least 1")
    if min_partition_size < 0:
        raise ConfigError(f"min_partition_size={min_partition_size}: must be 0 or more")
    if num_partitions * max(min_partition_size, 1) > n:
        limit = n // max(min_partition_size, 1)
        raise ConfigError(
            f"num_partitions={num_partitions} with at least {max(min_partition_size, 1)} examples "
            f"each is more than the {n} training examples of {source.name!r} allow (at most "
            f"{limit}): lower num_clients, or set partition.num_partitions={limit} or less to let "
            "client i use part i mod num_partitions"
        )
