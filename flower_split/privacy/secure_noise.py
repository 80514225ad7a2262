"""SecureNoise: Gaussian noise out of the operating system's randomness, never out of a seed.

torch's generator on the CPU keeps 32 bits of a seed, so that whoever sees the noise of one tensor
could try all seeds and take it off again. Here a key of 256 bits from the operating system makes a
stream of AES in counter mode, and Box and Muller's transform makes normal numbers of it.
"""

import math
import os
import threading

import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

_KEY_BYTES, _NONCE_BYTES = 32, 16
_MOST_AT_ONCE = 1 << 20
_BITS = 53
_MASK = (1 << _BITS) - 1


class SecureNoise:
    """A stream of random numbers that nobody can compute again.

    Its key is in this object alone: it is in no log, file or checkpoint, and a process that begins
    again has another one. Its methods may be called from several threads.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        cipher = Cipher(AES(os.urandom(_KEY_BYTES)), CTR(bytes(_NONCE_BYTES)))
        self._stream = cipher.encryptor()

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Independent standard normal numbers of `shape`: float64, on the CPU.

        From 53 random bits each; the largest magnitude that can come is 8.57.
        """
        wanted = math.prod(shape)
        parts = [
            self._some(min(_MOST_AT_ONCE, wanted - begin))
            for begin in range(0, wanted, _MOST_AT_ONCE)
        ]
        return torch.cat(parts).reshape(shape) if parts else torch.empty(shape, dtype=torch.float64)

    def uniform(self, count: int) -> Tensor:
        """Independent multiples of 2^-53 from 0 to below 1: (count,) float64, on the CPU."""
        return self._bits(count).mul_(2.0**-_BITS)

    def _bits(self, count: int) -> Tensor:
        """Independent whole numbers of 53 random bits, (count,) float64."""
        if not count:
            return torch.empty(0, dtype=torch.float64)
        with self._guard:
            data = bytearray(self._stream.update(bytes(8 * count)))
        return (torch.frombuffer(data, dtype=torch.int64) & _MASK).double()

    def _some(self, count: int) -> Tensor:
        pairs = (count + 1) // 2
        uniform = self._bits(2 * pairs).reshape(2, pairs)
        # Above 0 in the first half, whose logarithm is taken.
        radius = uniform[0].add_(1).mul_(2.0**-_BITS).log_().mul_(-2).sqrt_()
        angle = uniform[1].mul_(2 * math.pi * 2.0**-_BITS)
        return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]
