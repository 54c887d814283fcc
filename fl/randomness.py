"""Every random draw comes from a stream named by (seed, purpose, client, dispatch or round).

Two forms serve two needs. `generator` gives a full NumPy generator for work that draws many numbers
(batch orders, partitions). `uniforms` is stateless: the number belonging to one (seed, purpose,
client, index) is a hash of these four, so a million clients are drawn in one vectorised call, and a
client's number does not change when clients are added, or when others draw more or less.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

SEED_KEY = "fl.seed"
"""Under which a run's root seed is in `Context.run_config`, where clients find it.

A name of `fl`'s own: most apps have a "seed" in their configuration, which is theirs.
"""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _digest(seed: int, key: tuple[int | str, ...]) -> bytes:
    # repr keeps 1 and "1" apart and does not depend on PYTHONHASHSEED.
    return hashlib.blake2b(repr((int(seed), *key)).encode(), digest_size=32).digest()


def generator(seed: int, *key: int | str) -> np.random.Generator:
    """Returns the generator of the stream (seed, *key): equal arguments, equal numbers."""
    return np.random.Generator(np.random.Philox(key=philox_key(seed, key)))


def philox_key(seed: int, key: tuple[int | str, ...]) -> NDArray[np.uint64]:
    """Returns the Philox key of the stream (seed, *key), uint64, shape (2,)."""
    return np.frombuffer(_digest(seed, key)[:16], dtype=np.uint64)


def torch_seed(seed: int, *key: int | str) -> int:
    """Returns a 63-bit seed for `torch.Generator.manual_seed`, from the stream (seed, *key)."""
    return int.from_bytes(_digest(seed, key)[:8], "little") >> 1


@lru_cache(maxsize=4096)
def _purpose_key(seed: int, purpose: str) -> int:
    return int.from_bytes(_digest(seed, (purpose,))[:8], "little")


def _mix(z: int) -> int:
    """SplitMix64's finaliser (Steele, Lea, Flood, OOPSLA 2014) on 64-bit integers."""
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
    return z ^ (z >> 31)


def uniform(seed: int, purpose: str, client: int, index: int = 0) -> float:
    """Returns the number in [0, 1) of (seed, purpose, client, index); 53 bits, stateless."""
    return uniform_of(client_key(seed, purpose, client), index)


def client_key(seed: int, purpose: str, client: int) -> int:
    """Returns what `uniform_of` makes a client's numbers from: kept, it is half of their cost."""
    return _mix((_purpose_key(seed, purpose) + (client + 1) * _GOLDEN) & _MASK)


def uniform_of(key: int, index: int) -> float:
    """Returns `uniform` of a seed, purpose and client, whose `client_key` is given."""
    z = (key + (index + 1) * _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK  # `_mix`, without a call: each task draws a few
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def normal_of(key: int, index: int) -> float:
    """Returns the scalar form of `normals`, to the last bit, from a `client_key`."""
    z = (key + (index + 1) * _GOLDEN) & _MASK  # as `uniform_of`, likewise without a call
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
    return float(ndtri(((z ^ (z >> 31)) >> 11) * 2.0**-53 + 2.0**-54))


def uniforms(
    seed: int, purpose: str, clients: ArrayLike, index: ArrayLike = 0
) -> NDArray[np.float64]:
    """Returns `uniform` for every client at once.

    Args:
        seed: root seed of the run.
        purpose: what the numbers are for; another purpose is another stream.
        clients: client indices, shape (n,).
        index: round or dispatch, a scalar or shape (n,).

    Returns:
        float64, shape (n,), each in [0, 1).
    """
    rounds = np.asarray(index, dtype=np.int64).astype(np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is what the hash is made of
        z = client_keys(seed, purpose, clients) + (rounds + np.uint64(1)) * np.uint64(_GOLDEN)
        z = _mix_array(z)
    return np.asarray((z >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def client_keys(seed: int, purpose: str, clients: ArrayLike) -> NDArray[np.uint64]:
    """Returns the `client_key` of several clients, shape (n,)."""
    ids = np.asarray(clients, dtype=np.int64).astype(np.uint64)
    with np.errstate(over="ignore"):
        z = np.uint64(_purpose_key(seed, purpose)) + (ids + np.uint64(1)) * np.uint64(_GOLDEN)
        return _mix_array(z)


def _mix_array(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    return z ^ (z >> np.uint64(31))


def normals(
    seed: int, purpose: str, clients: ArrayLike, index: ArrayLike = 0
) -> NDArray[np.float64]:
    """Returns standard normal numbers, one per client, by the inverse distribution function."""
    # Half an ulp keeps u away from 0, where the inverse is minus infinity.
    u = uniforms(seed, purpose, clients, index) + 2.0**-54
    return np.asarray(ndtri(u), dtype=np.float64)


@contextmanager
def global_generators(seed: int, *key: int | str) -> Iterator[None]:
    """Seeds the global generators of `random`, NumPy and torch inside the block.

    Flower's own strategies, and apps written by others, draw from these. The state found on entry
    is put back on exit, so a client run in this process leaves no trace in the server's stream.
    """
    import torch

    python, pytorch = random.getstate(), torch.get_rng_state()
    numpy = np.random.get_state()  # noqa: NPY002
    s = torch_seed(seed, *key)
    random.seed(s)
    np.random.seed(s % 2**32)  # noqa: NPY002  (the legacy global state is what foreign code uses)
    _seed_torch(s)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(pytorch)


def _seed_torch(seed: int) -> None:
    import torch

    if torch.cuda.is_available():
        torch.manual_seed(seed)
    else:
        # Without a device, `torch.manual_seed` notes the call's stack for each kind there might be:
        # a millisecond, for every client of a foreign app.
        torch.default_generator.manual_seed(seed)
