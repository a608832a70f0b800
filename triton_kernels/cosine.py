"""Cosines between the rows of two matrices of any magnitude, as tiles inside other kernels.

A row's scale is a pair: a power of two that brings the row into a range where no product overflows or vanishes (1 for
every ordinary row, and exact in bf16), and the inverse length of the row so scaled. A zero row has inverse length 0,
hence cosine 0; a row with a NaN or inf has NaN, which every cosine with it inherits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32  # rows a program: 4 warps read 8 rows each, 64 elements (2 a lane) at a time
DEPTH = 64
# A step over D: 64 bytes of a row. Twice that in fp32 spills registers on sm_80 and sm_120.
DOT_DEPTH = {tl.float32: 16, tl.bfloat16: 32, tl.float16: 32}

LARGE = tl.constexpr(2.0**40)  # squares of rows within 2^-40 ... 2^40 and their sums over D stay normal in fp32
SMALL = tl.constexpr(2.0**-40)
DOWN = tl.constexpr(2.0**-88)  # 2^128 -> 2^40
UP = tl.constexpr(2.0**88)  # 2^-149, the least denormal -> 2^-61


@triton.jit
def write_scales(p_x, p_scale, i_r, R, D, BR: tl.constexpr, BD: tl.constexpr):
    """scale[0, r] = power of two, scale[1, r] = 1 / |x_r scale[0, r]| for the i_r-th BR rows of x[R, D]."""
    o_r = i_r.to(tl.int64) * BR + tl.arange(0, BR)
    o_d = tl.arange(0, BD)
    m_r = o_r < R
    p_rows = p_x + o_r[:, None] * D + o_d[None, :]
    b_large = tl.zeros([BR], tl.float32)
    b_square = tl.zeros([BR], tl.float32)
    for d in range(0, D, BD):
        b_x = tl.load(p_rows + d, mask=m_r[:, None] & (d + o_d < D)[None, :], other=0.0).to(tl.float32)  # [BR, BD]
        b_large = tl.maximum(b_large, tl.max(tl.abs(b_x), 1))
        b_square += tl.sum(b_x * b_x, 1)
    b_power = tl.where(b_large > LARGE, DOWN, tl.where(b_large < SMALL, UP, 1.0))  # [BR]
    if tl.max(tl.where(m_r & (b_power != 1.0), 1, 0), 0) > 0:  # only rows out of range are read twice
        b_square = tl.zeros([BR], tl.float32)
        for d in range(0, D, BD):
            b_x = tl.load(p_rows + d, mask=m_r[:, None] & (d + o_d < D)[None, :], other=0.0).to(tl.float32)
            b_x = b_x * b_power[:, None]
            b_square += tl.sum(b_x * b_x, 1)
    b_inverse = tl.where(b_square == 0.0, 0.0, tl.div_rn(1.0, tl.sqrt_rn(b_square)))  # [BR]
    b_inverse = tl.where(b_square < float("inf"), b_inverse, float("nan"))  # NaN < inf is false
    tl.store(p_scale + o_r, b_power, mask=m_r)
    tl.store(p_scale + R + o_r, b_inverse, mask=m_r)


@triton.jit(do_not_specialize=["X", "Y"])
def row_scale_kernel(p_x, p_x_scale, p_y, p_y_scale, X, Y, D, BR: tl.constexpr, BD: tl.constexpr):
    """Scales of x[X, D] and of y[Y, D] in one launch."""
    i_r, blocks = tl.program_id(0), tl.cdiv(X, BR)
    if i_r < blocks:
        write_scales(p_x, p_x_scale, i_r, X, D, BR, BD)
    else:
        write_scales(p_y, p_y_scale, i_r - blocks, Y, D, BR, BD)


@triton.jit
def cosine_tile(
    p_x, p_x_scale, o_n, m_n, X, p_y, p_y_scale, o_m, m_m, Y, D,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Cosines [BN, BM] fp32 of rows o_n of x[X, D] and rows o_m of y[Y, D]; 0 where a mask is off."""
    o_d = tl.arange(0, BD)
    p_left = p_x + o_n[:, None] * D + o_d[None, :]
    p_right = p_y + o_m[None, :] * D + o_d[:, None]
    b_left_power = tl.load(p_x_scale + o_n, mask=m_n, other=0.0)  # [BN]
    b_right_power = tl.load(p_y_scale + o_m, mask=m_m, other=0.0)  # [BM]
    b_dot = tl.zeros([BN, BM], tl.float32)
    for d in range(0, D, BD):
        m_d = d + o_d < D
        b_left = tl.load(p_left + d, mask=m_n[:, None] & m_d[None, :], other=0.0)  # [BN, BD]
        b_right = tl.load(p_right + d, mask=m_d[:, None] & m_m[None, :], other=0.0)  # [BD, BM]
        b_left = (b_left * b_left_power[:, None]).to(DOT)
        b_right = (b_right * b_right_power[None, :]).to(DOT)
        b_dot = tl.dot(b_left, b_right, b_dot, input_precision=PRECISION)
    b_dot *= tl.load(p_x_scale + X + o_n, mask=m_n, other=0.0)[:, None]
    b_dot *= tl.load(p_y_scale + Y + o_m, mask=m_m, other=0.0)[None, :]
    return b_dot


def write_row_scales(x: Tensor, x_scale: Tensor, y: Tensor, y_scale: Tensor) -> None:
    """Fill the scales, [2 R] fp32 each, of contiguous rows x[R, D] and y[R, D]: see the module."""
    (X, D), Y = x.shape, len(y)
    grid = (triton.cdiv(X, ROWS) + triton.cdiv(Y, ROWS),)
    row_scale_kernel[grid](x, x_scale, y, y_scale, X, Y, D, BR=ROWS, BD=DEPTH, num_warps=4)


def product_kind(left: Tensor, right: Tensor) -> dict[str, object]:
    """How `cosine_tile` multiplies: input type, step over D and precision of the matrix units.

    Half precision only where both inputs already have it. fp32 means three tf32 products (accurate to fp32) on NVIDIA
    and plain fp32 on AMD; never tf32 alone.
    """
    halves = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    dot = halves.get(left.dtype, tl.float32) if left.dtype == right.dtype else tl.float32
    return {"DOT": dot, "BD": DOT_DEPTH[dot], "PRECISION": fp32_precision()}


def fp32_precision() -> str:
    """Of matrix products of fp32 matrices, on the device at hand."""
    return "ieee" if torch.version.hip else "tf32x3"
