"""Counter-based randomness: a number is a function of a key and a position, with no state.

Dropout masks are drawn this way. The backward draws the same mask again instead of storing it, a
resumed run draws the same masks, and threads need not agree on an order. The mixing functions are
SplitMix64 (Steele, Lea & Flood, 2014) for keys and Wellons' `lowbias32` with the key added before
and between its two rounds for elements.
"""

from __future__ import annotations

import numpy as np

_MASK = (1 << 64) - 1


def fold(seed: int, *counters: int) -> int:
    """A 64-bit key from a seed and counters, such as ``fold(seed, step, shard, layer, site)``."""
    key = seed & _MASK
    for counter in (0, *counters):
        key = (key ^ (counter & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        key = (key ^ key >> 27) * 0x94D049BB133111EB & _MASK
        key ^= key >> 31
    return key


def halves(key: int) -> tuple[np.uint32, np.uint32]:
    """The two 32-bit halves of a key."""
    return np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32 & 0xFFFFFFFF)


Bits = np.ndarray | np.uint32


def hash32(counter: np.ndarray, k0: Bits, k1: Bits) -> np.ndarray:
    """32 well-mixed bits for each uint32 of `counter`, under the key (k0, k1)."""
    with np.errstate(over="ignore"):
        x = counter + np.asarray(k0, np.uint32)
        x = (x ^ x >> np.uint32(16)) * np.uint32(0x7FEB352D)
        x = x + np.asarray(k1, np.uint32)
        x = (x ^ x >> np.uint32(15)) * np.uint32(0x846CA68B)
        return x ^ x >> np.uint32(16)


def threshold(p: float) -> np.uint32:
    """The bits below which an element is dropped: P(hash < threshold) = p within 2**-32."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout: p is {p}; it must be at least 0 and below 1")
    return np.uint32(min(round(p * 2**32), 2**32 - 1))


def attention_bits(shape: tuple[int, ...], k0: np.uint32, k1: np.uint32) -> np.ndarray:
    """The bits that decide which attention weights (B, H, T, S) are dropped, from key (k0, k1).

    Each head has a key of its own; one hash serves two keys: that of (i, j // 2) gives its lower 16
    bits to an even j and its upper 16 to an odd one.
    """
    B, H, T, S = shape
    heads = np.arange(B * H, dtype=np.uint32)
    h0, h1 = hash32(heads, k0, k1), hash32(heads, k1, k0)
    i, j = np.arange(T, dtype=np.uint32)[:, None], np.arange(S, dtype=np.uint32)
    bits = hash32(i * np.uint32(S) + j // np.uint32(2), h0[:, None, None], h1[:, None, None])
    return np.where(j % 2 == 0, bits << np.uint32(16), bits).reshape(shape)


def keep_attention(key: int, shape: tuple[int, ...], p: float) -> np.ndarray:
    """Boolean array (B, H, T, S): which attention weights survive dropout with probability `p`."""
    return attention_bits(shape, *halves(key)) >= threshold(p)
