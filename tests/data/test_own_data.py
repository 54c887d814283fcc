"""A user's own tables, images, arrays and data sets: what is read, and what is refused."""

import io
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fl.data import (
    load_arrays,
    load_huggingface,
    load_image_folder,
    load_table,
    partition,
    table_encoding,
)
from fl.errors import ConfigError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def rows(n=60):
    """Columns of every kind; `class` is 1 where `size` is above its middle."""
    size = np.arange(n) * 1000.0 + 5e8  # float32 alone would lose it
    return {
        "site": [f"s{i % 4}" for i in range(n)],
        "kind": ["pump" if i % 3 else "fan" for i in range(n)],
        "size": size.tolist(),
        "new": [i % 2 == 0 for i in range(n)],
        "class": ["big" if i >= n // 2 else "small" for i in range(n)],
        "split": ["test" if i % 5 == 0 else "train" for i in range(n)],
    }


def written(path, columns):
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        lines = [",".join(columns)]
        lines += [",".join(str(v) for v in row) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join(lines) + "\n")
    return str(path)


def text_of(path, old, new):
    path.write_text(path.read_text().replace(old, new))


# ---- tables --------------------------------------------------------------------------------------


def test_a_csv_and_a_parquet_file_of_the_same_rows_are_the_same_data(tmp_path):
    one = load_table(written(tmp_path / "a.csv", rows()), "class", split="split")
    two = load_table(written(tmp_path / "a.parquet", rows()), "class", split="split")
    for ours, theirs in ((one.train, two.train), (one.test, two.test)):
        np.testing.assert_array_equal(ours.x, theirs.x)
        np.testing.assert_array_equal(ours.y, theirs.y)


def test_means_deviations_and_categories_are_those_of_the_training_rows(tmp_path):
    columns = rows()
    columns["kind"][0] = "press"  # only in a row that is held out
    source = load_table(
        written(tmp_path / "a.csv", columns), "class", features=["kind", "size"], split="split"
    )
    train = np.array([s == "train" for s in columns["split"]])
    size = np.array(columns["size"])
    expected = (size - size[train].mean()) / size[train].std()
    assert source.input_shape == (3,)  # fan, pump, size
    np.testing.assert_allclose(source.train.x[:, 2], expected[train], rtol=1e-5)
    np.testing.assert_allclose(source.test.x[:, 2], expected[~train], rtol=1e-5)
    assert source.test.x[0, :2].tolist() == [0, 0]  # what no training row has is no category
    assert source.train.x[0, :2].tolist() == [0, 1]
    assert source.num_classes == 2
    assert source.train.y[0] == 1  # "small" comes after "big"


def test_clients_are_the_values_of_a_column_and_each_holds_out_its_share(tmp_path):
    source = load_table(written(tmp_path / "a.csv", rows()), "class", client="site")
    assert [len(source.natural[c]) for c in range(4)] == [12] * 4
    assert [len(source.natural_test[c]) for c in range(4)] == [3] * 4
    # Of 60 rows, those of site c are c, c + 4, ...; no row has the site as an input.
    split = partition.natural(source, 4, seed=0)
    assert split.train is source.natural
    assert source.input_shape == (2 + 1 + 1 + 2,)


def test_a_target_of_regression_is_standardised_and_its_unit_is_known(tmp_path):
    columns = rows()
    columns["hours"] = (3.0 + 2.0 * np.arange(60)).tolist()
    source = load_table(
        written(tmp_path / "a.csv", columns),
        "hours",
        features=["size"],
        task="regression",
        split="split",
    )
    train = np.array([s == "train" for s in columns["split"]])
    assert source.task == "regression"
    assert source.num_classes == 1
    assert source.unit == pytest.approx(np.array(columns["hours"])[train].std())
    assert source.train.y.mean() == pytest.approx(0.0, abs=1e-6)
    assert source.train.y.std() == pytest.approx(1.0)


def test_the_encoding_makes_the_same_inputs_of_a_file_without_a_target(tmp_path):
    path = written(tmp_path / "a.csv", rows())
    encoding = table_encoding(Path(path), "class", features=["kind", "size", "new"], split="split")
    source = load_table(path, "class", features=["kind", "size", "new"], split="split")
    new = written(tmp_path / "b.parquet", {k: rows()[k][:1] for k in ("kind", "size", "new")})
    np.testing.assert_array_equal(encoding.inputs(new), source.test.x[:1])
    np.testing.assert_array_equal(encoding.inputs(Path(new)), source.test.x[:1])
    assert encoding.classes == ("big", "small")


def test_labels_are_columns_of_zeros_and_ones(tmp_path):
    columns = rows()
    columns["old"] = [int(i % 3 == 0) for i in range(60)]
    names, path = ["new", "old"], written(tmp_path / "a.csv", columns)
    source = load_table(path, names, features=["size"], task="multi-label", split="split")
    train = np.array([s == "train" for s in columns["split"]])
    expected = np.stack([np.array(columns[name], np.float32) for name in names], axis=1)
    np.testing.assert_array_equal(source.train.y, expected[train])
    assert (source.num_classes, source.train.y.dtype) == (2, np.float32)
    encoding = table_encoding(path, names, features=["size"], task="multi-label", split="split")
    assert encoding.classes == ("new", "old")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("s3,fan,500003000.0", "s3,fan,", ("size", "row 4", "data.features")),
        ("s3,fan,500003000.0", "s3,,500003000.0", ("kind", "row 4")),
        ("s3,fan,500003000.0", "s3,fan,inf", ("size", "row 4", "inf")),
        ("s3,fan,500003000.0", "s3,fan,1e308", ("size", "row 4", "1e+308")),
        ("big", "", ("class", "row 31")),
        (",test", ",tset", ("split", "tset", "row 1")),
    ],
)
def test_a_gap_is_refused_with_its_column_and_row(tmp_path, old, new, told):
    written(tmp_path / "a.csv", rows())
    text_of(tmp_path / "a.csv", old, new)
    with pytest.raises(ConfigError) as error:
        load_table(str(tmp_path / "a.csv"), "class", split="split")
    assert all(word in str(error.value) for word in told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (dict(target="klass"), ("data.target", "klass")),
        (dict(target="size"), ("data.task", "regression")),
        (dict(target="class", task="regression"), ("data.task", "small")),
        (dict(target="class", task="ranking"), ("task", "ranking")),
        (dict(target="class", client="class"), ("data.client", "data.target")),
        (dict(target="class", features="size"), ("features", "size")),
        (dict(target="class", features=[]), ("data.target",)),
        (dict(target="class", test_fraction=1.0), ("test_fraction", "1.0")),
        (dict(target="class", test_fraction=0.001), ("test_fraction", "0.001")),
        (dict(target=None), ("target", "None")),
        (dict(target="new", task="multi-label"), ("target", "new")),
        (dict(target=["new", "class"], task="multi-label"), ("class", "small")),
        (dict(target=["size"], task="multi-label"), ("size", "data.task")),
        (dict(target=["new", "new"], task="multi-label"), ("data.target[1]", "new")),
        (dict(target=["new"]), ("target", "new")),
    ],
)
def test_what_a_table_cannot_be_read_for_is_told(tmp_path, arguments, told):
    path = written(tmp_path / "a.csv", rows())
    with pytest.raises(ConfigError) as error:
        load_table(path, **arguments)
    assert all(word in str(error.value) for word in told)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("no.csv", None),
        ("a.xlsx", b"x"),
        ("a.parquet", b"x"),
        ("b.csv", b""),
        ("header.csv", "caf\xe9,y\n1,2\n3,4\n".encode("latin-1")),
        ("value.csv", "a,y\ncaf\xe9,2\nb,4\n".encode("latin-1")),
        ("utf16.csv", "a,y\n1,2\n3,4\n".encode("utf-16")),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_its_name(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"path is .*{name}"):
        load_table(str(tmp_path / name), "class")


