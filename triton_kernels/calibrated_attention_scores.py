"""Scores of a tile of rows and keys in calibrated attention, in units of log 2: cap, rule, and what a row sees.

Notation: b_s[BM, BN] scores, o_j[BN] keys counted from their item's first, b_at[BM] positions of rows among them.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def hyperbolic_tangent(b_x):
    """Of every x, within 2e-7 relative: a fitted odd polynomial near 0, where 1 - 2 / (exp(2x) + 1) would cancel."""
    b_z = b_x * b_x
    b_p = b_z * -6.104947998e-03 + 2.100364121e-02
    b_p = b_p * b_z - 5.385249747e-02
    b_p = b_p * b_z + 1.333278226e-01
    b_p = b_p * b_z - 3.333332910e-01
    b_far = 1.0 - 2.0 / (tl.exp2(tl.abs(b_x) * (2.0 * LOG2E)) + 1.0)
    return tl.where(b_z < 0.390625, b_x + b_x * b_z * b_p, tl.where(b_x < 0.0, -b_far, b_far))


@triton.jit
def scaled(b_product, scale, softcap):
    """Products of queries and keys as scores: scale, and the cap if there is one."""
    if softcap is None:
        b_s = b_product * (scale * LOG2E)
    else:
        b_s = hyperbolic_tangent(b_product * (scale / softcap)) * (softcap * LOG2E)
    return b_s


@triton.jit
def present(b_class):
    """The least and the largest class > 0 among the keys; 256 and 0 without any."""
    return tl.min(tl.where(b_class > 0, b_class, 256), 0), tl.max(b_class, 0)


@triton.jit
def calibrated(b_s, m_rule, b_class, p_rule, o_rule, least, largest, G):
    """Scores s + linear relu(s) + quadratic relu(s)^2 + additive of rows m_rule[BM], keys of classes least ... largest.

    o_rule: where the rule[G, 3] of a row lies, [BM] or one for all. NaN for a class of G or more. Class by class, as
    coefficients of every key would take a register each. In Horner's order a product is 0 where its coefficients are.
    """
    for g in range(least, largest + 1):
        p_own = p_rule + o_rule + g * 3
        m_class = (o_rule >= 0) & (g < G)
        linear = tl.load(p_own, mask=m_class, other=float("nan"))
        quadratic = tl.load(p_own + 1, mask=m_class, other=0.0) * LN2
        additive = tl.load(p_own + 2, mask=m_class, other=0.0) * LOG2E
        b_positive = tl.maximum(b_s, 0.0)
        b_after = b_s + b_positive * (linear[:, None] + quadratic[:, None] * b_positive) + additive[:, None]
        b_s = tl.where(m_rule[:, None] & (b_class == g)[None, :], b_after, b_s)
    return b_s


@triton.jit
def seen(b_at, b_row_group, o_j, b_key_group, keys, window, CAUSAL: tl.constexpr, GROUPED: tl.constexpr):
    """Which keys [BM, BN] the rows see, masked keys apart."""
    m_seen = (o_j < keys)[None, :]
    if CAUSAL:
        b_back = b_at[:, None] - o_j[None, :]
        m_near = b_back >= 0
        if window is not None:
            m_near &= b_back < window
        if GROUPED:
            m_near |= (b_row_group[:, None] != 0) & (b_row_group[:, None] == b_key_group[None, :])
        m_seen &= m_near
    return m_seen
