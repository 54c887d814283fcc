import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from fl.data import (
    Examples,
    FederatedData,
    Partitions,
    Scaling,
    Source,
    Split,
    federate,
    per_channel,
)
from fl.errors import ConfigError


def images() -> FederatedData:
    rng = np.random.default_rng(0)
    return FederatedData(
        name="toy",
        train=Examples(rng.integers(0, 256, (7, 2, 3, 3), dtype=np.uint8), np.arange(7) % 3),
        test=Examples(rng.integers(0, 256, (4, 2, 3, 3), dtype=np.uint8), np.arange(4) % 3),
        partitions=Partitions.from_arrays([[6, 0], [], [1, 2, 3, 5]]),
        num_classes=3,
        input_shape=(2, 3, 3),
        scaling=per_channel(255.0, [0.5, 0.25], [0.5, 0.125]),
        test_partitions=Partitions.contiguous([1, 2, 1]),
    )


def tokens() -> FederatedData:
    x = np.array([[0, 1, 2], [1, 2, 3], [2, 3, 0]], dtype=np.uint8)
    y = np.array([[1, 2, 3], [2, 3, 0], [3, 0, 0]], dtype=np.int64)
    return FederatedData(
        name="toy-text",
        train=Examples(x, y),
        test=Examples(x[:1], y[:1]),
        partitions=Partitions.from_arrays([[2], [0, 1]]),
        num_classes=4,
        input_shape=(3,),
        task="next-token",
    )


def test_a_client_gets_its_own_rows_scaled_per_channel():
    data = images()
    x, y = data.client(0)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert y.tolist() == [0, 0]
    for row, source in zip(x, (6, 0), strict=True):
        for channel, (mean, std) in enumerate([(0.5, 0.5), (0.25, 0.125)]):
            expected = (data.train.x[source, channel] / 255.0 - mean) / std
            np.testing.assert_allclose(row[channel].numpy(), expected, rtol=0, atol=1e-6)


def test_images_stay_bytes_until_they_are_used():
    data = images()
    data.client(2)
    assert data.train.x.dtype == np.uint8


def test_a_partition_without_examples_gives_empty_tensors():
    x, y = images().client(1)
    assert tuple(x.shape) == (0, 2, 3, 3)
    assert tuple(y.shape) == (0,)
    assert images().size(1) == 0


def test_tokens_become_int64_and_keep_their_windows():
    x, y = tokens().client(1)
    assert x.dtype == torch.int64
    assert x.tolist() == [[0, 1, 2], [1, 2, 3]]
    assert y.tolist() == [[1, 2, 3], [2, 3, 0]]


def test_test_sets_are_pooled_or_per_partition():
    data = images()
    assert data.test_set()[1].tolist() == [0, 1, 2, 0]
    assert data.client_test(1)[1].tolist() == [1, 2]
    with pytest.raises(ConfigError, match="partition=natural"):
        replace(data, test_partitions=None).client_test(0)


@pytest.mark.filterwarnings("error")
def test_shared_read_only_arrays_work_and_are_never_written():
    buffers: list[pickle.PickleBuffer] = []
    stored = pickle.dumps(images(), protocol=5, buffer_callback=buffers.append)
    # What an object store does: the arrays of the copy are views of memory nobody may write to.
    data = pickle.loads(stored, buffers=[bytes(b.raw()) for b in buffers])
    assert not data.train.x.flags.writeable
    before = data.fingerprint()
    for x, y in (data.client(2), data.test_set(), data.client_test(0)):
        x += 1.0
        y += 1
    assert data.fingerprint() == before == images().fingerprint()


@pytest.mark.filterwarnings("error")
def test_unscaled_float_inputs_are_copied_too():
    x = np.ones((3, 2), dtype=np.float32)
    x.flags.writeable = False
    examples = Examples(x, np.zeros(3, dtype=np.int64))
    data = FederatedData("toy", examples, examples, Partitions.contiguous([3]), 2, (2,))
    for inputs, _ in (data.client(0), data.test_set()):
        inputs += 1.0
    assert (x == 1.0).all()


def test_the_fingerprint_changes_with_everything_that_is_trained_on():
    data = images()
    flipped = data.train.x.copy()
    flipped[0, 0, 0, 0] ^= 1
    labels = data.train.y.copy()
    labels[0] = 1
    assert data.scaling is not None
    variants = [
        replace(data, train=Examples(flipped, data.train.y)),
        replace(data, train=Examples(data.train.x, labels)),
        replace(data, test=data.test.take(slice(3))),
        replace(data, partitions=Partitions.from_arrays([[0, 6], [], [1, 2, 3, 5]])),
        replace(data, partitions=Partitions.from_arrays([[6], [0], [1, 2, 3, 5]])),
        replace(data, test_partitions=None),
        replace(data, scaling=None),
        replace(data, scaling=replace(data.scaling, scale=254.0)),
    ]
    prints = {d.fingerprint() for d in [data, *variants]}
    assert len(prints) == 1 + len(variants)
    assert images().fingerprint() == data.fingerprint()


def test_scaling_may_differ_by_pixel():
    scaling = Scaling(1.0, np.float32([[[1.0, 2.0]]]), np.float32([[[2.0, 4.0]]]))
    assert scaling(np.array([[[[3, 10]]]], dtype=np.uint8)).tolist() == [[[[1.0, 2.0]]]]


def test_partitions_index_like_a_list_without_wrapping_around():
    partitions = Partitions.from_arrays([[3, 1], [2]])
    assert len(partitions) == 2
    assert partitions[0].tolist() == [3, 1]
    assert partitions.sizes.tolist() == [2, 1]
    assert partitions.take([1]).indices.tolist() == [2]
    assert Partitions.contiguous([2, 0, 1])[2].tolist() == [2]
    for p in (-1, 2):
        with pytest.raises(IndexError, match=f"partition {p} of 2"):
            partitions[p]


@pytest.mark.parametrize("offsets", [[], [0], [1, 3], [0, 2, 1, 3], [0, 4]])
def test_offsets_that_do_not_cut_the_indices_are_refused(offsets: list[int]):
    with pytest.raises(ConfigError, match="must rise from 0 to 3"):
        Partitions(np.arange(3), np.array(offsets, dtype=np.int64))


def test_examples_need_one_int64_target_each():
    with pytest.raises(ConfigError, match="3 inputs but 2 targets"):
        Examples(np.zeros(3), np.zeros(2, dtype=np.int64))
    with pytest.raises(ConfigError, match="int32"):
        Examples(np.zeros(3), np.zeros(3, dtype=np.int32))


def test_federate_puts_source_and_split_together():
    data = images()
    source = Source("toy", data.train, data.test, 3, (2, 3, 3), scaling=data.scaling)
    split = Split(data.partitions, data.test_partitions)
    federated = federate(lambda: source, lambda s: split if s is source else Split(s.natural))
    assert federated.fingerprint() == data.fingerprint()
    assert (federated.name, federated.num_classes, federated.task) == ("toy", 3, "classification")
