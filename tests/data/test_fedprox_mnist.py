import numpy as np
import pytest

from fl.data import load_fedprox_mnist
from fl.data.fedprox_mnist import power_law_counts
from fl.errors import ConfigError
from fl.randomness import generator

# Digits 0 to 9 among all 70,000 images: training plus test counts of the published files.
CLASS_SIZES = np.array(
    [
        a + b
        for a, b in zip(
            [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
            [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
            strict=True,
        )
    ]
)


@pytest.fixture(scope="module")
def draws() -> list[np.ndarray]:
    return [power_law_counts(CLASS_SIZES, 1000, generator(s, "draws")) for s in range(20)]


def test_totals_are_those_published(draws):
    # Published: 69,035 examples, 69 per device. The total varies with what is lost to rounding
    # down: 2,000 fractions, a deviation of sqrt(2000 / 12) = 13 if they were uniform.
    for counts in draws:
        assert counts.sum() == pytest.approx(69_035, abs=100)
        assert int(counts.sum(axis=1).mean()) == 69


def test_sizes_spread_by_a_power_law(draws):
    # Published deviation: 106, at the low end of what the law gives.
    spread = [counts.sum(axis=1).std() for counts in draws]
    assert 106 < np.median(spread) < 250
    assert all(counts.min() == 5 for counts in draws)
    # One and two deviations above the median of LogNormal(0, 2) are a factor e^2 apart. Sums differ
    # between digits and draws by some tenths, which adds little to a variance of 4.
    one, two = np.quantile(np.concatenate(draws) - 5, [0.84134, 0.97725])
    assert np.log(two / one) == pytest.approx(2.0, abs=0.2)


def test_the_draw_is_that_of_the_authors_script(draws):
    # Their loops: shares of a digit in proportion to LogNormal(0, 2), rounded down, beyond 5 each.
    props = generator(0, "draws").lognormal(0, 2.0, (10, 100, 2))
    for u in range(1000):
        for j in range(2):
            digit = (u + j) % 10
            part = props[digit, u // 10, j] / sum(props[digit].ravel())
            assert draws[0][u, j] == 5 + int((CLASS_SIZES[digit] - 1000) * part)


def test_no_digit_is_dealt_more_often_than_it_exists(draws):
    for counts in draws:
        for digit in range(10):
            owners = counts[digit::10, 0].sum() + counts[(digit - 1) % 10 :: 10, 1].sum()
            assert owners <= CLASS_SIZES[digit]


@pytest.mark.parametrize("devices", [0, 995, 6320])
def test_impossible_numbers_of_devices_are_refused(devices):
    with pytest.raises(ConfigError, match=f"num_devices={devices}: .*multiple of 10 .*6310"):
        power_law_counts(CLASS_SIZES, devices, generator(0, "x"))


def test_devices_have_two_neighbouring_digits_and_share_no_image(real_data):
    source = load_fedprox_mnist()
    assert source.natural is not None
    assert source.natural_test is not None
    assert len(source.natural) == len(source.natural_test) == 1000
    assert len(source.train) + len(source.test) == pytest.approx(69_035, abs=100)
    for u in range(1000):
        own = source.natural[u], source.natural_test[u]
        digits = np.concatenate([source.train.y[own[0]], source.test.y[own[1]]])
        assert set(digits.tolist()) == {u % 10, (u + 1) % 10}
        assert len(own[0]) == int(0.9 * len(digits))
    images = np.concatenate([source.train.x, source.test.x]).reshape(-1, 784)
    # MNIST itself has no two equal images.
    assert len({image.tobytes() for image in images}) == len(images)


def test_every_pixel_is_standardised_over_all_images(real_data):
    source = load_fedprox_mnist(seed=1)
    x = np.concatenate([source.train.x, source.test.x])  # 99 % of all
    assert source.scaling is not None
    scaled = source.scaling(x)
    live = x.reshape(len(x), -1).std(axis=0).reshape(28, 28) > 5
    assert np.abs(scaled.mean(axis=0, dtype=np.float64)[0][live]).max() < 0.05
    assert np.abs(scaled.std(axis=0, dtype=np.float64)[0][live] - 1).max() < 0.05
    assert (scaled[:, 0, 0, 0] == 0).all()  # a pixel that is always black: 0 / 0.001
