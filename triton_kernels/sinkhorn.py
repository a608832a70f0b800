"""Entropic transport of every item's patches to every category's prototypes: the operator `guardcore::sinkhorn`.

Two kernels, both one launch for the whole batch, after one that finds the rows' lengths. A problem of at most 256
patches and 32 prototypes is solved in registers by one program; a larger one by sweeps over a workspace of its scaled
cosines, whose size is bounded by letting a program take several categories in turn. Definition:
`guardcore.reference.sinkhorn`; notation: `sweeps`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .batch import Batch, batch_of, damping, rows, shape_of, streams_half, weights
from .cosine import product_kind, write_row_scales
from .screening import NO_SCREENING, rounding_share, rounding_slack
from .sinkhorn_kernels import register_kernel, stream_kernel
from .sweeps import stream_for
from .workspace import carve, numel

Plan = tuple[Tensor, ...]


class Tile(NamedTuple):
    """A register-resident problem of at most `rows` patches and `width` prototypes."""

    rows: int
    width: int
    warps: int


# q and K take rows x width / (32 warps) registers each, 32 + 32 in all but the first, which no target spills. At twice
# the warps ptxas keeps to 128 registers, and 64 x 32 spills on sm_120, 256 x 16 on sm_100. Compiled by tests/triton for
# five devices, timed on none so far.
TILES = (
    Tile(rows=64, width=16, warps=4),
    Tile(rows=64, width=32, warps=2),
    Tile(rows=256, width=16, warps=4),
    Tile(rows=256, width=32, warps=8),
)
PROGRAMS = 296  # streaming programs wanted at once: 2 on each of 148 processors (B200; H100 has 132)
WORKSPACE_BYTES = 64 << 20  # beyond this, fewer categories run at once; one category of all items always fits


class Screening(NamedTuple):
    """What pairs are screened by (`screening`): threshold[C], and where cleared[B, C] uint8 and bound[B, C] go."""

    threshold: Tensor
    cleared: Tensor
    bound: Tensor
    statistic: int


class Options(NamedTuple):
    """The operator's numbers."""

    epsilon: float
    max_iterations: int
    tolerance: float
    relaxation: float | None


def sinkhorn(patches: Tensor, prototypes: Tensor, *rest: Any) -> Plan:
    """Launch `guardcore::sinkhorn`, patches[B, N, D] and prototypes[C, M, D]: see `guardcore.ops.sinkhorn`."""
    B, N, _ = patches.shape
    plan = empty_plan(prototypes, B, (B, len(prototypes), N))
    return with_workspace(patches, None, prototypes, rest, plan)


def sinkhorn_packed(patches: Tensor, cu_seqlens: Tensor, prototypes: Tensor, *rest: Any) -> Plan:
    """Launch `guardcore::sinkhorn_packed`, patches[T, D] and cu_seqlens[B + 1]: see `guardcore.ops.sinkhorn_packed`.

    Lengths stay on the device: both kernels run, and each takes the items of its size.
    """
    plan = empty_plan(prototypes, len(cu_seqlens) - 1, (len(prototypes), len(patches)))
    return with_workspace(patches, cu_seqlens, prototypes, rest, plan)


def sinkhorn_out(patches: Tensor, prototypes: Tensor, *rest: Any) -> None:
    """`sinkhorn` into the operator's results and a workspace, which come last: allocates nothing, waits for nothing."""
    run(batch_of(patches, None), prototypes, rest[:2], Options(*rest[2:6]), rest[6:14], rest[14])


def sinkhorn_packed_out(patches: Tensor, cu_seqlens: Tensor, prototypes: Tensor, *rest: Any) -> None:
    """`sinkhorn_packed` as `sinkhorn_out`."""
    run(batch_of(patches, cu_seqlens), prototypes, rest[:2], Options(*rest[2:6]), rest[6:14], rest[14])


def workspace_numel(patches: Tensor, prototypes: Tensor, cu_seqlens: Tensor | None = None) -> int:
    """Float32 numbers that a launch on tensors of these shapes and dtypes needs as its workspace."""
    return numel(_sections(shape_of(patches, cu_seqlens), prototypes))


def empty_plan(prototypes: Tensor, B: int, per_patch: tuple[int, ...]) -> Plan:
    """The operator's results, without values."""
    C, M, _ = prototypes.shape
    empty: Callable[..., Tensor] = torch.empty
    shapes = ((B, C), per_patch, per_patch, (B, C), (B, C), (B, C), per_patch, (B, C, M))
    dtypes = (torch.int32 if i == 4 else torch.float32 for i in range(len(shapes)))
    return tuple(
        empty(shape, dtype=dtype, device=prototypes.device) for shape, dtype in zip(shapes, dtypes, strict=True)
    )