def test_a_number_after_a_megabyte_of_whole_ones_does_not_change_the_column(tmp_path):
    n = 200_000
    lines = ["x,y", *(f"{i % 10},{i % 2}" for i in range(n)), "0.5,1"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    assert len(load_table(str(tmp_path / "a.csv"), "y").train) + n // 5 == n + 1


# ---- images --------------------------------------------------------------------------------------


def painted(folder, *, n=10, size=(6, 4), value=100):
    folder.mkdir(parents=True)
    for i in range(n):
        Image.new("RGB", size, (value, i, 0)).save(folder / f"{i}.png")


def test_classes_are_folders_and_images_are_pixel_for_pixel(tmp_path):
    painted(tmp_path / "photos" / "cat", value=10)
    painted(tmp_path / "photos" / "dog", value=200)
    source = load_image_folder(str(tmp_path / "photos"))
    assert source.input_shape == (3, 4, 6)
    assert Counter(source.test.y.tolist()) == {0: 2, 1: 2}  # of each class its share
    for x, y in zip(source.train.x, source.train.y, strict=True):
        assert (x[0] == (10, 200)[y]).all()
    scaled = source.scaling(source.train.x)
    np.testing.assert_allclose(scaled[:, :2].mean(axis=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(scaled[:, :2].std(axis=(0, 2, 3)), 1, rtol=1e-5)
    assert np.isfinite(scaled).all()  # the third channel is constant


def test_folders_say_what_is_held_out_and_a_size_is_brought_about(tmp_path):
    for split, n in (("train", 3), ("val", 2)):
        painted(tmp_path / "p" / split / "a", n=n)
        painted(tmp_path / "p" / split / "b", n=n, size=(9, 9))
    source = load_image_folder(str(tmp_path / "p"), size=[5, 7], color="grey")
    assert source.train.x.shape == (6, 1, 5, 7)
    assert source.test.x.shape == (4, 1, 5, 7)
    with pytest.raises(ConfigError, match="size=32"):
        load_image_folder(str(tmp_path / "p"))


@pytest.mark.parametrize("broken", ["class", "image", "folder", "size", "color"])
def test_a_folder_that_cannot_be_learnt_from_is_refused_with_the_place(tmp_path, broken):
    painted(tmp_path / "p" / "a")
    if broken != "class":
        painted(tmp_path / "p" / "b")
    if broken == "image":
        (tmp_path / "p" / "b" / "3.png").write_bytes(b"no image")
    if broken == "folder":
        (tmp_path / "p" / "c").mkdir()
    arguments = {"size": {"size": 0}, "color": {"color": "cmyk"}}.get(broken, {})
    told = {"image": "3.png", "size": "size", "color": "cmyk", "folder": "c has no"}
    with pytest.raises(ConfigError, match=told.get(broken, "path")):
        load_image_folder(str(tmp_path / "p"), **arguments)


# ---- arrays --------------------------------------------------------------------------------------


def test_arrays_are_taken_as_they_are_said(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(5, 3, (40, 3)), np.arange(40) % 4
    np.savez(tmp_path / "a.npz", x=x, y=y, x_test=x[:8], y_test=y[:8], client=np.arange(40) % 5)
    source = load_arrays(str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(source.train.x, x)
    np.testing.assert_array_equal(source.test.y, y[:8])
    np.testing.assert_allclose(source.scaling(x).std(axis=0), 1, rtol=1e-5)
    assert source.natural.sizes.tolist() == [8] * 5
    assert source.natural_test is None
    tokens = rng.integers(0, 7, (20, 9))
    np.savez(tmp_path / "b.npz", x=tokens[:, :-1], y=tokens[:, 1:])
    text = load_arrays(str(tmp_path / "b.npz"), task="next-token")
    assert text.num_classes == tokens.max() + 1
    assert text.train.y.shape == (16, 8)


class Evil:
    """Leaves a trace where it is unpickled."""

    unpickled = False

    def __reduce__(self):
        return setattr, (Evil, "unpickled", True)


@pytest.mark.parametrize(
    "arrays",
    [
        dict(x=np.zeros((4, 2))),
        dict(x=np.zeros((4, 2)), y=np.zeros(3, int)),
        dict(x=np.zeros((4, 2)), y=np.arange(4) % 2, z=np.zeros(4)),
        dict(x=np.full((4, 2), np.nan), y=np.arange(4) % 2),
        dict(x=np.zeros((4, 2)), y=np.arange(8).reshape(4, 2)),
        dict(x=np.zeros((4, 2)), y=np.arange(4) % 2, x_test=np.zeros((1, 2))),
        dict(x=np.zeros((4, 0)), y=np.arange(4) % 2),
        dict(x=np.zeros(4), y=np.arange(4) % 2),
        dict(x=np.float64(1), y=np.float64(1)),
        dict(x=np.full((4, 2), 1e300), y=np.arange(4) % 2),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ConfigError):
        load_arrays(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("kind", ["npy", "csv", "objects"])
def test_what_is_no_file_of_arrays_is_refused_without_advice_to_unpickle(tmp_path, kind):
    if kind == "objects":
        np.savez(tmp_path / "a.npz", x=np.array([{}] * 4, dtype=object), y=np.arange(4) % 2)
    else:
        np.save(tmp_path / "a.npy", np.zeros(4))
        content = (tmp_path / "a.npy").read_bytes() if kind == "npy" else b"x,y\n1,2\n"
        (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_arrays(str(tmp_path / "a.npz"))
    assert "a.npz" in str(error.value)
    assert "savez" in str(error.value)
    assert "pickle" not in str(error.value)


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([Evil()] * 4, dtype=object), y=np.arange(4) % 2)
    with pytest.raises(ConfigError, match="path"):
        load_arrays(str(tmp_path / "a.npz"))
    assert not Evil.unpickled
    pickle.loads(pickle.dumps(Evil()))
    assert Evil.unpickled  # as it would have been


# ---- data sets -----------------------------------------------------------------------------------


def test_a_saved_data_set_is_the_table_of_its_columns(tmp_path):
    datasets = pytest.importorskip("datasets")
    columns = rows()
    del columns["split"]
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")
    ours = load_huggingface(str(tmp_path / "saved"), "class", client="site")
    theirs = load_table(written(tmp_path / "a.csv", columns), "class", client="site")
    np.testing.assert_array_equal(ours.train.x, theirs.train.x)
    np.testing.assert_array_equal(ours.natural.indices, theirs.natural.indices)


def test_a_saved_data_set_has_images_or_text(tmp_path):
    datasets = pytest.importorskip("datasets")

    def png(value):
        Image.new("L", (4, 3), value).save(file := io.BytesIO(), "png")
        return {"bytes": file.getvalue(), "path": None}

    images = datasets.Dataset.from_dict({"photo": [png(i) for i in range(20)], "of": [0, 1] * 10})
    images = images.cast_column("photo", datasets.Image())
    both = datasets.DatasetDict(train=images, test=images.select(range(4)))
    both.save_to_disk(tmp_path / "images")
    source = load_huggingface(
        str(tmp_path / "images"), "of", inputs="photo", test="test", color="grey"
    )
    assert source.input_shape == (1, 3, 4)
    assert source.train.x[:, 0, 0, 0].tolist() == list(range(20))
    assert len(source.test) == 4
    said = datasets.Dataset.from_dict({"text": ["ab " * 100] * 4, "who": [1, 2, 1, 2]})
    said.save_to_disk(tmp_path / "text")
    text = load_huggingface(
        str(tmp_path / "text"), inputs="text", task="next-token", client="who", window=10
    )
    assert text.task == "next-token"
    assert len(text.natural) == 2
    with pytest.raises(ConfigError, match="split"):
        load_huggingface(str(tmp_path / "images"), "of", inputs="photo", test="holdout")
