"""Attention whose scores follow a rule on the keys of chosen classes: the definition.

Scores of a row i and a key j that it sees, in this order:

    s  = scale <q_i, k_j>
    s  = softcap tanh(s / softcap)                                                      if softcap is given
    s' = s + linear[h, g] relu(s) + quadratic[h, g] relu(s)^2 + additive[h, g]          rows calibrated, class g > 0
    p  = softmax_j(s')

linear = gamma is GuardAlign's gated reading, quadratic = gamma sqrt(D) its equations 13 and 14 as printed (Zhu et al.
2026, arXiv 2602.24027); additive = log gamma multiplies the softmax by gamma and renormalizes it, as PASTA does (Zhang
et al. 2023, arXiv 2311.02262). additive = -inf removes a class.

Everything is computed in float64 where the device has it, whatever the inputs, for one item and a block of rows at a
time: no tensor holds the scores of a whole query.

A bad value spoils what sees it and nothing else: rows that see a NaN are NaN, and keys that are hidden may hold it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from guardcore.reference.sinkhorn import full_precision, result_dtype, working

_ROWS = 64  # of a block; the scores of 32 heads and 4096 keys take 64 MiB then


class Attention(NamedTuple):
    """Attention of B items: the fields of `guardcore.ops.AttentionOutput`, mass[B, Hq, Q, 0] where it is not asked for.

    output[B, Hq, Q, D] has the query's dtype; lse[B, Hq, Q] and mass are float64 if that is, else float32.
    """

    output: Tensor
    lse: Tensor
    mass: Tensor


def calibrated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_class: Tensor,
    rule: Tensor,
    row_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    key_group: Tensor | None = None,
    query_start: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    return_mass: bool = False,
    *,
    rows: int = _ROWS,
) -> Attention:
    """Attend with query[B, Hq, Q, D] to key and value[B, Hkv, K, D] under rule[Hq, G, 3] or [B or 1, Hq, G, 3].

    See `guardcore.ops.calibrated_attention` for the arguments. A class of G or more gives NaN on the calibrated rows
    that see it. `rows` are computed at a time, which changes no result beyond rounding.
    """
    (B, Hq, Q, D), K, G = query.shape, key.shape[2], rule.shape[-2]
    scale = D**-0.5 if scale is None else scale
    row_mask = query.new_ones(B, Q, dtype=torch.bool) if row_mask is None else row_mask
    key_mask = query.new_ones(B, K, dtype=torch.bool) if key_mask is None else key_mask
    key_group = query.new_zeros(B, K, dtype=torch.int64) if key_group is None else key_group
    query_start = query.new_full((B,), K - Q, dtype=torch.int64) if query_start is None else query_start
    numbers = result_dtype(query)
    output, lse = torch.empty_like(query), query.new_empty(B, Hq, Q, dtype=numbers)
    mass = query.new_empty(B, Hq, Q, G if return_mass else 0, dtype=numbers)
    table = _table(working(rule)).expand(B, -1, -1, -1)
    for b in range(B):
        keys, values, kind = working(key[b]), working(value[b]), key_class[b].long().clamp(max=G)
        in_class = torch.nn.functional.one_hot(kind, G + 1)[:, : mass.shape[-1]].to(keys.dtype)
        for own in (slice(first, min(first + rows, Q)) for first in range(0, Q, rows)):
            position = query_start[b] + torch.arange(own.start, own.stop, device=query.device)
            seen = _seen(position, key_mask[b], key_group[b], is_causal, window)
            scores = _scores(working(query[b, :, own]), keys, scale, softcap)
            scores = torch.where(row_mask[b, own, None], _calibrated(scores, table[b, :, kind]), scores)
            scores = scores.masked_fill(~seen, -torch.inf)
            lse[b, :, own], share = _softmax(scores)
            output[b, :, own] = _average(share, scores, values)
            mass[b, :, own] = share @ in_class
    return Attention(output, lse, mass)


def _table(rule: Tensor) -> Tensor:
    """rule[..., Hq, G, 3] as [B or 1, Hq, G + 1, 3]: nothing happens to class 0, and NaN to a class there is not."""
    rule = rule if rule.dim() == 4 else rule.unsqueeze(0)
    return torch.cat((torch.zeros_like(rule[:, :, :1]), rule[:, :, 1:], torch.full_like(rule[:, :, :1], torch.nan)), 2)


def _seen(position: Tensor, key_mask: Tensor, key_group: Tensor, is_causal: bool, window: int | None) -> Tensor:
    """Which keys the rows at position[R] see: [R, K]."""
    if not is_causal:
        return key_mask.expand(len(position), -1)
    K = len(key_mask)
    back = position[:, None] - torch.arange(K, device=position.device)
    seen = back >= 0 if window is None else (back >= 0) & (back < window)
    if K > 0:
        inside = (position >= 0) & (position < K)
        group = torch.where(inside, key_group[position.clamp(0, K - 1)], 0)[:, None]
        seen = seen | ((group != 0) & (group == key_group))
    return seen & key_mask


def _scores(query: Tensor, key: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Scores before the rule: query[Hq, R, D] and key[Hkv, K, D] to [Hq, R, K]."""
    with full_precision(query.device):
        scores = scale * _by_group(query, key.transpose(1, 2))
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def _calibrated(scores: Tensor, rule: Tensor) -> Tensor:
    """The rule[Hq, K, 3] of every key on scores[Hq, R, K]."""
    linear, quadratic, additive = rule.unsqueeze(1).unbind(-1)
    positive = scores.relu()
    return scores + linear * positive + quadratic * positive.square() + additive


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp [...] and shares [..., K] of scores[..., K]; -inf and zeros where all are -inf."""
    lse = scores.logsumexp(-1)
    return lse, (scores - lse.masked_fill(lse == -torch.inf, 0).unsqueeze(-1)).exp()


def _average(share: Tensor, scores: Tensor, value: Tensor) -> Tensor:
    """Sum value[Hkv, K, D] with share[Hq, R, K]; NaN where a value with weight is not finite: [Hq, R, D]."""
    bad = ~value.isfinite()
    with full_precision(value.device):
        average = _by_group(share, value.masked_fill(bad, 0))
        if bool(bad.any()):  # not by 0 * NaN: a key without weight must not matter
            seen = _by_group((scores > -torch.inf).to(share), bad.to(share)) > 0
            average = average.masked_fill(seen, torch.nan)
    return average


def _by_group(left: Tensor, right: Tensor) -> Tensor:
    """left[Hq, R, X] times right[Hkv, X, Y], each of whose heads serves Hq / Hkv neighbors: [Hq, R, Y]."""
    (Hq, R, X), Hkv = left.shape, len(right)
    return torch.bmm(left.reshape(Hkv, Hq // Hkv * R, X), right).reshape(Hq, R, right.shape[-1])