def with_workspace(
    patches: Tensor,
    cu_seqlens: Tensor | None,
    prototypes: Tensor,
    rest: tuple[Any, ...],
    plan: Plan,
    screening: Screening | None = None,
) -> Plan:
    """Run on a workspace of its own and give the plan back; rest: two weights and the options."""
    batch, prototypes = batch_of(rows(patches), cu_seqlens), rows(prototypes)
    floats = numel(_sections(batch, prototypes))
    workspace = torch.empty(floats, dtype=torch.float32, device=prototypes.device)
    run(batch, prototypes, tuple(map(weights, rest[:2])), Options(*rest[2:]), plan, workspace, screening)
    return plan


def run(
    batch: Batch,
    prototypes: Tensor,
    marginals: tuple[Tensor | None, ...],
    options: Options,
    plan: Plan,
    workspace: Tensor,
    screening: Screening | None = None,
) -> None:
    """Launch the kernels that the sizes ask for."""
    C, M, D = prototypes.shape
    if batch.B * C == 0:
        return
    bank = prototypes.view(C * M, D)
    x_scale, y_scale, *streamed = carve(workspace, _sections(batch, prototypes))
    # unscreened calls hand over pointers of the same types, so that both run the same binary
    screened = screening or Screening(plan[0], plan[4].view(torch.uint8), plan[5], NO_SCREENING)
    inputs = (batch.rows, x_scale, bank, y_scale, batch.offsets, *marginals, *screened[:3])
    sizes = (batch.N, len(batch.rows), M, C, D)
    with torch.cuda.device_of(bank):
        write_row_scales(batch.rows, x_scale, bank, y_scale)
        numbers = (*sizes, *_numbers(options, M, D, streams_half(batch, prototypes), screened.statistic))
        _run_solvers(batch, inputs, streamed, plan, numbers)


def tile_for(rows: int, width: int) -> Tile | None:
    """The smallest register tile for problems of `rows` x `width`, or None."""
    return next((tile for tile in TILES if rows <= tile.rows and width <= tile.width), None)


def register_tile(batch: Batch, M: int) -> Tile | None:
    """The tile that solves the batch, or the packed items that fit."""
    return tile_for(batch.N if batch.offsets is None else min(batch.N, TILES[-1].rows), M)


def categories_at_once(B: int, C: int, rows: int, row_bytes: int) -> int:
    """Programs an item: enough to fill the device, as few as the workspace's bound asks."""
    return max(1, min(C, triton.cdiv(PROGRAMS, B), WORKSPACE_BYTES // max(1, rows * row_bytes)))


def _numbers(options: Options, M: int, D: int, half: bool, statistic: int) -> tuple[float, ...]:
    epsilon, max_iterations, tolerance, relaxation = options
    exponent = damping(relaxation, epsilon)
    bounds = (rounding_slack(D, M), rounding_share(M, epsilon, half))
    return (epsilon, max_iterations, tolerance, relaxation or 0.0, exponent, statistic, *bounds)


def _sections(batch: Batch, prototypes: Tensor) -> tuple[int, ...]:
    """Sizes of the workspace's sections: scales of both inputs, q, K, its tops and row logarithms."""
    (C, M, _), X = prototypes.shape, len(batch.rows)
    scales = (2 * X, 2 * C * M)
    tile = register_tile(batch, M)
    if batch.B * C == 0 or (tile is not None and tile.rows >= batch.N):
        return (*scales, 0, 0, 0, 0)
    width, half = stream_for(M, "prototypes").width, streams_half(batch, prototypes)
    S = categories_at_once(batch.B, C, X, width * (6 if half else 4))
    return (*scales, S * X * width, S * X * width // 2 if half else 0, S * X if half else 0, S * X * 2)


def _run_solvers(
    batch: Batch, inputs: tuple[Tensor | None, ...], streamed: list[Tensor], plan: Plan, numbers: tuple[float, ...]
) -> None:
    (patches, _, bank), (_, X, M, C) = inputs[:3], numbers[:4]
    kinds = product_kind(patches, bank) | {"PACKED": batch.offsets is not None}
    tile = register_tile(batch, M)
    if tile is not None:
        shape = {"BN": tile.rows, "BM": tile.width, "num_warps": tile.warps, "num_stages": 2}
        register_kernel[(batch.B, C)](*inputs, *plan, *numbers, **kinds, **shape)
    if tile is None or tile.rows < batch.N:
        above = -1 if tile is None else tile.rows
        stream, half = stream_for(M, "prototypes"), len(streamed[1]) > 0
        q, k, tops, logs = streamed
        S = len(logs) // (2 * X) if X else 1
        shape = {"BN": stream.fill_rows, "BC": stream.fill_width, "BT": stream.rows, "BM": stream.width}
        shape |= {"num_warps": stream.warps, "num_stages": 2, "HALF": half}
        memory = (q, k.view(torch.bfloat16), tops, logs)
        stream_kernel[(batch.B, S)](*inputs, *memory, *plan, *numbers, above, **kinds, **shape)
