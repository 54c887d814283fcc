from functools import partial

import numpy as np
import pytest

from fl.data import Examples, Partitions, Source, Split, federate, load_stdlib
from fl.data.partition import natural
from fl.reports import dealt
from fl.runs import dealing

Y = np.array([0, 0, 0, 1, 1, 2], np.int64)


@pytest.fixture
def data():
    """Two clients: one with class 0 alone, one with the others."""
    examples = Examples(np.zeros((6, 2), np.float32), Y)
    source = Source("toy", examples, examples.take(slice(2)), num_classes=3, input_shape=(2,))
    rows = Partitions.from_arrays([[0, 1, 2], [3, 4, 5]])
    return federate(lambda: source, lambda _: Split(rows))


def test_counts_are_of_clients_and_classes(data):
    counts = dealing.class_counts(data)
    assert counts.tolist() == [[3, 0, 0], [0, 2, 1]]
    told = " ".join(dealing.lines(data, counts))
    assert "1 to 2 of 3 classes" in told
    assert "0.50 from those of all" in told  # (|1 - 1/2| + 1/3 + 1/6) / 2 of either client


def test_text_has_no_classes_and_is_drawn_all_the_same(tmp_path):
    data = federate(load_stdlib, partial(natural, num_partitions=4, seed=0))
    counts = dealing.class_counts(data)
    assert counts.shape == (4, 1)
    assert counts.sum() == data.partitions.sizes.sum()
    dealt.picture(counts, data.partitions.sizes, "text", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_shows_each_client_and_class(data):
    figure = dealt.picture(dealing.class_counts(data), data.partitions.sizes, "toy")
    top, low = figure.axes[:2]
    np.testing.assert_array_equal(top.images[0].get_array(), [[1, 0], [0, 1], [0, 1]])
    assert [bar.get_height() for bar in low.patches] == [3, 3]
    assert all(tick == round(tick) for tick in low.get_xticks())


def test_an_example_counts_for_each_of_its_labels_and_once_for_its_client():
    y = np.array([[1, 1], [0, 1], [0, 0], [1, 1]], np.float32)
    examples = Examples(np.zeros((4, 2), np.float32), y)
    source = Source("toy", examples, examples, 2, (2,), task="multi-label")
    data = federate(lambda: source, lambda _: Split(Partitions.from_arrays([[0, 1], [2, 3]])))
    counts = dealing.class_counts(data)
    assert counts.tolist() == [[1, 2], [1, 1]]
    assert "2 to 2, median 2" in dealing.lines(data, counts)[0]
