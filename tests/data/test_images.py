import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fl.data import load_cifar10, load_mnist
from fl.data.images import CIFAR10, MNIST, ImageSet, read_split
from fl.errors import ConfigError

TINY = ImageSet("tiny", "nobody/tiny", "img", (3, 4, 5), (0.0,) * 3, (1.0,) * 3)


def png(pixels: np.ndarray) -> dict[str, bytes | None]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


def write(folder: Path, pixels: np.ndarray, column: str = "img") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = {column: [png(p) for p in pixels], "label": list(range(len(pixels)))}
    pq.write_table(pa.table(rows), folder / "train.parquet")


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FL_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data" / "tiny"


def test_images_are_decoded_pixel_for_pixel_with_channels_first(folder, pixels):
    write(folder, pixels)
    examples = read_split(TINY, "train")
    assert examples.x.dtype == np.uint8
    np.testing.assert_array_equal(examples.x, pixels.transpose(0, 3, 1, 2))
    assert examples.y.tolist() == list(range(6))


def test_images_are_decoded_once(folder, pixels, monkeypatch):
    write(folder, pixels)
    first = read_split(TINY, "train")
    monkeypatch.setattr(Image, "open", None)  # whoever decodes now fails
    np.testing.assert_array_equal(read_split(TINY, "train").x, first.x)


def test_other_images_under_the_same_name_are_not_taken_from_the_cache(folder, pixels):
    write(folder, pixels)
    read_split(TINY, "train")
    write(folder, 255 - pixels)
    np.testing.assert_array_equal(read_split(TINY, "train").x, (255 - pixels).transpose(0, 3, 1, 2))


def test_an_interrupted_write_leaves_nothing_in_the_cache(folder, pixels, monkeypatch):
    write(folder, pixels)
    with monkeypatch.context() as broken:

        def stop(path, array):
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt

        broken.setattr(np, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            read_split(TINY, "train")
    np.testing.assert_array_equal(read_split(TINY, "train").x, pixels.transpose(0, 3, 1, 2))


def test_a_cache_that_cannot_be_written_names_the_variable(folder, pixels, monkeypatch):
    write(folder, pixels)
    (folder / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    with pytest.raises(ConfigError, match="set XDG_CACHE_HOME"):
        read_split(TINY, "train")


def test_a_missing_file_names_the_variable_and_the_layout(folder):
    with pytest.raises(ConfigError, match=r"FL_DATA_DIR=.*tiny/train.parquet.*'img'.*'label'"):
        read_split(TINY, "train")


def test_without_folder_and_hub_the_error_names_the_variable_and_the_layout(folder, monkeypatch):
    monkeypatch.delenv("FL_DATA_DIR")
    with pytest.raises(
        ConfigError, match=r"nobody/tiny cannot be read .*FL_DATA_DIR .*tiny/test.parquet"
    ):
        read_split(TINY, "train")


def test_the_hub_gives_the_same_as_the_folder(folder, pixels, monkeypatch):
    write(folder, pixels)
    expected = read_split(TINY, "train")

    def from_hub(name: str, split: str) -> datasets.Dataset:
        assert (name, split) == ("nobody/tiny", "train")
        rows = datasets.Dataset.from_parquet(
            str(folder / "train.parquet"), cache_dir=str(folder / "arrow")
        )
        return rows.cast_column("img", datasets.Image())

    monkeypatch.delenv("FL_DATA_DIR")
    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    found = read_split(TINY, "train")
    np.testing.assert_array_equal(found.x, expected.x)
    np.testing.assert_array_equal(found.y, expected.y)


def test_other_columns_or_sizes_are_refused(folder, pixels):
    write(folder, pixels, column="picture")
    with pytest.raises(ConfigError, match=r"\['picture', 'label'\], without \['img'\]"):
        read_split(TINY, "train")
    write(folder, pixels[:, :3])
    with pytest.raises(ConfigError, match="5x3 pixels: need 5x4"):
        read_split(TINY, "train")


def test_mnist_is_the_published_data_set(real_data):
    source = load_mnist()
    assert source.train.x.shape == (60_000, 1, 28, 28)
    assert source.test.x.shape == (10_000, 1, 28, 28)
    # Digits 0 to 9 in the files of LeCun, Cortes and Burges.
    train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(source.train.y).tolist() == train
    assert np.bincount(source.test.y).tolist() == test
    pixels = source.train.x / np.float32(255)
    assert pixels.mean(dtype=np.float64) == pytest.approx(MNIST.mean[0], abs=5e-5)
    assert pixels.std(dtype=np.float64) == pytest.approx(MNIST.std[0], abs=5e-5)


def test_a_limit_keeps_the_first_images(real_data):
    few, whole = load_mnist(num_train=100, num_test=10), load_mnist()
    assert (len(few.train), len(few.test)) == (100, 10)
    np.testing.assert_array_equal(few.train.x, whole.train.x[:100])
    with pytest.raises(ConfigError, match=r"num_test=10001: 1 to 10000"):
        load_mnist(num_test=10_001)


@pytest.mark.slow  # decoding 60,000 JPEGs
def test_cifar10_is_the_published_data_set(real_data):
    source = load_cifar10()
    assert source.train.x.shape == (50_000, 3, 32, 32)
    assert np.bincount(source.train.y).tolist() == [5000] * 10
    assert np.bincount(source.test.y).tolist() == [1000] * 10
    for channel in range(3):
        pixels = source.train.x[:, channel] / np.float32(255)
        # The figures are those of the original files; a JPEG copy differs a little.
        assert pixels.mean(dtype=np.float64) == pytest.approx(CIFAR10.mean[channel], abs=2e-3)
        assert pixels.std(dtype=np.float64) == pytest.approx(CIFAR10.std[channel], abs=2e-3)
