"""Random streams: named, stateless, uniform, and without trace in the global generators."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from fl.randomness import (
    generator,
    global_generators,
    normals,
    torch_seed,
    uniform,
    uniforms,
)


def test_a_stream_is_a_function_of_its_name() -> None:
    assert generator(1, "a", 2).random() == generator(1, "a", 2).random()
    names = [(1, "a", 2), (2, "a", 2), (1, "b", 2), (1, "a", 3), (1, "a", "2"), (1, "a")]
    draws = {generator(*name).random() for name in names}
    assert len(draws) == len(names)
    assert len({torch_seed(*name) for name in names}) == len(names)


def test_the_vector_form_equals_the_scalar_form() -> None:
    clients = np.array([0, 1, 5, 999_999])
    assert uniforms(3, "p", clients, 7).tolist() == [uniform(3, "p", int(c), 7) for c in clients]
    rounds = np.array([0, 1, 2, 3])
    assert uniforms(3, "p", 4 + 0 * rounds, rounds).tolist() == [
        uniform(3, "p", 4, int(r)) for r in rounds
    ]


def test_a_clients_number_does_not_depend_on_the_population() -> None:
    small, large = uniforms(0, "x", np.arange(10)), uniforms(0, "x", np.arange(100_000))
    assert (small == large[:10]).all()


@pytest.mark.parametrize("axis", ["clients", "rounds"])
def test_uniforms_are_uniform_and_uncorrelated(axis: str) -> None:
    n = 100_000
    index = np.arange(n)
    u = uniforms(0, "x", index) if axis == "clients" else uniforms(0, "x", 0 * index, index)
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    # Under independence a lag-1 correlation has standard deviation 1/sqrt(n).
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 4 / np.sqrt(n)
    other = uniforms(0, "y", index)
    assert abs(np.corrcoef(u, other)[0, 1]) < 4 / np.sqrt(n)


def test_normals_are_standard_normal() -> None:
    assert stats.kstest(normals(0, "x", np.arange(100_000)), "norm").pvalue > 1e-3


def test_global_generators_are_seeded_inside_and_restored_outside() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    with global_generators(1, "server"):
        inside = draw()
    before = random.getstate(), torch.get_rng_state()
    with global_generators(1, "server"):
        first = draw()
        with global_generators(1, "client", "0.0"):
            draw()
        second = draw()
    assert first == inside
    assert second != first
    assert before[0] == random.getstate()
    assert torch.equal(before[1], torch.get_rng_state())
    with global_generators(1, "server"):
        draw()
        assert draw() == second, "a block inside must leave no trace in the stream around it"


def test_streams_do_not_depend_on_the_hash_seed() -> None:
    code = "from fl.randomness import *; print(uniform(1, 'a', 2, 3), torch_seed(1, 'b'))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(outputs) == 1
