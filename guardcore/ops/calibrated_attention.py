"""Attention with a score rule on chosen keys, inside flash-style blocks: guardcore::calibrated_attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from guardcore import reference
from guardcore.ops import attention_checks, gradient
from guardcore.ops.registration import Operator, Shape, register

_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor key_class, Tensor rule, Tensor? row_mask, Tensor? key_mask, "
    "Tensor? key_group, Tensor? query_start, bool is_causal, float scale, int? window, float? softcap, bool return_mass"
)


class AttentionOutput(NamedTuple):
    """Attention of B items, without gradients.

    output[B, Hq, Q, D] in the query's dtype; its memory is in the order B, Q, Hq, D, so that output.transpose(1, 2)
    is contiguous. lse[B, Hq, Q] float32: natural logarithm of the sum over keys of exp(score), the rule included.
    mass[B, Hq, Q, G] float32, None where it was not asked for: share of a row's attention, 0 ... 1, that the keys of
    each class get; sums to 1 over the classes. `calibrated_attention_paged` has rows first: output[T, Hq, D],
    lse[T, Hq], mass[T, Hq, G].
    """

    output: Tensor
    lse: Tensor
    mass: Tensor | None


def calibrated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_class: Tensor,
    rule: Tensor,
    row_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    key_group: Tensor | None = None,
    *,
    is_causal: bool = False,
    query_start: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    return_mass: bool = False,
) -> AttentionOutput:
    """Softmax attention whose scores follow a rule on the keys of chosen classes; no [Q, K] tensor is ever made.

    With s = scale <q_i, k_j>, after softcap tanh(s / softcap) if given: where row i is calibrated and key j has a class
    g > 0,

        s' = s + linear[h, g] relu(s) + quadratic[h, g] relu(s)^2 + additive[h, g]

    takes the place of s. linear = gamma is GuardAlign's gate, quadratic = gamma sqrt(D) its equations as printed;
    additive = log gain multiplies a key's attention by gain before the row is normalized again, -inf removes the class.
    To bring a span from a share m of the attention (`mass` under a zero rule) to a share t: gain = t (1 - m) / (m
    (1 - t)).

    Args:
        query: [B, Hq, Q, D] float32, bfloat16 or float16, with any strides.
        key: [B, Hkv, K, D], same dtype and device; Hq is a multiple of Hkv, query head h reads head h Hkv // Hq.
        value: [B, Hkv, K, D], likewise.
        key_class: [B, K] uint8, below G; 0 is untouched.
        rule: [Hq, G, 3] or, by item, [B, Hq, G, 3] float32: linear, quadratic, additive of every query head and class.
            Finite, but for additive = -inf. Class 0's entries mean nothing. 1 <= G <= 256.
        row_mask: [B, Q] bool, the rows that are calibrated; None is all. The others are plain attention.
        key_mask: [B, K] bool, False hides a key, whatever it holds; None hides none.
        key_group: [B, K] int32 or int64: keys of equal nonzero group see each other in spite of causality and window,
            as the patches of an image do in some models. Row i has the group of the key at its own position.
        is_causal: row i sees no key behind its position.
        query_start: [B] int32 or int64, position of row 0 among the keys; None is K - Q (bottom-right causality).
        scale: of the scores, finite, > 0; None is 1 / sqrt(D).
        window: row i sees the last `window` >= 1 keys up to its position; needs is_causal.
        softcap: bound of the scores' size before the rule, finite, > 0; None is no bound.
        return_mass: whether `mass` is computed.

    Returns:
        AttentionOutput. A row that sees no key, or removed ones only, has output 0, lse -inf and mass 0. A NaN in a
        query's row, or in a key or value that a row sees, makes that row NaN; other items are untouched. Whether a NaN
        in a removed key shows is left open.

    Raises:
        NotImplementedError: in backward, and for tangents (forward-mode derivatives, not looked for in compiled
            programs): inference only.
        TypeError: a wrong dtype.
        ValueError: a wrong shape, device or option; on the CPU a class of G or more (NaN on CUDA) and a rule that is
            not finite.

    Source: Zhu et al. 2026 (arXiv 2602.24027), equations 12 to 14; Zhang et al. 2023 (arXiv 2311.02262) for gains.
    """
    options = (is_causal, scale, window, softcap, return_mass)
    tensors = (query, key, value, key_class, rule, row_mask, key_mask, key_group, query_start)
    attention_checks.check_attention(*tensors, *options)
    attention_checks.check_attention_values(key_class, rule)
    attention_checks.check_no_tangent(query=query, key=key, value=value, rule=rule)
    output, lse, mass = torch.ops.guardcore.calibrated_attention(
        query,
        key,
        value,
        key_class,
        rule if rule.dim() == 4 else rule.unsqueeze(0),
        row_mask,
        key_mask,
        None if key_group is None else key_group.long(),
        None if query_start is None else query_start.long(),
        is_causal,
        query.shape[-1] ** -0.5 if scale is None else scale,
        window,
        softcap,
        return_mass,
    )
    return AttentionOutput(output.transpose(1, 2), lse, mass if return_mass else None)


def _definition(*arguments: Any) -> tuple[Tensor, ...]:
    """The definition with its output laid out as the kernels lay theirs: [B, Q, Hq, D]."""
    output, lse, mass = reference.calibrated_attention(*arguments)
    return output.transpose(1, 2).contiguous(), lse, mass


def _check(*arguments: Any) -> None:
    attention_checks.check_attention(*arguments)
    rule: Tensor = arguments[4]
    if rule.dim() != 4:
        raise ValueError(f"rule must have shape [1 or B, Hq, G, 3], got {list(rule.shape)}")


def _shapes(query: Tensor, _key: Tensor, _value: Tensor, _class: Tensor, rule: Tensor, *rest: Any) -> tuple[Shape, ...]:
    (B, Hq, Q, D), return_mass = query.shape, rest[-1]
    return (B, Q, Hq, D), (B, Hq, Q), (B, Hq, Q, rule.shape[-2] if return_mass else 0)


register(
    Operator(
        name="calibrated_attention",
        inputs=_INPUTS,
        outputs={"output": None, "lse": torch.float32, "mass": torch.float32},
        definition=_definition,
        kernels="calibrated_attention",
        check=_check,
        shapes=_shapes,
        autograd=gradient.INFERENCE_ONLY,
    )
)
