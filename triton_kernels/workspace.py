"""Memory from the caller, cut into what a launch needs: nothing is allocated while a CUDA graph records."""

from torch import Tensor

ALIGNMENT = 4  # float32 numbers, 16 bytes: what vector loads ask for


def numel(sizes: tuple[int, ...]) -> int:
    """Float32 numbers for sections of these sizes."""
    return sum(_aligned(size) for size in sizes)


def carve(workspace: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """The sections as views of a 1-D float32 workspace."""
    return [
        part[:size] for part, size in zip(workspace[: numel(sizes)].split([*map(_aligned, sizes)]), sizes, strict=True)
    ]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
