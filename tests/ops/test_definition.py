"""The definition runs where no kernel does, so it keeps the promised accuracy by itself."""

from __future__ import annotations

import pytest
import torch

from guardcore import reference


@pytest.mark.parametrize("D", [1, 3, 100, 1152])
@pytest.mark.parametrize("epsilon", [0.05, 0.01])
def test_float32_inputs_are_solved_in_float64(draw, D, epsilon):
    """One dimension is the hard case: every cosine is 1 or -1, and rounding over epsilon decides."""
    patches, prototypes = draw("clustered", 2, 33, 2, 6, D=D)
    options = {"epsilon": epsilon, "max_iterations": 30, "tolerance": 0.0}
    got = reference.sinkhorn(patches, prototypes, **options)
    truth = reference.sinkhorn(patches.double(), prototypes.double(), **options)
    assert got.iterations.dtype == torch.int32
    for left, right in zip(got, truth, strict=True):
        if left.is_floating_point():
            assert left.dtype == torch.float32
            assert torch.equal(left, right.float())


def test_the_joint_definition_too(draw):
    patches, prototypes = draw("clustered", 2, 20, 1, 12)
    args = (torch.arange(12) % 3, None, None, 3, 0.01, 30, 0.0, 0.1)
    got = reference.joint_sinkhorn(patches.half(), prototypes[0].half(), *args)
    truth = reference.joint_sinkhorn(patches.half().double(), prototypes[0].half().double(), *args)
    assert torch.equal(got.group_mass, truth.group_mass.float())
    assert truth.group_mass.dtype == torch.float64


def test_wrong_offsets_raise(draw):
    patches, prototypes = draw("random", 1, 4, 2, 3)
    with pytest.raises(ValueError, match="cu_seqlens must start at 0"):
        reference.sinkhorn_packed(patches[0], torch.tensor([0, 5]), prototypes)
