"""Compile calibrated attention for devices that are not here: every row of its launch tables, see `gpu_compile`.

Tiles depend on the device and on the inputs' type, so that a class is a use of the kernel and a width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
from triton.compiler import ASTSource

from bench.gpu_compile import TARGETS
from guardcore.triton_kernels.calibrated_attention_kernels import attention_kernel, merge_kernel
from guardcore.triton_kernels.calibrated_attention_tables import MERGE_WARPS, SPLITS, WIDTHS, Tile, tile_for

ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2}
TYPES = {
    "p_class": "*u8", "p_rule": "*fp32", "p_row_mask": "*u8", "p_key_mask": "*u8", "p_group": "*i64",
    "p_start": "*i64", "p_pages": "*i32", "p_offsets": "*i32", "p_lengths": "*i32", "p_lse": "*fp32",
    "p_mass": "*fp32", "p_part": "*fp32", "p_part_lse": "*fp32", "scale": "fp32", "softcap": "fp32",
}  # fmt: skip
ALIGNED = ("D", "q_b", "q_h", "q_i", "k_b", "k_h", "k_j", "v_b", "v_h", "v_j")
DENSE = dict.fromkeys(("p_pages", "p_offsets", "p_lengths")) | {"PAGE": 0}
PAGED = dict.fromkeys(("p_key_mask", "p_group", "p_start")) | {"PAGE": 16}
WHOLE = {"PACK": 1, "SPLIT": False}
PLAIN = {"p_group": None, "p_mass": None, "BG": 1}


class Use(NamedTuple):
    """How the kernel is called: its constants, with the tile of few rows or not, and at most how many rows."""

    constants: dict[str, Any]
    few: bool
    rows: int = 128


# Each with causality, window, softcap and row_mask, and what masks it may have: the larger code
USES = {
    "block": Use(DENSE | WHOLE | PLAIN, few=False),
    "paged-block": Use(PAGED | WHOLE | PLAIN, few=False),
    "marked": Use(DENSE | WHOLE | {"BG": 8}, few=True),
    "few": Use(DENSE | PLAIN | {"PACK": 4, "SPLIT": True}, few=True),
    "decode": Use(PAGED | PLAIN | {"PACK": 8, "SPLIT": True}, few=True, rows=16),
}


def matrix() -> list[tuple[str, str, str]]:
    """All (target, dtype, class): three uses of every width, the others and float16 of the common one."""
    every = [f"{use}-{width}" for width in WIDTHS for use in ("block", "marked", "decode")]
    common = [f"{use}-128" for use in USES]
    classes = [("fp32", name) for name in dict.fromkeys(every + common)]
    classes += [("bf16", name) for _, name in classes] + [("fp16", name) for name in common]
    return [(target, *cell) for target in TARGETS for cell in (*classes, ("fp32", "merge-512"), ("bf16", "merge-512"))]


def tile_of(name: str, dtype: str, target: str) -> Tile:
    """The tile of a class, with the rows that its use takes."""
    use, width = USES[name.rpartition("-")[0]], int(name.rpartition("-")[2])
    tile = tile_for(width, ITEMSIZE[dtype], target, few=use.few)
    return tile._replace(rows=min(tile.rows, use.rows))


def compile_class(name: str, dtype: str, target: str) -> Any:
    """Compile a class as the launcher would."""
    if name.startswith("merge"):
        constants = {"PAGED": False, "BS": SPLITS, "BD": int(name.rpartition("-")[2])}
        return _compile(merge_kernel, constants, dtype, target, warps=MERGE_WARPS, stages=2)
    tile, amd = tile_of(name, dtype, target), TARGETS[target].gpu.backend == "hip"
    constants = USES[name.rpartition("-")[0]].constants | {"CAUSAL": True, "q_d": 1, "k_d": 1, "v_d": 1}
    constants |= {"BM": tile.rows, "BN": tile.keys, "BD": int(name.rpartition("-")[2]), "BC": tile.depth}
    constants |= {"PRECISION": "ieee" if amd else "tf32x3"}
    more = {} if amd else {"maxnreg": 255}
    return _compile(attention_kernel, constants, dtype, target, warps=tile.warps, stages=tile.stages, **more)


def _compile(
    function: Any, constants: dict[str, Any], dtype: str, target: str, warps: int, stages: int, **options: int
) -> Any:
    names = function.arg_names
    types = TYPES | dict.fromkeys(("p_q", "p_k", "p_v", "p_out"), f"*{dtype}")
    if constants.get("SPLIT"):
        types["p_out"] = "*fp32"
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*") or name in ALIGNED]
    aligned = [i for i in aligned if signature[names[i]] != "constexpr"]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    wanted = {"num_warps": warps, "num_stages": stages, **options}
    return triton.compile(source, target=TARGETS[target].gpu, options=wanted)
