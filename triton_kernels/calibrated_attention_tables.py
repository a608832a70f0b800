"""Launch tables of calibrated attention: the tile of every width and dtype, by device, and how far keys are split."""

import functools
from typing import NamedTuple

import torch
import triton

ROWS = 64  # at most so many rows of an item, heads of a key-value head together, are taken at once over split keys
PROGRAMS = 296  # programs wanted at once: 2 on each of 148 processors (B200; H100 has 132)
SPLIT_KEYS = 256  # a range of keys is not shorter: its result costs as much as 2 keys to write and to merge
SPLITS = 64  # nor are there more of them
MASSES = 4096  # of a block's rows and classes, at most


class Tile(NamedTuple):
    """Rows and keys of a tile, warps, and loads in flight."""

    rows: int
    keys: int
    warps: int
    stages: int


WIDTHS = (16, 32, 64, 128, 256, 512)  # of a head, padded
# By padded width, for inputs of 2 and of 4 bytes. Compiled by tests/triton for five devices, timed on none so far.
HALF = {width: Tile(64, 32, 4, 2) for width in WIDTHS}
FULL = {width: Tile(32, 32, 4, 2) for width in WIDTHS}


def width_of(D: int) -> int:
    """The narrowest padded width that holds D numbers."""
    for width in WIDTHS:
        if D <= width:
            return width
    raise ValueError(f"query: heads at most {WIDTHS[-1]} wide on CUDA, got {D}")


def tile_for(D: int, dtype: torch.dtype, device: torch.device) -> Tile:
    """The tile for heads of D numbers."""
    return (FULL if dtype == torch.float32 else HALF)[width_of(D)]


def rows_of(tile: Tile, rows: int, classes: int) -> int:
    """Rows of a block: fewer where an item has no more, or where the masses of many classes take registers."""
    most = min(tile.rows, max(16, MASSES // triton.next_power_of_2(classes)))
    return min(most, max(16, triton.next_power_of_2(rows)))


def splits_for(K: int, units: int) -> int:
    """Ranges of K keys to make of every unit's: enough to fill the device, none too short."""
    return max(1, min(triton.cdiv(PROGRAMS, max(units, 1)), K // SPLIT_KEYS, SPLITS))
