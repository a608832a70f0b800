"""What NVIDIA's matrix units make of float32 in three TF32 products, for the interpreter, which multiplies exactly.

Triton splits each factor into its nearest TF32 number and the rest, and adds small x large, large x small and large x
large. The units read 19 bits of a factor, add the products of 8 steps at once and cut the sum off to float32, rather
than rounding it: taken here as their worst published behavior (Ootomo and Yokota 2022, arXiv 2203.03341, section 2).
"""

from __future__ import annotations

import numpy as np

STEP = 8
HIDDEN = np.uint32(0x1FFF)  # the bits of a float32 that TF32 lacks


def multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left[M, K] times right[K, N] in float32, as tl.dot does with input_precision="tf32x3"."""
    (left_large, left_small), (right_large, right_small) = split(left), split(right)
    total = np.zeros((left.shape[0], right.shape[1]), np.float32)
    for one, other in ((left_small, right_large), (left_large, right_small), (left_large, right_large)):
        for k in range(0, left.shape[1], STEP):
            total = cut_off(total + one[:, k : k + STEP].astype(np.float64) @ other[k : k + STEP].astype(np.float64))
        if one is not left_large or other is not right_large:
            total = np.where(np.isnan(total), np.float32(0), total)  # Triton drops them: infinity has no small part
    return total


def split(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest TF32 numbers, halves away from zero, and the rest as the units read it."""
    bits = values.view(np.uint32)
    large = np.where(np.isfinite(values), (bits + np.uint32(0x1000)) & ~HIDDEN, bits).view(np.float32)
    small = (values - large).view(np.uint32) & ~HIDDEN
    return large, np.ascontiguousarray(small).view(np.float32)


def cut_off(values: np.ndarray) -> np.ndarray:
    """Float32 numbers toward zero."""
    nearest = values.astype(np.float32)
    return np.where(np.abs(nearest) > np.abs(values), np.nextafter(nearest, np.float32(0)), nearest)
