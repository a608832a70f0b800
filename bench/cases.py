"""The problems that are timed, named by what they stand for."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """Inputs of one call.

    patches: [T, D], all images one after the other; image i has lengths[i] of them. prototypes: [C, M, D]. group: None,
    or the group [M] of each prototype of the only category (C = 1), one joint problem per image.
    """

    patches: Tensor
    prototypes: Tensor
    lengths: tuple[int, ...]
    group: Tensor | None = None
    num_groups: int = 0

    @property
    def kind(self) -> str:
        """`joint`, `packed` (images of different lengths) or `batch`."""
        return "joint" if self.group is not None else "packed" if len(set(self.lengths)) > 1 else "batch"

    @property
    def batch(self) -> Tensor:
        """Patches as [B, N, D]; only where all images are equally long."""
        return self.patches.unflatten(0, (len(self.lengths), self.lengths[0]))

    @property
    def cu_seqlens(self) -> Tensor:
        """Offsets [B + 1] int32 of the images."""
        return torch.tensor((0, *self.lengths)).cumsum(0).to(torch.int32).to(self.patches.device)

    def images(self) -> list[Problem]:
        """One problem an image."""
        parts = zip(self.patches.split(self.lengths), self.lengths, strict=True)
        return [replace(self, patches=own, lengths=(length,)) for own, length in parts]

    def to(self, *target: torch.dtype | torch.device | str) -> Problem:
        """The same problem in another precision or on another device."""
        group = None if self.group is None else self.group.to(self.patches.to(*target).device)
        return replace(self, patches=self.patches.to(*target), prototypes=self.prototypes.to(*target), group=group)


@dataclass(frozen=True)
class Case:
    """Images of the given numbers of patches, of width D, against C categories of M prototypes each.

    With `groups`, one joint problem per image over M prototypes in that many groups.
    The inputs are clustered like image features: every patch is a noisy copy of one of 64 directions, so that cosines
    spread from about -0.2 to 0.9 and the plans are neither uniform nor one-hot.
    """

    name: str
    meaning: str
    lengths: tuple[int, ...]
    width: int
    categories: int
    prototypes: int
    groups: int = 0

    def problem(self, seed: int = 0) -> Problem:
        """Draw the inputs, float32, reproducible."""
        g = torch.Generator().manual_seed(seed)
        centers = torch.randn(64, self.width, generator=g)

        def draw(*shape: int) -> Tensor:
            noise = torch.randn(*shape, self.width, generator=g)
            return centers[torch.randint(64, shape, generator=g)] + 0.7 * noise

        patches, prototypes = draw(self.total), draw(self.categories, self.prototypes)
        if not self.groups:
            return Problem(patches, prototypes, self.lengths)
        group = torch.arange(self.prototypes) * self.groups // self.prototypes
        return Problem(patches, prototypes, self.lengths, group, self.groups)

    @property
    def total(self) -> int:
        """Patches of all images."""
        return sum(self.lengths)

    @property
    def shape(self) -> str:
        """The sizes, as a table prints them."""
        few, many = min(self.lengths), max(self.lengths)
        patches = f"N{few}" if few == many else f"N{few}-{many}"
        return f"B{len(self.lengths)} {patches} D{self.width} C{self.categories} M{self.prototypes}"

    @property
    def gemm_flops(self) -> float:
        """Floating-point operations of the cost matrix: 2 D C M for each patch."""
        return 2.0 * self.total * self.width * self.categories * self.prototypes

    def iteration_flops(self, iterations: list[int]) -> float:
        """Operations of the iterations: a row and a column product over K, 4 N M each; iterations[i] of image i."""
        rows = sum(n * count for n, count in zip(self.lengths, iterations, strict=True))
        return 4.0 * rows * self.prototypes


def _uneven(count: int, shortest: int, longest: int) -> tuple[int, ...]:
    """Lengths from shortest to longest, log-uniform between."""
    draw = random.Random(0)
    between = (shortest * math.exp(draw.random() * math.log(longest / shortest)) for _ in range(count - 2))
    return (shortest, longest, *map(int, between))


CASES = {
    case.name: case
    for case in (
        Case("a", "one image, 8 categories (latency)", (197,), 512, 8, 16),
        Case("b", "a batch of CLIP ViT-B images", (197,) * 32, 512, 13, 32),
        Case("c", "CLIP ViT-L/14-336, long prompts", (577,) * 8, 768, 16, 64),
        Case("d", "a stream of small images, many categories", (50,) * 256, 512, 32, 16),
        Case("e", "pictures of all sizes, packed", _uneven(24, 64, 4096), 512, 8, 32),
        Case("f", "joint transport over a whole policy", (197,) * 32, 512, 1, 512, groups=32),
    )
}
TINY = (
    Case("tiny batch", "every contender's gate", (23,) * 3, 24, 2, 16),
    Case("tiny packed", "every contender's gate", (5, 33, 18), 24, 2, 16),
    Case("tiny joint", "every contender's gate", (23,) * 3, 24, 1, 32, groups=5),
)
