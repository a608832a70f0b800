"""Legal oddities have defined values, bad values spoil their own item, wrong inputs raise with a name."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from guardcore import ops, reference

OPTIONS = {"epsilon": 0.05, "max_iterations": 50, "tolerance": 0.0}


def float_fields(out):
    return [tensor for name, tensor in out._asdict().items() if name != "iterations"]


def test_zero_weight_patches_and_prototypes_take_no_part(draw):
    """Dropping them gives the same plan; a patch without weight still has its score."""
    patches, prototypes = draw("clustered", 1, 20, 2, 6)
    a, b = torch.rand(1, 20) + 0.1, torch.rand(2, 6) + 0.1
    a[:, 13:], b[:, 4:] = 0, 0
    out = ops.sinkhorn(patches, prototypes, a, b, **OPTIONS)
    dropped = ops.sinkhorn(patches[:, :13], prototypes[:, :4], a[:, :13], b[:, :4], **OPTIONS)
    torch.testing.assert_close(out.distance, dropped.distance, atol=1e-6, rtol=0)
    torch.testing.assert_close(out.patch_score[..., :13], dropped.patch_score, atol=1e-6, rtol=0)
    assert bool((out.patch_cost[..., 13:] == 0).all())
    truth = reference.sinkhorn(patches.double(), prototypes.double(), a.double(), b.double(), **OPTIONS)
    torch.testing.assert_close(out.patch_score.double(), truth.patch_score, atol=2e-6, rtol=0)


@pytest.mark.parametrize("relaxation", [None, 0.1])
def test_far_prototypes_of_zero_weight_do_not_disturb(draw, relaxation):
    """A padding row of zeros is farther than everything else: it must not shift, underflow or take mass."""
    patches, prototypes = draw("clustered", 1, 20, 1, 4)
    padded = torch.cat((prototypes, torch.zeros(1, 3, 64)), 1)
    options = {"epsilon": 0.005, "max_iterations": 100, "tolerance": 0.0, "relaxation": relaxation}
    alone = ops.sinkhorn(patches, prototypes, None, torch.ones(1, 4), **options)
    out = ops.sinkhorn(patches, padded, None, torch.tensor([[1.0, 1, 1, 1, 0, 0, 0]]), **options)
    for got, expected in zip(out, alone, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_zero_vectors_have_cosine_zero(draw):
    patches, prototypes = draw("random", 2, 10, 2, 4)
    patches[0, 3], prototypes[1, 2] = 0, 0
    out = ops.sinkhorn(patches, prototypes, **OPTIONS)
    truth = reference.sinkhorn(patches.double(), prototypes.double(), **OPTIONS)
    torch.testing.assert_close(out.patch_score.double(), truth.patch_score, atol=1e-6, rtol=0)
    torch.testing.assert_close(out.patch_score[0, :, 3], torch.tensor([1.0, 1.0]), atol=1e-6, rtol=0)
    everything_zero = ops.sinkhorn(torch.zeros(1, 5, 8), torch.zeros(1, 3, 8), **OPTIONS)
    torch.testing.assert_close(everything_zero.distance, torch.ones(1, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e18, 1e37])
def test_huge_and_tiny_vectors_are_only_directions(draw, scale):
    """Their squares leave float32's range; 1e-44 is subnormal, and has few digits left."""
    patches, prototypes = draw("random", 2, 10, 2, 4)
    small = (patches * scale).float()
    out = ops.sinkhorn(small, prototypes, **OPTIONS)
    truth = reference.sinkhorn(small.double(), prototypes.double(), **OPTIONS)
    torch.testing.assert_close(out.distance.double(), truth.distance, atol=1e-6, rtol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_value_spoils_its_own_item_only(draw, bad):
    patches, prototypes = draw("clustered", 3, 20, 4, 5)
    clean = ops.sinkhorn(patches, prototypes, **OPTIONS)
    patches[1, 7, 3] = bad
    out = ops.sinkhorn(patches, prototypes, **OPTIONS)
    for got, expected in zip(float_fields(out), float_fields(clean), strict=True):
        assert got[1].isnan().all()
        assert torch.equal(got[[0, 2]], expected[[0, 2]])
    assert out.iterations[1].tolist() == [0, 0, 0, 0]


def test_a_bad_prototype_spoils_its_own_category_only(draw):
    patches, prototypes = draw("clustered", 2, 20, 3, 5)
    clean = ops.sinkhorn(patches, prototypes, **OPTIONS)
    prototypes[2, 4, 0] = math.nan
    weights = torch.ones(3, 5)
    weights[2, 4] = 0  # not even zero weight hides it
    out = ops.sinkhorn(patches, prototypes, None, weights, **OPTIONS)
    for got, expected in zip(float_fields(out), float_fields(clean), strict=True):
        assert got[:, 2].isnan().all()
        assert torch.equal(got[:, :2], expected[:, :2])


def test_items_and_categories_without_mass_are_nan(draw):
    patches, prototypes = draw("clustered", 2, 6, 2, 3)
    out = ops.sinkhorn(patches, prototypes, torch.tensor([[0.0] * 6, [1.0] * 6]), **OPTIONS)
    assert out.distance[0].isnan().all()
    assert out.distance[1].isfinite().all()
    out = ops.sinkhorn(patches, prototypes, None, torch.tensor([[0.0] * 3, [1.0] * 3]), **OPTIONS)
    assert out.distance[:, 0].isnan().all()
    assert out.distance[:, 1].isfinite().all()


def test_duplicates_share_the_weight(draw):
    patches, prototypes = draw("clustered", 1, 10, 1, 3)
    out = ops.sinkhorn(patches, prototypes, **OPTIONS)
    twins = ops.sinkhorn(patches.repeat(1, 2, 1), prototypes.repeat(1, 3, 1), **OPTIONS)
    torch.testing.assert_close(twins.distance, out.distance, atol=1e-6, rtol=0)


@pytest.mark.parametrize("epsilon", [0.01, 0.1])
def test_one_prototype_or_one_patch_leaves_no_choice(draw, epsilon):
    patches, prototypes = draw("random", 2, 9, 2, 5)
    one_prototype = ops.sinkhorn(patches, prototypes[:, :1], epsilon=epsilon)
    expected = 1 - torch.einsum("bnd,cd->bcn", patches, prototypes[:, 0])
    torch.testing.assert_close(one_prototype.patch_score, expected, atol=1e-6, rtol=0)
    one_patch = ops.sinkhorn(patches[:, :1], prototypes, epsilon=epsilon)
    expected = (1 - torch.einsum("bd,cmd->bcm", patches[:, 0], prototypes)).mean(-1)
    torch.testing.assert_close(one_patch.distance, expected, atol=1e-6, rtol=0)


def test_empty_batches_have_empty_results(draw):
    patches, prototypes = draw("random", 2, 9, 3, 5)
    assert ops.sinkhorn(patches[:0], prototypes).patch_cost.shape == (0, 3, 9)
    assert ops.sinkhorn(patches, prototypes[:0]).distance.shape == (2, 0)
    assert ops.sinkhorn(patches[:, :0], prototypes).distance.isnan().all()
    packed = ops.sinkhorn_packed(patches[0, :0], torch.tensor([0]), prototypes)
    assert packed.distance.shape == (0, 3)
    assert packed.patch_cost.shape == (3, 0)
    assert ops.sinkhorn_packed(patches[0, :0], torch.tensor([0, 0]), prototypes).distance.isnan().all()


def test_strides_do_not_matter(draw):
    patches, prototypes = draw("clustered", 4, 16, 4, 6, D=32)
    weights = torch.rand(16, 8)
    out = ops.sinkhorn(patches[::2, 1::3, ::2], prototypes.transpose(0, 1)[::2, :, ::2], weights.T[::4, 1::3])
    dense = ops.sinkhorn(
        patches[::2, 1::3, ::2].contiguous(),
        prototypes.transpose(0, 1)[::2, :, ::2].contiguous(),
        weights.T[::4, 1::3].contiguous(),
    )
    assert all(torch.equal(left, right) for left, right in zip(out, dense, strict=True))


PATCHES, PROTOTYPES = torch.ones(2, 3, 4), torch.ones(5, 6, 4)
WRONG = [
    ({"patches": torch.ones(3, 4)}, ValueError, "patches must have shape [B, N, D], got [3, 4]"),
    ({"prototypes": torch.ones(5, 6, 3)}, ValueError, "width of patches, 4, got 3"),
    ({"prototypes": torch.ones(5, 0, 4)}, ValueError, "at least one prototype"),
    pytest.param(
        {"patches": PATCHES.double()}, TypeError, "patches must be float32, bfloat16 or float16", id="float64"
    ),
    ({"patches": PATCHES.long()}, TypeError, "got torch.int64"),
    ({"prototypes": PROTOTYPES.half()}, TypeError, "dtype of patches, torch.float32"),
    ({"prototypes": PROTOTYPES.to("meta")}, ValueError, "prototypes must be on cpu"),
    ({"patches": PATCHES.to_sparse()}, TypeError, "dense"),
    ({"patch_weights": torch.ones(2, 4)}, ValueError, "patch_weights must have shape [2, 3]"),
    pytest.param(
        {"patch_weights": torch.ones(2, 3).long()}, TypeError, "patch_weights must be floating", id="int weights"
    ),
    pytest.param(
        {"prototype_weights": torch.ones(6)}, ValueError, "prototype_weights must have shape [5, 6]", id="bank"
    ),
    pytest.param(
        {"patch_weights": torch.tensor([[1.0, 1, 1], [1, -2, 1]])}, ValueError, "got -2.0 at [1, 1]", id="negative"
    ),
    pytest.param(
        {"patch_weights": torch.full((2, 3), math.nan)}, ValueError, "finite and >= 0, got nan", id="NaN weight"
    ),
    ({"prototype_weights": torch.full((5, 6), math.inf)}, ValueError, "got inf at [0, 0]"),
    ({"epsilon": 0.0}, ValueError, "epsilon must be a finite number > 0, got 0.0"),
    ({"epsilon": math.nan}, ValueError, "epsilon must be"),
    ({"epsilon": 5e-7}, ValueError, "epsilon must be >= 1e-06, what float32 costs can resolve, got 5e-07"),
    ({"max_iterations": 0}, ValueError, "max_iterations must be >= 1, got 0"),
    ({"tolerance": -1e-3}, ValueError, "tolerance must be a finite number >= 0"),
    ({"relaxation": -0.1}, ValueError, "relaxation must be None (balanced) or"),
    ({"relaxation": math.inf}, ValueError, "got inf"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_wrong_inputs_raise_and_say_what_is_wrong(change, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ops.sinkhorn(**{"patches": PATCHES, "prototypes": PROTOTYPES, **change})


@pytest.mark.parametrize(
    ("offsets", "error", "message"),
    [
        (torch.tensor([0, 2]), ValueError, "end at the 3 packed patches, got [0, 2]"),
        (torch.tensor([1, 3]), ValueError, "start at 0"),
        (torch.tensor([0, 3, 2, 3]), ValueError, "not decrease"),
        (torch.tensor([0.0, 3.0]), TypeError, "cu_seqlens must be int32 or int64"),
        (torch.tensor([], dtype=torch.int32), ValueError, "B + 1 offsets"),
        (torch.tensor([[0, 3]]), ValueError, "one dimension"),
    ],
)
def test_wrong_offsets_raise(offsets, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ops.sinkhorn_packed(PATCHES[0], offsets, PROTOTYPES)


# in CI there is a compiler, and a kernel that is lost must fail, not skip
needs_kernels = pytest.mark.skipif(
    find_spec("guardcore._C") is None and "CI" not in os.environ, reason="the C++ kernels are not built"
)


@needs_kernels
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((PATCHES[0], PROTOTYPES, None, None, 0.05, 10, 0.0, None), "patches must have 3 dimensions"),
        ((PATCHES, PROTOTYPES[..., :2], None, None, 0.05, 10, 0.0, None), "one width"),
        ((PATCHES.double(), PROTOTYPES.double(), None, None, 0.05, 10, 0.0, None), "float32, bfloat16 or float16"),
        ((PATCHES, PROTOTYPES, -torch.ones(2, 3), None, 0.05, 10, 0.0, None), "patch_weights must be finite and >= 0"),
        ((PATCHES, PROTOTYPES, torch.ones(2, 2), None, 0.05, 10, 0.0, None), "one weight for each point"),
        ((PATCHES, PROTOTYPES, None, None, -1.0, 10, 0.0, None), "epsilon must be"),
        ((PATCHES, PROTOTYPES, None, None, 5e-7, 10, 0.0, None), "epsilon must be >= 1e-06"),
    ],
)
def test_the_kernel_checks_for_itself(args, message):
    """torch.ops can be called directly, and compiled programs skip the public function's look at values."""
    with pytest.raises(RuntimeError, match=re.escape(message)):
        torch.ops.guardcore.sinkhorn(*args)


@needs_kernels
def test_the_kernel_truncates_no_index():
    options = (None, None, 2, 0.05, 10, 0.0, None)
    with pytest.raises(RuntimeError, match="cu_seqlens must be int32 or int64"):
        torch.ops.guardcore.sinkhorn_packed(
            PATCHES[0], torch.tensor([0, 1.5, 3]), PROTOTYPES, None, None, 0.05, 10, 0.0, None
        )
    with pytest.raises(RuntimeError, match="group must be int32 or int64"):
        torch.ops.guardcore.joint_sinkhorn(PATCHES, PROTOTYPES[0], torch.full((6,), 0.5), *options)


@pytest.mark.parametrize("scale", [1e300, 1e-60])
def test_float64_weights_beyond_the_range_of_float32(draw, scale):
    patches, prototypes = draw("clustered", 2, 6, 2, 4)
    a, b = torch.rand(2, 6).double(), torch.rand(2, 4).double()
    a[0] /= scale  # items need not share a scale
    expected = ops.sinkhorn(patches, prototypes, a / a.sum(-1, keepdim=True), b).distance
    torch.testing.assert_close(ops.sinkhorn(patches, prototypes, a * scale, b * scale).distance, expected)
    packed = ops.sinkhorn_packed(
        patches.flatten(0, 1), torch.tensor([0, 6, 12]), prototypes, (a * scale).flatten(), b * scale
    )
    torch.testing.assert_close(packed.distance, expected)


def test_the_definition_gives_an_empty_item_no_numbers(draw):
    patches, prototypes = draw("random", 1, 4, 2, 3)
    plan = reference.sinkhorn_packed(patches[0], torch.tensor([0, 4, 4]), prototypes)
    assert plan.iterations.tolist() == [[plan.iterations[0, 0], plan.iterations[0, 1]], [0, 0]]
    for field in (plan.distance, plan.objective, plan.marginal_error, plan.g):
        assert field[1].isnan().all()
        assert field[0].isfinite().all()


def test_many_equal_patches_gather_no_rounding(draw):
    """A plain picture: one long sum over it rounds the same way thousands of times, worst in vectors of 4 and 8."""
    patch, prototypes = draw("random", 1, 1, 12, 16)
    patches, options = patch.expand(1, 4096, 64), {"epsilon": 3.0, "max_iterations": 5, "tolerance": 0.0}
    out = ops.sinkhorn(patches, prototypes, **options)
    truth = reference.sinkhorn(patches.double(), prototypes.double(), **options)
    assert ((out.distance - truth.distance).abs() <= 1e-6 * truth.distance).all()


def test_one_patch_like_one_prototype_keeps_its_digits():
    """Its cost is the small difference of 1 and a sum of D products of one sign; no other patch averages its error."""
    g = torch.Generator().manual_seed(0)
    patches = torch.randn(60, 1, 130, generator=g).abs()
    prototypes = patches + 0.001 * torch.randn(60, 1, 130, generator=g)
    got = ops.sinkhorn(patches, prototypes).distance.double()
    truth = reference.sinkhorn(patches.double(), prototypes.double()).distance
    assert truth.diagonal().max() < 1e-5
    assert (got - truth).abs().max() <= 2e-7


def test_an_unknown_instruction_set_is_refused():
    code = "import torch; from guardcore import ops; ops.sinkhorn(torch.ones(1, 2, 3), torch.ones(1, 2, 3))"
    environment = os.environ | {"GUARDCORE_CPU_LEVEL": "avx2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "GUARDCORE_CPU_LEVEL must be v4, v3 or baseline, got avx2" in done.stderr
