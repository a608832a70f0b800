"""What the rows of a forward pass see, read off the arguments that the host makes its attention mask from.

transformers describes a mask by a function visible(item, head, row, key) of absolute slots, a 2-D padding mask and the
sizes of the pass. Calibrated attention takes causality, a window, groups of keys that see each other (the patches of a
picture in some models) and hidden keys. Window and groups are read off the function; then both are compared on pairs
of slots, and a function that says anything else is a problem that names itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
_PAIRS = 4096  # of row and key that are compared; all of them where there are no more


@dataclass(frozen=True, eq=False)
class Visibility:
    """Who sees whom in one forward pass, in the terms of `guardcore.ops.calibrated_attention`.

    Attributes:
        batch, rows, keys: sizes B, Q and K of the pass.
        row_offset: absolute slot of row 0, a tensor [] where the host keeps it on the device.
        key_offset: absolute slot of key 0; not 0 where a cache forgot what left the window.
        query_start: [B] int64, slot of row 0 among the keys; None where the last row is at the last key.
        key_mask: [B, K] bool, False for padding; None where nothing is padded.
        key_group: [B, K] int64, equal and not 0 for keys that see each other whatever causality says; None without.
        window: a row sees the last `window` keys up to its own; None is all.
        problem: why this can't be expressed; None if it can.
    """

    batch: int
    rows: int
    keys: int
    row_offset: int | Tensor
    key_offset: int
    query_start: Tensor | None
    key_mask: Tensor | None
    key_group: Tensor | None
    window: int | None
    problem: str | None


def visibility_reader(causal: MaskFunction) -> Callable[[Mapping[str, Any], bool], Visibility]:
    """A function that reads the arguments of a mask function of transformers' AttentionMaskInterface.

    It takes those arguments (batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask, ...)
    and whether the reading is to be compared with the host's function, which waits for the device.

    Args:
        causal: the host's function for plain causality, which needs no look.
    """
    # Closures and random pairs mean nothing to a tracer: models with such masks get a graph break there. Not made at
    # import, because it brings torch's compiler along.
    outside_graph = torch.compiler.disable(_read)  # type: ignore[no-untyped-call]

    def read(arguments: Mapping[str, Any], compare: bool) -> Visibility:
        plain = arguments["mask_function"] is causal
        if not plain and torch.compiler.is_compiling():
            return outside_graph(arguments, plain, compare)
        return _read(arguments, plain, compare)

    return read


def _read(arguments: Mapping[str, Any], plain: bool, compare: bool) -> Visibility:
    batch, rows, keys = arguments["batch_size"], arguments["q_length"], arguments["kv_length"]
    row_offset, key_offset = arguments.get("q_offset", 0), arguments.get("kv_offset", 0)
    visible: MaskFunction = arguments["mask_function"]
    device = torch.device(arguments.get("device", "cpu"))
    found = Visibility(
        batch, rows, keys, row_offset, key_offset,
        _query_start(batch, rows, keys, row_offset, key_offset, device),
        _key_mask(arguments.get("attention_mask"), keys, key_offset),
        key_group=None, window=None, problem=None,
    )  # fmt: skip
    return found if plain else _look(found, visible, arguments.get("local_size"), compare, device)


def _look(
    found: Visibility, visible: MaskFunction, local_size: int | None, compare: bool, device: torch.device
) -> Visibility:
    """Add what the host's function says beyond causality: window and groups, or the problem with it."""
    try:
        # A single row is the newest: what a group could show it, causality shows already.
        group = _key_group(visible, found, device) if found.rows > 1 else None
        found = replace(found, key_group=group, window=_window(visible, local_size))
        return replace(found, problem=_difference(found, visible, device) if compare else None)
    except (IndexError, RuntimeError, TypeError) as error:
        return replace(found, problem=f"its mask function can't be asked about pairs ({type(error).__name__}: {error})")


def _query_start(
    batch: int, rows: int, keys: int, row_offset: int | Tensor, key_offset: int, device: torch.device
) -> Tensor | None:
    if isinstance(row_offset, Tensor):
        # A new tensor: static caches advance theirs in place before the layers attend.
        return (row_offset.to(device) - key_offset).reshape(1).expand(batch)
    if row_offset + rows == key_offset + keys:
        return None
    return torch.full((batch,), row_offset - key_offset, dtype=torch.int64, device=device)


def _key_mask(padding: Tensor | None, keys: int, key_offset: int) -> Tensor | None:
    """[B, K] of the 2-D mask[B, slots]; slots beyond it are not written yet, and hidden."""
    if padding is None:
        return None
    missing = max(0, key_offset + keys - padding.shape[1])
    return torch.nn.functional.pad(padding.bool(), (0, missing))[:, key_offset : key_offset + keys]


