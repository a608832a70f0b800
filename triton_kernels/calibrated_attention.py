"""Attention with a score rule on chosen keys: the operator `guardcore::calibrated_attention`.

One kernel for all: a prefill takes blocks of rows of every query head; a few rows, as in decoding, are taken together
with all query heads of their key-value head, over ranges of the keys that a second kernel merges. Definition:
`guardcore.reference.calibrated_attention`; notation: `calibrated_attention_kernels`.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .calibrated_attention_kernels import attention_kernel, merge_kernel
from .calibrated_attention_tables import (
    MERGE_WARPS,
    Tile,
    device_class,
    registers_option,
    rows_of,
    splits_for,
    tile_for,
    width_of,
)
from .cosine import fp32_precision

LIMIT = 1 << 30  # a window beyond it is none
Results = tuple[Tensor, Tensor, Tensor]  # output, lse, mass


class Layout(NamedTuple):
    """Where B items have their rows and keys, dense or, if there is a table, in pages of `page` slots.

    rows: of an item, at most. all_rows, keys: of a dense item, or of the packed query and key_class.
    """

    B: int
    rows: int
    all_rows: int
    keys: int
    start: Tensor | None = None
    page: int = 0
    table: Tensor | None = None
    offsets: Tensor | None = None
    lengths: Tensor | None = None

    @property
    def total(self) -> int:
        """Rows of all items."""
        return self.all_rows if self.page > 0 else self.B * self.all_rows


class Options(NamedTuple):
    """The operator's numbers."""

    is_causal: bool
    scale: float
    window: int | None
    softcap: float | None
    return_mass: bool


def calibrated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_class: Tensor,
    rule: Tensor,
    row_mask: Tensor | None,
    key_mask: Tensor | None,
    key_group: Tensor | None,
    query_start: Tensor | None,
    *options: bool | float | None,
) -> Results:
    """Launch `guardcore::calibrated_attention`: see `guardcore.ops.calibrated_attention`."""
    (B, H, Q, D), K, settings = query.shape, key.shape[2], Options(*options)
    G = rule.shape[2] if settings.return_mass else 0
    numbers = {"dtype": torch.float32, "device": query.device}
    output = torch.empty(B, Q, H, D, dtype=query.dtype, device=query.device)
    results = (output, torch.empty(B, H, Q, **numbers), torch.empty(B, H, Q, G, **numbers))
    layout = Layout(B, Q, Q, K, None if query_start is None else query_start.contiguous())
    run((query, key, value), key_class, rule, (row_mask, key_mask, key_group), layout, settings, results)
    return results


def run(
    inputs: tuple[Tensor, Tensor, Tensor],
    key_class: Tensor,
    rule: Tensor,
    masks: tuple[Tensor | None, Tensor | None, Tensor | None],
    layout: Layout,
    options: Options,
    results: Results,
) -> None:
    """Launch what the sizes ask for. inputs: [item or page, head, row or slot, width]."""
    H, Hkv = inputs[0].shape[1], inputs[1].shape[1]
    shared, (row_mask, key_mask, key_group) = H // Hkv, masks
    tensors = (*inputs, key_class.contiguous(), rule.contiguous(), _bytes(row_mask), _bytes(key_mask))
    tensors += (None if key_group is None else key_group.contiguous(), layout.start)
    tensors += (layout.table, layout.offsets, layout.lengths)
    packed = layout.rows * shared <= _tile(inputs[0], few=True).rows
    splits = splits_for(layout.keys, layout.B * Hkv) if packed and not options.return_mass else 1
    empty, pack = layout.B * layout.rows * H == 0, shared if packed else 1
    with torch.cuda.device_of(inputs[0]):
        if splits > 1 and not empty:
            _attend_ranges(tensors, layout, options, results, pack, splits)
            return
        if layout.page > 0:
            _spoil(*results)
        if not empty:
            _attend(tensors, layout, options, results, pack)


def _attend_ranges(
    tensors: tuple[Tensor | None, ...], layout: Layout, options: Options, results: Results, pack: int, splits: int
) -> None:
    """Attend to `splits` ranges of the keys at once, and merge."""
    (output, lse, _), (H, _, D) = results, tensors[0].shape[1:]
    R = layout.total
    part = torch.empty(splits, R, H, D, dtype=torch.float32, device=output.device)
    part_lse = torch.empty(splits, R, H, dtype=torch.float32, device=output.device)
    if layout.page > 0:
        _spoil(part_lse)
    _attend(tensors, layout, options, (part, part_lse, results[2]), pack, splits)
    shape = {"PAGED": layout.page > 0, "BS": triton.next_power_of_2(splits), "BD": width_of(D)}
    sizes = (R, layout.all_rows, splits, H, D)
    merge_kernel[(R * H,)](part, part_lse, output, lse, *sizes, **shape, num_warps=MERGE_WARPS)


def _attend(
    tensors: tuple[Tensor | None, ...],
    layout: Layout,
    options: Options,
    results: Results,
    pack: int,
    splits: int = 0,
) -> None:
    query, key, value, _, rule = tensors[:5]
    (_, H, _, D), (items, Hkv, _, _), G = query.shape, key.shape, rule.shape[2]
    output, lse, mass = results
    strides = (*query.stride(), *key.stride(), *value.stride(), 0 if len(rule) == 1 else rule.stride(0))
    table_width = 0 if layout.table is None else layout.table.shape[1]
    sizes = (H, H // Hkv, G, layout.rows, layout.all_rows, layout.keys, table_width, items, D, layout.total)
    window = None if options.window is None else min(options.window, LIMIT)
    numbers = (options.scale, options.softcap, window)
    tile = _tile(query, few=pack > 1 or layout.rows <= 32 or options.return_mass or tensors[7] is not None)
    block = rows_of(tile, layout.rows * pack, G if options.return_mass else 1)
    shape = {"BM": block, "BN": tile.keys, "BD": width_of(D), "BC": tile.depth}
    shape |= {"num_warps": tile.warps, "num_stages": tile.stages}
    shape |= {"CAUSAL": options.is_causal, "PAGE": layout.page, "PACK": pack, "SPLIT": splits > 0}
    shape |= {"PRECISION": fp32_precision(), "BG": triton.next_power_of_2(G) if options.return_mass else 1}
    shape |= registers_option()
    grid = (splits or triton.cdiv(layout.rows * pack, block), H // pack, layout.B)
    targets = (output, lse, mass if options.return_mass else None)
    attention_kernel[grid](*tensors, *targets, *strides, *sizes, *numbers, **shape)


def _spoil(*results: Tensor) -> None:
    """NaN for rows that no program writes: those of no request, and of one with more than it may have."""
    for result in results:
        result.fill_(torch.nan)


def _tile(query: Tensor, *, few: bool) -> Tile:
    return tile_for(width_of(query.shape[-1]), query.element_size(), device_class(query.device), few=few)


def _bytes(mask: Tensor | None) -> Tensor | None:
    """A mask as the kernels read it."""
    return None if mask is None else mask.contiguous().view(torch.uint8)
