"""Attention whose span gets at least a given share of every row: two calls of calibrated attention, merged."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from guardcore.ops.calibrated_attention import AttentionOutput, calibrated_attention
from guardcore.ops.checks import check_device, readable


def target_mass_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_class: Tensor,
    rule: Tensor,
    target: Tensor,
    row_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    key_group: Tensor | None = None,
    *,
    span_class: int = 1,
    is_causal: bool = False,
    query_start: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    return_mass: bool = False,
) -> AttentionOutput:
    """Calibrated attention that brings the span's share of every calibrated row from m to w = max(m, target).

    The span S and the rest R are attended to apart, and m = sigmoid(lse_S - lse_R). The scores of the span rise by the
    log gain of w (1 - m) / (m (1 - w)), which is the same as

        output = w output_S + (1 - w) output_R,      lse = lse_R - log(1 - w)     where m < target.

    Nothing cancels, so the share is exact however small or large m is. A row that sees no key of the span, or nothing
    else, stays as it is; so do uncalibrated rows. In half precision both parts are rounded before they are merged,
    which about doubles the error of calibrated attention.

    Args:
        query: [B, Hq, Q, D] float32, bfloat16 or float16.
        key: [B, Hkv, K, D], likewise.
        value: [B, Hkv, K, D], likewise.
        key_class: [B, K] uint8, below G.
        rule: [Hq, G, 3] or [B or 1, Hq, G, 3] float32; it acts before the shares are looked at.
        target: [1 or B, Hq] float32 in [0, 1), by query head; 0 asks for nothing.
        row_mask: [B, Q] bool, the rows that are calibrated; None is all.
        key_mask: [B, K] bool, False hides a key; None hides none.
        key_group: [B, K] int32 or int64: keys of equal nonzero group see each other in spite of causality.
        span_class: the span's class, 1 <= span_class < G.
        is_causal: row i sees no key behind its position.
        query_start: [B] int32 or int64, position of row 0; None is K - Q.
        scale: of the scores, finite, > 0; None is 1 / sqrt(D).
        window: how many keys a row sees, >= 1; needs is_causal.
        softcap: bound of the scores' size before the rule, finite, > 0; None is no bound.
        return_mass: whether `mass` is computed.

    Returns:
        AttentionOutput, as of calibrated attention: lse and mass include what the target adds.

    Raises:
        NotImplementedError, TypeError, ValueError: as calibrated attention; also a target of another shape, dtype or
            device, on the CPU one outside [0, 1), or a class that is not the rule's.

    Source: ours; the gain is that of Zhang et al. 2023 (arXiv 2311.02262) solved for the share.
    """
    _check(query, key, key_class, rule, target, span_class)
    inside = key_class == span_class
    seen = inside.new_ones(()) if key_mask is None else key_mask
    start = _start(query, key, query_start) if is_causal else None
    rest = calibrated_attention(
        query, key, value, key_class, rule, row_mask, seen & ~inside, key_group,
        is_causal=is_causal, query_start=start, scale=scale, window=window, softcap=softcap, return_mass=return_mass,
    )  # fmt: skip
    first, last = _bounds(inside) if key_group is None else (0, key.shape[2])
    own, shown = slice(first, last), seen & inside
    span = calibrated_attention(
        query, key[:, :, own], value[:, :, own], key_class[:, own], rule, row_mask, shown[:, own], key_group,
        is_causal=is_causal, query_start=None if start is None else start - first,
        scale=scale, window=window, softcap=softcap,
    )  # fmt: skip
    return _merged(rest, span, target, row_mask, span_class, query.dtype)


def _merged(
    rest: AttentionOutput,
    span: AttentionOutput,
    target: Tensor,
    row_mask: Tensor | None,
    span_class: int,
    dtype: torch.dtype,
) -> AttentionOutput:
    empty = span.lse == -math.inf
    odds = torch.where(empty, span.lse, span.lse - rest.lse)  # not -inf - -inf, where a row sees nothing at all
    share, other = torch.sigmoid(odds), torch.sigmoid(-odds)
    wanted = target.unsqueeze(-1)
    raised = (share < wanted) & ~empty
    if row_mask is not None:
        raised &= row_mask.unsqueeze(1)
    share, other = torch.where(raised, wanted, share), torch.where(raised, 1 - wanted, other)
    lse = torch.where(raised, rest.lse - torch.log1p(-wanted), torch.logaddexp(rest.lse, span.lse))
    # Rows come before heads in memory, as in the operator's own output.
    own, others = (weight.transpose(1, 2).contiguous().unsqueeze(-1) for weight in (share, other))
    output = own * span.output.transpose(1, 2).float() + others * rest.output.transpose(1, 2).float()
    mass = None if rest.mass is None else other.unsqueeze(-1) * rest.mass
    if mass is not None:
        mass[..., span_class] = share
    return AttentionOutput(output.to(dtype).transpose(1, 2), lse, mass)


def _start(query: Tensor, key: Tensor, query_start: Tensor | None) -> Tensor:
    """Positions of the first rows: what None stands for depends on the number of keys, and the span has fewer."""
    if query_start is not None:
        return query_start
    return torch.full((query.shape[0],), key.shape[2] - query.shape[2], dtype=torch.int64, device=query.device)


def _bounds(inside: Tensor) -> tuple[int, int]:
    """First key of the batch's spans and end of the last; all keys where looking would stop a GPU or a trace."""
    if not readable(inside):
        return 0, inside.shape[1]
    columns = inside.any(0).nonzero()
    return (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)


def _check(query: Tensor, key: Tensor, key_class: Tensor, rule: Tensor, target: Tensor, span_class: int) -> None:
    """Raise TypeError or ValueError at what calibrated attention does not look at."""
    if query.dim() != 4 or key.dim() != 4:
        raise ValueError(f"query and key must have 4 dimensions, got {query.dim()} and {key.dim()}")
    if key_class.dim() != 2 or key_class.shape[1] != key.shape[2]:
        raise ValueError(f"key_class must have shape {[query.shape[0], key.shape[2]]}, got {list(key_class.shape)}")
    B, Hq = query.shape[:2]
    if list(target.shape) not in ([1, Hq], [B, Hq]):
        raise ValueError(f"target must have shape [1, {Hq}] or [{B}, {Hq}], got {list(target.shape)}")
    if target.dtype != torch.float32:
        raise TypeError(f"target must be float32, got {target.dtype}")
    check_device("target", target, query)
    if readable(target) and not bool(((target >= 0) & (target < 1)).all()):
        raise ValueError(f"target must be in [0, 1), got {target.tolist()}")
    if rule.dim() >= 2 and not 1 <= span_class < rule.shape[-2]:
        raise ValueError(f"span_class must be 1 to {rule.shape[-2] - 1}, got {span_class}")
