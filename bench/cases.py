"""The problems that are timed, named by what they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SinkhornCase:
    """B images of N patches of width D against C categories of M prototypes each.

    The inputs are clustered like image features: every patch is a noisy copy of one of 64 directions, so that cosines
    spread from about -0.2 to 0.9 and the plans are neither uniform nor one-hot.
    """

    name: str
    meaning: str
    images: int
    patches: int
    width: int
    categories: int
    prototypes: int

    def inputs(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return patches [B, N, D] and prototypes [C, M, D], float32, reproducible."""
        g = torch.Generator().manual_seed(seed)
        centers = torch.randn(64, self.width, generator=g)

        def draw(*shape: int) -> Tensor:
            noise = torch.randn(*shape, self.width, generator=g)
            return centers[torch.randint(64, shape, generator=g)] + 0.7 * noise

        return draw(self.images, self.patches), draw(self.categories, self.prototypes)

    @property
    def gemm_flops(self) -> float:
        """Floating-point operations of the cost matrix: 2 B N D C M."""
        return 2.0 * self.images * self.patches * self.width * self.categories * self.prototypes

    def iteration_flops(self, iterations: int) -> float:
        """Operations of the iterations: a row and a column product over K, 4 N M each for B C problems."""
        return 4.0 * self.images * self.categories * self.patches * self.prototypes * iterations


SINKHORN = {
    case.name: case
    for case in (
        SinkhornCase("a", "one image, 8 categories (latency)", 1, 197, 512, 8, 16),
        SinkhornCase("b", "a batch of CLIP ViT-B images", 32, 197, 512, 13, 32),
        SinkhornCase("c", "CLIP ViT-L/14-336, long prompts", 8, 577, 768, 16, 64),
        SinkhornCase("d", "a stream of small images, many categories", 256, 50, 512, 32, 16),
    )
}
