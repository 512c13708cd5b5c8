"""Random streams that depend on a seed and a purpose, and on nothing that ran before."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *purpose: object) -> int:
    """Return a 63-bit seed for ``purpose``; different purposes give unrelated streams."""
    text = repr((int(seed), *map(str, purpose))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator(seed: int, *purpose: object) -> torch.Generator:
    """Return a CPU generator seeded with ``derive(seed, *purpose)``."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


@contextmanager
def isolated(seed: int, *purpose: object) -> Iterator[None]:
    """Seed torch's global generators inside the block (dropout draws from them), restore them after."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, *purpose))
        yield
