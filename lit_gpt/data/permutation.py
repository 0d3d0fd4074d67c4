"""A pseudo-random permutation of 0..n-1 with O(1) memory and O(1) time per element."""

from __future__ import annotations

import hashlib
import struct
from math import isqrt

MASK = 2**64 - 1  # keeps Python's integers to 64 bits, as the hash is defined


def _mix(x: int, key: int) -> int:
    """A 64-bit hash of x under a key: the finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    x = (x + key) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


class Permutation:
    """A bijection of range(n) chosen by `key`.

    An index i is a cell (row, column) of a grid just larger than n. Each of eight rounds of a Feistel network adds to
    one coordinate a hash of the other one, which can be undone, so cells are only permuted. A result outside of
    range(n) is permuted again until it is inside (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains").
    The grid has fewer than n + sqrt(n) + 1 cells, so a second time is rare for large n.
    """

    def __init__(self, n: int, key: str):
        assert n > 0
        self.n = n
        self.rows = isqrt(n - 1) + 1
        self.cols = -(-n // self.rows)
        self.keys = struct.unpack("<8Q", hashlib.blake2b(key.encode(), digest_size=64).digest())

    def __call__(self, i: int) -> int:
        """Where element i goes: an index in range(n)."""
        while True:
            a, b = divmod(i, self.cols)
            for even, odd in zip(self.keys[::2], self.keys[1::2]):
                a = (a + _mix(b, even)) % self.rows
                b = (b + _mix(a, odd)) % self.cols
            i = a * self.cols + b
            if i < self.n:
                return i

    def inverse(self, i: int) -> int:
        """Which element goes to i, so that inverse(self(i)) is i."""
        while True:
            a, b = divmod(i, self.cols)
            for even, odd in zip(self.keys[-2::-2], self.keys[::-2]):
                b = (b - _mix(a, odd)) % self.cols
                a = (a - _mix(b, even)) % self.rows
            i = a * self.cols + b
            if i < self.n:
                return i
