"""The kernels of calibrated attention, dense and over pages: rows against a range of keys, and the merge of ranges.

Softmax is taken online in log 2 units: of the keys so far a row keeps the largest score `top`, the sum of 2^(s - top),
the values so weighted, and if asked the sum of every class > 0. Tiles of keys in which every row sees every key are
taken first, without looking; then those at the edges of causality and window. A row of the block is row o_r // PACK of
the item and query head o_r % PACK of the unit: PACK = 1 for a prefill; all the query heads of a key-value head for a
few rows, which then read the keys once.
"""

import triton
import triton.language as tl

from .calibrated_attention_items import class_span, item_rows, key_offsets, load_pages, reach, tile_range, with_mates
from .calibrated_attention_scores import LN2, calibrated, present, scaled, seen

UNSPECIALIZED = ["most", "Q", "K", "L", "P", "window"]


@triton.jit
def add_tile(state, b_s, b_v, b_class, least, largest, PRECISION: tl.constexpr, MASS: tl.constexpr, BG: tl.constexpr):
    """The state after keys of scores b_s[BM, BN] and values b_v[BN, BD], whose classes > 0 are least ... largest."""
    b_top, b_sum, b_acc, b_mass = state
    b_new = tl.maximum(b_top, tl.max(b_s, 1))
    b_base = tl.where(b_new == float("-inf"), 0.0, b_new)
    b_p = tl.exp2(b_s - b_base[:, None])
    b_shrink = tl.exp2(b_top - b_base)
    b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
    b_acc = b_acc * b_shrink[:, None] + tl.dot(b_p.to(b_v.dtype), b_v, input_precision=PRECISION)
    if MASS:
        b_mass *= b_shrink[:, None]
        if largest > 0:  # a loop in the open would keep the keys' loop from being pipelined
            for g in range(least, largest + 1):
                b_own = tl.sum(tl.where((b_class == g)[None, :], b_p, 0.0), 1)
                b_mass += tl.where((tl.arange(0, BG) == g)[None, :], b_own[:, None], 0.0)
    return b_new, b_sum, b_acc, b_mass


