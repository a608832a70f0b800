"""Where an item of calibrated attention has its rows and keys, and which keys a block of its rows can see.

A cache in pages is a dense one whose items are the pages: key j of an item is slot j % PAGE of the page in place
j // PAGE of its row of the page table. PAGE = 0 is dense, and slot j of item i_b.
"""

import triton
import triton.language as tl

SCAN = tl.constexpr(2048)  # keys or pages looked at together


@triton.jit
def usable_keys(p_pages, length, n, most, K, L, P, PAGE: tl.constexpr):
    """Keys of a request, or -1 if it can't be read: it has no such length, more rows than `most`, or a page is missing.

    L: of its row of the page table; K: keys that classes are known of; P: pages that there are.
    """
    used = tl.cdiv(length, PAGE)
    broken = ((length < 0) | (length > K) | (used > L) | (n > most)).to(tl.int32)
    for j in range(0, tl.where(broken > 0, 0, used), SCAN):
        o_page = j + tl.arange(0, SCAN)
        b_page = tl.load(p_pages + o_page, mask=o_page < used, other=0)
        m_missing = (b_page < 0) | (b_page >= P)
        broken = tl.maximum(broken, tl.max((m_missing & (o_page < used)).to(tl.int32), 0))
    return tl.where(broken > 0, -1, length)


@triton.jit
def item_rows(p_start, p_pages, p_offsets, p_lengths, i_b, most, Q, K, L, P, window, PAGE: tl.constexpr):
    """Of item i_b: number of its first row in a packed query, rows, keys, position of the first row among the keys.

    And what to add to its results: NaN if it can't be read, else 0.
    """
    poison = 0.0
    if PAGE > 0:
        first = tl.minimum(tl.maximum(tl.load(p_offsets + i_b), 0), Q)
        n = tl.minimum(tl.load(p_offsets + i_b + 1), Q) - first
        usable = usable_keys(p_pages, tl.load(p_lengths + i_b), n, most, K, L, P, PAGE)
        keys = tl.maximum(usable, 0)
        start = keys - n
        poison = tl.where(usable < 0, float("nan"), 0.0)
    else:
        first, n, keys = 0, Q, K
        if p_start is None:
            start = K - Q
        else:  # so far out that nothing changes any more, it fits 32 bits
            beyond = K if window is None else K + window
            start = tl.minimum(tl.maximum(tl.load(p_start + i_b), -Q), beyond).to(tl.int32)
    return first, n, keys, start, poison


@triton.jit
def reach(start, i_first, i_last, keys, window, CAUSAL: tl.constexpr):
    """Keys [low, high) that a row of i_first ... i_last sees by its position, and [all_low, all_high) that all do."""
    low, high, all_low, all_high = 0, keys, 0, keys
    if CAUSAL:
        high = tl.minimum(tl.maximum(start + i_last + 1, 0), keys)
        all_high = tl.minimum(tl.maximum(start + i_first + 1, 0), keys)
        if window is not None:
            low = tl.minimum(tl.maximum(start + i_first - window + 1, 0), high)
            all_low = tl.maximum(start + i_last - window + 1, 0)
    return low, high, all_low, all_high


@triton.jit
def tile_range(low, high, all_low, all_high, SPLIT: tl.constexpr, BN: tl.constexpr):
    """Tiles [low, high) of BN keys, or this program's share of them, and [all_low, all_high) among them."""
    low, high = low // BN, tl.cdiv(high, BN)
    if SPLIT:
        share = tl.cdiv(high - low, tl.num_programs(0))
        low += share * tl.program_id(0)
        high = tl.minimum(low + share, high)
    high = tl.maximum(low, high)
    all_low = tl.minimum(tl.maximum(tl.cdiv(all_low, BN), low), high)
    all_high = tl.minimum(tl.maximum(all_high // BN, all_low), high)
    return low, high, all_low, all_high


@triton.jit
def with_mates(low, high, b_row_group, p_group, keys):
    """[low, high) and all keys whose group lies between the least and the largest group of the rows."""
    m_group = b_row_group != 0
    if tl.max(m_group.to(tl.int32), 0) > 0:
        least = tl.min(tl.where(m_group, b_row_group, 2**62), 0)
        largest = tl.max(tl.where(m_group, b_row_group, -(2**62)), 0)
        for j in range(0, keys, SCAN):
            o_j = j + tl.arange(0, SCAN)
            b_group = tl.load(p_group + o_j, mask=o_j < keys, other=0)
            m_mate = (b_group != 0) & (b_group >= least) & (b_group <= largest)
            low = tl.minimum(low, tl.min(tl.where(m_mate, o_j, keys), 0))
            high = tl.maximum(high, tl.max(tl.where(m_mate, o_j + 1, 0), 0))
    return low, high


@triton.jit
def class_span(p_class, low, high):
    """The keys of [low, high) from the first of any class to the last, [first, last)."""
    first, last = high, low
    for j in range(low, high, SCAN):
        o_j = j + tl.arange(0, SCAN)
        m_class = tl.load(p_class + o_j, mask=o_j < high, other=0) > 0
        first = tl.minimum(first, tl.min(tl.where(m_class, o_j, high), 0))
        last = tl.maximum(last, tl.max(tl.where(m_class, o_j + 1, low), 0))
    return first, last


@triton.jit
def load_pages(p_pages, o_j, keys, PAGE: tl.constexpr):
    """Pages [BN] of keys o_j; nothing of meaning in a dense cache."""
    if PAGE > 0:
        b_page = tl.load(p_pages + o_j // PAGE, mask=o_j < keys, other=0)
    else:
        b_page = o_j
    return b_page


@triton.jit
def key_offsets(b_page, o_j, per_page, per_slot, PAGE: tl.constexpr):
    """Places [BN] of keys o_j in their cache."""
    if PAGE > 0:
        b_offset = b_page.to(tl.int64) * per_page + (o_j % PAGE).to(tl.int64) * per_slot
    else:
        b_offset = o_j.to(tl.int64) * per_slot
    return b_offset
