"""Calibrated attention over a paged cache: the operator `guardcore::calibrated_attention_paged`.

The kernels are those of `calibrated_attention`, which find the keys of a request in its pages. Definition:
`guardcore.reference.calibrated_attention_paged`.
"""

import torch
from torch import Tensor

from .calibrated_attention import Layout, Options, Results, run


def calibrated_attention_paged(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    page_table: Tensor,
    query_offsets: Tensor,
    key_lengths: Tensor,
    key_class: Tensor,
    rule: Tensor,
    row_mask: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    max_query_length: int,
    return_mass: bool,
) -> Results:
    """Launch `guardcore::calibrated_attention_paged`: see `guardcore.ops.calibrated_attention_paged`.

    Offsets and lengths stay on the device: every request gets as many programs as the longest may need.
    """
    (T, H, D), R, G = query.shape, len(key_lengths), rule.shape[2] if return_mass else 0
    numbers = {"dtype": torch.float32, "device": query.device}
    output = torch.empty(T, H, D, dtype=query.dtype, device=query.device)
    lse, mass = torch.empty(T, H, **numbers), torch.empty(T, H, G, **numbers)
    layout = Layout(
        B=R,
        rows=min(max_query_length, T),
        all_rows=T,
        keys=key_class.shape[1],
        page=key_cache.shape[1],
        table=page_table.contiguous(),
        offsets=query_offsets.contiguous(),
        lengths=key_lengths.contiguous(),
    )
    inputs = (query.transpose(0, 1).expand(R, H, T, D), key_cache.transpose(1, 2), value_cache.transpose(1, 2))
    options = Options(True, scale, window, softcap, return_mass)
    run(inputs, key_class, rule, (row_mask, None, None), layout, options, (output, lse, mass))
    return output, lse, mass
