"""What a program knows of its item before any product: its rows, its weights, and whether something in it is broken."""

import triton
import triton.language as tl

from .cosine import DOWN, LARGE, SMALL, UP


@triton.jit
def item_span(p_offsets, i_b, N, PACKED: tl.constexpr):
    """First row (int64) and number of rows of item i_b."""
    if PACKED:
        start = tl.load(p_offsets + i_b).to(tl.int64)
        n = (tl.load(p_offsets + i_b + 1) - start).to(tl.int32)
    else:
        start = i_b.to(tl.int64) * N
        n = N
    return start, n


@triton.jit
def simplex(p_w, n, BLOCK: tl.constexpr):
    """(factor, total) of n weights: w factor / total sums to 1 for weights of any size. total is NaN if a weight is
    negative or not finite, or if there is no mass. None is uniform.
    """
    factor = 1.0
    total = tl.cast(n, tl.float32)
    if p_w is not None:
        o_w = tl.arange(0, BLOCK)
        b_large = tl.zeros([BLOCK], tl.float32)
        for i in range(0, n, BLOCK):
            b_large = tl.maximum(b_large, tl.load(p_w + i + o_w, mask=i + o_w < n, other=0.0))
        largest = tl.max(b_large, 0)
        factor = tl.where(largest > LARGE, DOWN, tl.where(largest < SMALL, UP, 1.0))
        b_sum = tl.zeros([BLOCK], tl.float32)
        for i in range(0, n, BLOCK):
            b_w = tl.load(p_w + i + o_w, mask=i + o_w < n, other=0.0) * factor  # [BLOCK]
            b_sum += tl.where(b_w >= 0.0, b_w, float("nan"))
        total = tl.sum(b_sum, 0)
    return factor, tl.where((total > 0.0) & (total < float("inf")), total, float("nan"))


@triton.jit
def load_weights(p_w, o_w, m_w, factor, total):
    """Weights over their sum, 0 where the mask is off."""
    if p_w is not None:
        b_w = tl.load(p_w + o_w, mask=m_w, other=0.0) * factor
    else:
        b_w = m_w.to(tl.float32)
    return b_w / total


@triton.jit
def broken_rows(p_inverse, n, BLOCK: tl.constexpr):
    """0, or NaN if one of n rows holds a NaN or inf, which its inverse length tells (`cosine`)."""
    o_r = tl.arange(0, BLOCK)
    b_sum = tl.zeros([BLOCK], tl.float32)
    for i in range(0, n, BLOCK):
        b_sum += tl.load(p_inverse + i + o_r, mask=i + o_r < n, other=0.0) * 0.0
    return tl.sum(b_sum, 0)
