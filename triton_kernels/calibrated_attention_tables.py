"""Launch tables of calibrated attention: the tile of every width, dtype and device, and how far keys are split."""

from typing import NamedTuple

import torch
import triton

PROGRAMS = 296  # programs wanted at once: 2 on each of 148 processors (B200; H100 has 132)
SPLIT_KEYS = 256  # a range of keys is not shorter: its result costs as much as 2 keys to write and to merge
SPLITS = 64  # nor are there more of them
MASSES = 2048  # of a block's rows and classes, at most
MERGE_WARPS = 8


class Tile(NamedTuple):
    """Rows and keys of a tile, warps, loads in flight, and how many numbers of a head are multiplied at once."""

    rows: int
    keys: int
    warps: int
    stages: int
    depth: int


Table = dict[int, Tile]

# By padded width of a head. Compiled by tests/triton for five devices, on none of which a register is spilled; timed on
# none so far. A block of rows of a prefill, for inputs of 2 and of 4 bytes:
BLOCKS: dict[int, Table] = {
    2: {
        64: Tile(128, 32, 8, 2, 64),
        128: Tile(128, 32, 8, 2, 128),
        256: Tile(32, 32, 8, 2, 64),
        512: Tile(16, 16, 8, 2, 64),
    },
    4: {
        64: Tile(32, 32, 8, 2, 32),
        128: Tile(32, 16, 8, 2, 32),
        256: Tile(32, 16, 8, 2, 32),
        512: Tile(16, 16, 8, 2, 32),
    },
}
# A few rows with all heads of their key-value head, and blocks with key groups or masses, which take registers
FEW: dict[int, Table] = {
    2: {
        64: Tile(32, 32, 4, 2, 64),
        128: Tile(32, 32, 4, 2, 128),
        256: Tile(32, 16, 8, 2, 64),
        512: Tile(16, 16, 8, 2, 64),
    },
    4: {
        64: Tile(16, 32, 4, 2, 32),
        128: Tile(16, 32, 8, 2, 32),
        256: Tile(16, 16, 8, 2, 32),
        512: Tile(16, 16, 8, 2, 32),
    },
}
# Where a device takes larger blocks, or only smaller ones
BLOCKS_OF: dict[tuple[str, int], Table] = {
    ("sm_80", 2): {128: Tile(64, 32, 8, 2, 128)},
    ("sm_90", 2): {64: Tile(128, 64, 8, 2, 64), 256: Tile(64, 32, 8, 2, 64)},
    ("gfx942", 2): {64: Tile(64, 64, 4, 2, 64), 128: Tile(64, 64, 4, 2, 128)},
    ("gfx942", 4): {128: Tile(32, 16, 4, 2, 32)},
}
FEW_OF: dict[tuple[str, int], Table] = {
    ("sm_100", 2): {256: Tile(16, 32, 8, 2, 64), 512: Tile(16, 16, 8, 2, 32)},
    ("sm_120", 2): {512: Tile(16, 16, 8, 2, 32)},
}
WIDTHS = tuple(BLOCKS[2])


def device_class(device: torch.device) -> str:
    """The row of the tables for a device: the nearest that has no more shared memory."""
    if torch.version.hip:
        return "gfx942"
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)
    families = {9: "sm_90", 10: "sm_100"}
    return families.get(capability[0], "sm_80" if capability in ((8, 0), (8, 7)) else "sm_120")


def width_of(D: int) -> int:
    """The narrowest padded width that holds D numbers."""
    for width in WIDTHS:
        if width >= D:
            return width
    raise ValueError(f"query: heads at most {WIDTHS[-1]} wide on CUDA, got {D}")


def tile_for(width: int, itemsize: int, device: str, *, few: bool) -> Tile:
    """The tile of a padded width and inputs of `itemsize` bytes."""
    table, exceptions = (FEW, FEW_OF) if few else (BLOCKS, BLOCKS_OF)
    return exceptions.get((device, itemsize), {}).get(width, table[itemsize][width])


def rows_of(tile: Tile, rows: int, classes: int) -> int:
    """Rows of a block: fewer where an item has no more, or where the masses of many classes take registers."""
    most = min(tile.rows, max(16, MASSES // triton.next_power_of_2(classes)))
    return min(most, max(16, triton.next_power_of_2(rows)))


def splits_for(K: int, units: int) -> int:
    """Ranges to make of the K keys of every unit: enough to fill the device, none too short."""
    return max(1, min(triton.cdiv(PROGRAMS, max(units, 1)), K // SPLIT_KEYS, SPLITS))


def registers_option() -> dict[str, int]:
    """All of a thread's registers: left alone, ptxas spills a few of these kernels to fit more of them at once."""
    return {} if torch.version.hip else {"maxnreg": 255}