def _window(visible: MaskFunction, local_size: int | None) -> int | None:
    """The window that the host's function was built with; what it means is left to the comparison."""
    found = {value for name, value in _captured(visible) if name == "sliding_window" and isinstance(value, int)}
    return local_size if len(found) != 1 else found.pop()


def _captured(function: Any, depth: int = 8) -> Iterator[tuple[str, Any]]:
    """Names and values that a function closes over, and those of the functions among them."""
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    for name, cell in zip(code.co_freevars if code else (), cells or (), strict=True):
        yield name, cell.cell_contents
        inner = cell.cell_contents if isinstance(cell.cell_contents, tuple) else (cell.cell_contents,)
        if depth:
            for value in inner:
                yield from _captured(value, depth - 1)


def _key_group(visible: MaskFunction, found: Visibility, device: torch.device) -> Tensor | None:
    """Runs of neighbors of which the earlier sees the later, numbered from 1: [B, K] int64; None without any."""
    batch, pairs = found.batch, max(0, found.keys - 1)
    item = torch.arange(batch, device=device)[:, None].expand(-1, pairs)
    slot = torch.arange(found.key_offset, found.key_offset + pairs, device=device)[None].expand(batch, -1)
    joined = _asked(visible, item, slot, slot + 1)
    if not bool(joined.any()):
        return None
    edge = joined.new_zeros(batch, 1)
    with_previous, with_next = torch.cat((edge, joined), 1), torch.cat((joined, edge), 1)
    number = (with_next & ~with_previous).long().cumsum(1)
    return torch.where(with_next | with_previous, number, 0)


def _asked(visible: MaskFunction, item: Tensor, row: Tensor, key: Tensor) -> Tensor:
    """The host's function on pairs, all three of one shape."""
    answer = visible(item, torch.zeros_like(item), row, key)
    return answer.to(torch.bool).broadcast_to(item.shape)


def _difference(found: Visibility, visible: MaskFunction, device: torch.device) -> str | None:
    """Compare the reading with the host's function; a sentence at the first pair on which they differ."""
    item, row, key = (each.to(device) for each in _pairs(found))
    first = found.row_offset.to(device) if isinstance(found.row_offset, Tensor) else found.row_offset
    row, key = row + first, key + found.key_offset
    theirs = _asked(visible, item, row, key)
    wrong = (_seen(found, item, row, key) != theirs).nonzero()
    if not len(wrong):
        return None
    at = int(wrong[0])
    verb = "sees" if bool(theirs[at]) else "does not see"
    return (
        f"row {int(row[at])} of item {int(item[at])} {verb} key {int(key[at])}, which causality"
        f"{'' if found.window is None else f', a window of {found.window}'}"
        f"{'' if found.key_group is None else ' and blocks of pictures'} would not say"
    )


def _pairs(found: Visibility) -> tuple[Tensor, Tensor, Tensor]:
    """Items, rows and keys from 0: all pairs if they are few, else half of them at random and half near the edges."""
    B, Q, K = found.batch, found.rows, found.keys
    if B * Q * K <= _PAIRS:
        item, row, key = torch.meshgrid(torch.arange(B), torch.arange(Q), torch.arange(K), indexing="ij")
        return item.flatten(), row.flatten(), key.flatten()
    generator = torch.Generator().manual_seed(B * Q * K)
    item, row, key = (torch.randint(size, (_PAIRS,), generator=generator) for size in (B, Q, K))
    near = _PAIRS // 2
    window = found.window or 1
    edges = torch.tensor([0, 1, -1, -window, 1 - window, -window - 1])
    # Where the last row stands among the keys is not known without asking the device; K - Q is the usual place.
    key[:near] = row[:near] + (K - Q) + edges[torch.randint(len(edges), (near,), generator=generator)]
    return item, row, key.clamp(0, K - 1)


def _seen(found: Visibility, item: Tensor, row: Tensor, key: Tensor) -> Tensor:
    """Whether, by the reading, row sees key; padding apart, as in the host's function."""
    back = row - key
    seen = back >= 0 if found.window is None else (back >= 0) & (back < found.window)
    if found.key_group is None:
        return seen
    own = row - found.key_offset
    group = found.key_group[item, own.clamp(0, found.keys - 1)].where((own >= 0) & (own < found.keys), 0)
    return seen | ((group != 0) & (group == found.key_group[item, key - found.key_offset]))