@triton.jit
def product(
    b_q, p_query, p_key, m_j, q_d, k_d, D,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, BD: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """<q_i, k_j> [BM, BN] of rows p_query[BM] and keys p_key[BN], BC of the BD numbers at once.

    Fewer than all are for float32 and wide heads, which take registers; rows are read again then, b_q is not used.
    """
    o_d = tl.arange(0, BC)
    if BC == BD:
        m_k = (o_d < D)[:, None]
        b_k = tl.load(p_key[None, :] + (o_d * k_d)[:, None], mask=m_k & m_j[None, :] if MASKED else m_k, other=0.0)
        b_product = tl.dot(b_q, b_k, input_precision=PRECISION)
    else:
        b_product = tl.zeros([p_query.shape[0], p_key.shape[0]], tl.float32)
        for d in range(0, D, BC):
            m_d = d + o_d < D
            b_part = tl.load(p_query[:, None] + ((d + o_d) * q_d)[None, :], mask=m_d[None, :], other=0.0)
            m_k = m_d[:, None] & m_j[None, :]
            b_k = tl.load(p_key[None, :] + ((d + o_d) * k_d)[:, None], mask=m_k, other=0.0)
            b_product += tl.dot(b_part, b_k, input_precision=PRECISION)
    return b_product


@triton.jit
def attend(
    state, b_q, p_query, rows, cache, p_pages, p_key_mask, p_group, classes, rule, low, high, gap_at, gap, keys, D,
    scale, softcap, window,
    CAUSAL: tl.constexpr, EDGE: tl.constexpr, PAGE: tl.constexpr, PRECISION: tl.constexpr, MASS: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, BC: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """The state after tiles low ... high - 1 of BN keys, less `gap` of them from gap_at on.

    EDGE: some rows may not see some keys. rows: positions, groups, m_rule. cache: pointers and strides. classes:
    pointer and the span that has any. rule: pointer, offset of every row, number of classes.
    """
    b_at, b_row_group, m_rule = rows
    p_k, p_v, q_d, k_b, k_j, k_d, v_b, v_j, v_d = cache
    p_class, class_first, class_last = classes
    p_rule, o_rule, G = rule
    o_d = tl.arange(0, BD)
    for i in range(low, high - gap):
        j = (i + tl.where(i >= gap_at, gap, 0)) * BN
        o_j = j + tl.arange(0, BN)
        m_j = o_j < keys
        b_page = load_pages(p_pages, o_j, keys, PAGE)
        p_key = p_k + key_offsets(b_page, o_j, k_b, k_j, PAGE)
        b_s = scaled(product(b_q, p_query, p_key, m_j, q_d, k_d, D, EDGE, PRECISION, BD, BC), scale, softcap)
        b_class, least, largest = o_j * 0, 1, 0
        if (j + BN > class_first) & (j < class_last):
            b_class = tl.load(p_class + o_j, mask=m_j, other=0).to(tl.int32)
            least, largest = present(b_class)
            b_s = calibrated(b_s, m_rule, b_class, p_rule, o_rule, least, largest, G)
        m_v = m_j
        if p_key_mask is not None:
            m_v = tl.load(p_key_mask + o_j, mask=m_j, other=0) > 0
            b_s = tl.where(m_v[None, :], b_s, float("-inf"))
        if EDGE:
            b_group = o_j
            if p_group is not None:
                b_group = tl.load(p_group + o_j, mask=m_j, other=0)
            m_seen = seen(b_at, b_row_group, o_j, b_group, keys, window, CAUSAL, p_group is not None)
            b_s = tl.where(m_seen, b_s, float("-inf"))
            m_v &= tl.max(m_seen.to(tl.int32), 0) > 0  # a value that no row sees may be NaN
        p_value = p_v + key_offsets(b_page, o_j, v_b, v_j, PAGE)[:, None] + (o_d * v_d)[None, :]
        m_d = (o_d < D)[None, :]
        b_v = tl.load(p_value, mask=m_d & m_v[:, None] if EDGE or p_key_mask is not None else m_d, other=0.0)
        state = add_tile(state, b_s, b_v, b_class, least, largest, PRECISION, MASS, BG)
    return state


@triton.jit
def write_rows(
    state, p_out, p_lse, p_mass, o_out, o_lse, m_r, G, D, poison, unit,
    MASS: tl.constexpr, BG: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Write output, log-sum-exp (log 2 times `unit`) and masses of rows m_r."""
    b_top, b_sum, b_acc, b_mass = state
    b_inverse = tl.where(b_sum == 0.0, 0.0, 1.0 / b_sum)
    o_d, o_g = tl.arange(0, BD), tl.arange(0, BG)
    b_out = b_acc * b_inverse[:, None] + poison
    m_out = m_r[:, None] & (o_d < D)[None, :]
    tl.store(p_out + (o_out * D)[:, None] + o_d[None, :], b_out.to(p_out.dtype.element_ty), mask=m_out)
    tl.store(p_lse + o_lse, (b_top + tl.log2(b_sum)) * unit + poison, mask=m_r)
    if MASS:
        b_mass = b_mass * b_inverse[:, None] + poison  # of class 0 nothing was added
        b_rest = b_sum * b_inverse - tl.sum(b_mass, 1)
        b_rest = tl.where(b_rest < 0.0, 0.0, b_rest)
        b_mass = tl.where((o_g == 0)[None, :], b_rest[:, None], b_mass)
        tl.store(p_mass + (o_lse * G)[:, None] + o_g[None, :], b_mass, mask=m_r[:, None] & (o_g < G)[None, :])


@triton.jit(do_not_specialize=UNSPECIALIZED)
def attention_kernel(
    p_q, p_k, p_v, p_class, p_rule, p_row_mask, p_key_mask, p_group, p_start, p_pages, p_offsets, p_lengths,
    p_out, p_lse, p_mass, q_b, q_h, q_i, q_d, k_b, k_h, k_j, k_d, v_b, v_h, v_j, v_d, rule_b,
    H, SHARED, G, most, Q, K, L, P, D, R, scale, softcap, window,
    CAUSAL: tl.constexpr, PAGE: tl.constexpr, PACK: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BC: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """BM rows of item i_b and unit i_u of PACK heads against all their keys, or one of the ranges they are split into.

    Of ranges, outputs in float32 and log-sum-exp in log 2 units go to [range, R, H] for `merge_kernel`.
    """
    i_u, i_b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_m = 0 if SPLIT else tl.num_programs(0) - 1 - tl.program_id(0)  # those with the most keys first
    p_pages = p_pages if PAGE == 0 else p_pages + i_b * L
    first, n, keys, start, poison = item_rows(
        p_start, p_pages, p_offsets, p_lengths, i_b, most, Q, K, L, P, window, PAGE
    )  # fmt: skip
    if i_m * BM >= n * PACK:
        return
    i_last = tl.minimum(i_m * BM + BM, n * PACK) - 1
    o_r = i_m * BM + tl.arange(0, BM)
    m_r, o_r = o_r <= i_last, tl.minimum(o_r, i_last)  # what is beyond repeats the last row and is not written
    o_i, o_h = o_r // PACK, i_u * PACK + o_r % PACK
    o_d = tl.arange(0, BD)
    b_row = first + o_i.to(tl.int64) if PAGE > 0 else i_b * Q + o_i
    p_query = p_q + i_b * q_b + (first + o_i).to(tl.int64) * q_i + o_h.to(tl.int64) * q_h
    b_q = o_r
    if BC == BD:
        b_q = tl.load(p_query[:, None] + (o_d * q_d)[None, :], mask=(o_d < D)[None, :], other=0.0)  # [BM, BD]
    m_rule = m_r if p_row_mask is None else tl.load(p_row_mask + b_row) > 0

    b_at = start + o_i
    b_group = b_at
    low, high, all_low, all_high = reach(start, i_m * BM // PACK, i_last // PACK, keys, window, CAUSAL)
    if p_group is not None:
        p_group += i_b * K
        b_group = tl.load(p_group + b_at, mask=(b_at >= 0) & (b_at < keys), other=0)
        low, high = with_mates(low, high, b_group, p_group, keys)
    low, high, all_low, all_high = tile_range(low, high, all_low, all_high, SPLIT, BN)

    p_class += i_b * K
    p_key_mask = p_key_mask if p_key_mask is None else p_key_mask + i_b * K
    i_kv = (i_u * PACK // SHARED).to(tl.int64)
    p_k += i_kv * k_h + (0 if PAGE > 0 else i_b * k_b)
    p_v += i_kv * v_h + (0 if PAGE > 0 else i_b * v_b)
    calibrates = tl.max(m_rule.to(tl.int32), 0) > 0
    MASS: tl.constexpr = p_mass is not None
    last = tl.minimum(high * BN, keys) if MASS else tl.where(calibrates, tl.minimum(high * BN, keys), low * BN)
    class_first, class_last = class_span(p_class, low * BN, last)
    rows = (b_at, b_group, m_rule)
    cache = (p_k, p_v, q_d, k_b, k_j, k_d, v_b, v_j, v_d)
    classes = (p_class, class_first, class_last)
    o_rule = i_b * rule_b + (o_h if PACK > 1 else i_u + tl.arange(0, 1)) * (G * 3)
    rule = (p_rule, o_rule, G)
    zero = tl.zeros([BM], tl.float32)
    state = (zero + float("-inf"), zero, tl.zeros([BM, BD], tl.float32), tl.zeros([BM, BG], tl.float32))
    state = attend(
        state, b_q, p_query, rows, cache, p_pages, p_key_mask, p_group, classes, rule, all_low, all_high, all_high, 0,
        keys, D, scale, softcap, window, CAUSAL, False, PAGE, PRECISION, MASS, BN, BD, BC, BG,
    )  # fmt: skip
    state = attend(
        state, b_q, p_query, rows, cache, p_pages, p_key_mask, p_group, classes, rule, low, high, all_low,
        all_high - all_low, keys, D, scale, softcap, window, CAUSAL, True, PAGE, PRECISION, MASS, BN, BD, BC, BG,
    )  # fmt: skip

    o_out = b_row * H + o_h
    if SPLIT:
        o_out += tl.program_id(0).to(tl.int64) * R * H
        write_rows(state, p_out, p_lse, p_mass, o_out, o_out, m_r, G, D, poison, 1.0, MASS, BG, BD)
    else:
        o_lse = o_out if PAGE > 0 else (i_b * H + o_h) * Q + o_i
        write_rows(state, p_out, p_lse, p_mass, o_out, o_lse, m_r, G, D, poison, LN2, MASS, BG, BD)


@triton.jit(do_not_specialize=["R", "Q", "S"])
def merge_kernel(
    p_part, p_part_lse, p_out, p_lse, R, Q, S, H, D, PAGED: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """Output and log-sum-exp of row and head i from those of S ranges of its keys."""
    i, o_s, o_d = tl.program_id(0).to(tl.int64), tl.arange(0, BS), tl.arange(0, BD)
    o_part = o_s.to(tl.int64) * R * H + i
    b_lse = tl.load(p_part_lse + o_part, mask=o_s < S, other=float("-inf"))
    top = tl.max(b_lse, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    b_weight = tl.exp2(b_lse - base)  # [BS]
    total = tl.sum(b_weight, 0)
    m_part = (b_lse != float("-inf"))[:, None] & (o_d < D)[None, :]
    b_part = tl.load(p_part + (o_part * D)[:, None] + o_d[None, :], mask=m_part, other=0.0)
    b_out = tl.sum(b_part * b_weight[:, None], 0) * tl.where(total == 0.0, 0.0, 1.0 / total)
    tl.store(p_out + i * D + o_d, b_out.to(p_out.dtype.element_ty), mask=o_d < D)
    i_row, i_h = i // H, i % H
    o_lse = i if PAGED else (i_row // Q * H + i_h) * Q + i_row % Q
    tl.store(p_lse + o_lse, (base + tl.log2(total)) * LN2)
