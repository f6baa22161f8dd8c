"""Random numbers that depend on what they are for and on when, and on nothing that was drawn before."""

from hashlib import blake2b

import torch


def generator_for(seed: int, purpose: str, count: int) -> torch.Generator:
    """A CPU generator of its own for the count-th time that `purpose` needs random numbers."""
    digest = blake2b(f"{seed}/{purpose}/{count}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
