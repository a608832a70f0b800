"""`ops.joint_sinkhorn`: one problem per item, groups of prototypes competing for its patches."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch

from guardcore import ops, reference

# (B, N, M, G), each with its reason
SHAPES = [
    pytest.param(1, 1, 1, 1, id="one-of-each"),
    pytest.param(2, 36, 70, 5, id="builtin-encoder-size"),
    pytest.param(1, 50, 257, 9, id="M-beyond-one-cache-block-and-odd"),
    pytest.param(2, 17, 6, 8, id="groups-without-prototypes"),
]


def bank(draw, B: int, N: int, M: int, G: int, kind: str = "clustered"):
    patches, prototypes = draw(kind, B, N, 1, M)
    group = torch.randint(G, (M,), generator=torch.Generator().manual_seed(M))
    return patches, prototypes[0], group


@pytest.mark.parametrize("relaxation", [None, 0.0, 0.02, 1.0])
@pytest.mark.parametrize(("B", "N", "M", "G"), SHAPES)
def test_matches_the_float64_definition(draw, B, N, M, G, relaxation):
    patches, prototypes, group = bank(draw, B, N, M, G)
    for epsilon in (0.02, 0.1):
        options = {
            "num_groups": G,
            "epsilon": epsilon,
            "max_iterations": 15,
            "tolerance": 0.0,
            "relaxation": relaxation,
        }
        got = ops.joint_sinkhorn(patches, prototypes, group, **options)
        truth = reference.joint_sinkhorn(patches.double(), prototypes.double(), group, **options)
        assert torch.equal(got.iterations, truth.iterations)
        torch.testing.assert_close(got.group_mass.double(), truth.group_mass, atol=2e-5, rtol=0)
        torch.testing.assert_close(got.group_cost.double(), truth.group_cost, atol=2e-5, rtol=0)
        torch.testing.assert_close(got.marginal_error.double(), truth.marginal_error, atol=2e-6, rtol=1e-3)


@pytest.mark.slow
def test_a_bank_of_a_thousand_prototypes(draw):
    patches, prototypes, group = bank(draw, 1, 197, 1024, 33)
    options = {"num_groups": 33, "epsilon": 0.04, "max_iterations": 20, "tolerance": 0.0, "relaxation": 0.1}
    got = ops.joint_sinkhorn(patches, prototypes, group, **options)
    truth = reference.joint_sinkhorn(patches.double(), prototypes.double(), group, **options)
    torch.testing.assert_close(got.group_mass.double(), truth.group_mass, atol=2e-5, rtol=0)


def test_relaxation_zero_is_a_softmax(draw):
    patches, prototypes, group = bank(draw, 2, 20, 12, 3)
    prior = torch.rand(12) + 0.1
    out = ops.joint_sinkhorn(patches, prototypes, group, None, prior, num_groups=3, epsilon=0.07, relaxation=0.0)
    share = torch.softmax(patches.double() @ prototypes.double().T / 0.07 + prior.double().log(), -1)
    expected = torch.zeros(2, 20, 3, dtype=torch.float64).index_add(-1, group, share).transpose(1, 2)
    # rounding of a cosine, 6e-8, over epsilon = 0.07 moves a share by 1e-6
    torch.testing.assert_close(out.group_mass.double(), expected, atol=3e-6, rtol=0)
    assert out.iterations.tolist() == [1, 1]


def test_large_relaxation_is_the_balanced_plan(draw):
    patches, prototypes, group = bank(draw, 2, 20, 12, 3)
    options = {"num_groups": 3, "epsilon": 0.07, "max_iterations": 200, "tolerance": 0.0}
    relaxed = ops.joint_sinkhorn(patches, prototypes, group, **options, relaxation=1e5)
    balanced = ops.joint_sinkhorn(patches, prototypes, group, **options)
    torch.testing.assert_close(relaxed.group_mass, balanced.group_mass, atol=1e-4, rtol=0)
    share = torch.bincount(group, minlength=3) / 12  # a converged balanced plan gives every group its weight
    torch.testing.assert_close(balanced.group_mass.mean(-1), share.expand(2, 3), atol=1e-4, rtol=0)


def test_one_group_per_category_of_a_single_bank_is_the_plain_operator(draw):
    """With all prototypes in one group, group_cost is the patch score of `sinkhorn`."""
    patches, prototypes, _ = bank(draw, 2, 20, 12, 1)
    options = {"epsilon": 0.05, "max_iterations": 40, "tolerance": 0.0}
    joint = ops.joint_sinkhorn(patches, prototypes, torch.zeros(12, dtype=torch.int64), num_groups=1, **options)
    plain = ops.sinkhorn(patches, prototypes[None], **options)
    torch.testing.assert_close(joint.group_cost, plain.patch_score, atol=1e-6, rtol=0)


@pytest.mark.parametrize("relaxation", [None, 0.0, 0.1])
def test_group_masses_sum_to_one(draw, relaxation):
    patches, prototypes, group = bank(draw, 3, 33, 40, 7)
    weights = torch.rand(3, 33)
    weights[:, 5] = 0  # the share of a patch without weight is defined too
    out = ops.joint_sinkhorn(patches, prototypes, group, weights, num_groups=7, relaxation=relaxation)
    torch.testing.assert_close(out.group_mass.sum(1), torch.ones(3, 33), atol=2e-6, rtol=0)


def test_a_prototype_without_weight_gets_no_mass(draw):
    patches, prototypes, _ = bank(draw, 2, 20, 3, 3)
    out = ops.joint_sinkhorn(
        patches, prototypes, torch.arange(3), None, torch.tensor([1.0, 0.0, 1.0]), num_groups=3, relaxation=0.1
    )
    assert bool((out.group_mass[:, 1] == 0).all())
    assert bool((out.group_mass[:, 0] > 0).any())


def test_packed_equals_dense_and_a_loop(draw):
    patches, prototypes, group = bank(draw, 3, 20, 12, 4)
    weights = torch.rand(3, 20)
    dense = ops.joint_sinkhorn(patches, prototypes, group, weights, num_groups=4, relaxation=0.1)
    args = (prototypes, group, weights.flatten())
    packed = ops.joint_sinkhorn_packed(
        patches.flatten(0, 1), torch.tensor([0, 20, 40, 60]), *args, num_groups=4, relaxation=0.1
    )
    assert torch.equal(packed.group_mass.view(4, 3, 20).transpose(0, 1), dense.group_mass)
    assert torch.equal(packed.group_cost.view(4, 3, 20).transpose(0, 1), dense.group_cost)
    offsets = [0, 7, 7, 41, 60]
    ragged = ops.joint_sinkhorn_packed(
        patches.flatten(0, 1), torch.tensor(offsets), *args, num_groups=4, relaxation=0.1
    )
    for i, (first, last) in enumerate(itertools.pairwise(offsets)):
        if first == last:
            assert ragged.marginal_error[i].isnan()
            continue
        rows = patches.flatten(0, 1)[None, first:last]
        alone = ops.joint_sinkhorn(
            rows, prototypes, group, weights.flatten()[None, first:last], num_groups=4, relaxation=0.1
        )
        assert torch.equal(ragged.group_mass[:, first:last], alone.group_mass[0])
        assert ragged.iterations[i] == alone.iterations[0]


def test_a_bad_value_spoils_its_own_item_only(draw):
    patches, prototypes, group = bank(draw, 3, 20, 12, 3)
    clean = ops.joint_sinkhorn(patches, prototypes, group, num_groups=3)
    patches[1, 4, 4] = math.inf
    out = ops.joint_sinkhorn(patches, prototypes, group, num_groups=3)
    assert out.group_mass[1].isnan().all()
    assert out.group_cost[1].isnan().all()
    assert torch.equal(out.group_mass[[0, 2]], clean.group_mass[[0, 2]])
    prototypes[0, 0] = math.nan
    assert ops.joint_sinkhorn(patches, prototypes, group, num_groups=3).group_mass.isnan().all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"group": torch.tensor([0, 1, 2])}, ValueError, "group must be in 0 ... 1 (num_groups = 2), got 2 at 2"),
        ({"group": torch.tensor([0, -1, 1])}, ValueError, "got -1 at 1"),
        ({"group": torch.tensor([0, 1])}, ValueError, "group must have shape [3], got [2]"),
        ({"group": torch.tensor([0.0, 1, 1])}, TypeError, "group must be int32 or int64"),
        ({"num_groups": 0}, ValueError, "num_groups must be >= 1"),
        ({"prototypes": torch.ones(1, 3, 4)}, ValueError, "prototypes must have shape [M, D]"),
        ({"prototype_weights": torch.tensor([1.0, -1, 1])}, ValueError, "prototype_weights must be finite and >= 0"),
    ],
)
def test_wrong_inputs_raise_and_say_what_is_wrong(change, error, message):
    args = {"patches": torch.ones(2, 5, 4), "prototypes": torch.ones(3, 4), "group": torch.tensor([0, 1, 1])}
    with pytest.raises(error, match=re.escape(message)):
        ops.joint_sinkhorn(**{**args, "num_groups": 2, **change})


def test_backward_is_refused(draw):
    patches, prototypes, group = bank(draw, 1, 5, 4, 2)
    out = ops.joint_sinkhorn(patches.requires_grad_(), prototypes, group, num_groups=2)
    with pytest.raises(NotImplementedError, match="inference only"):
        out.group_mass.sum().backward()


@pytest.mark.parametrize("N", [16, 33, 64, 197])
def test_all_threads_on_one_item_change_no_bit(draw, N):
    """A single item's cost tile is made by all threads, cut where no rounding changes."""
    patches, prototypes, group = bank(draw, 1, N, 40, 5)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(ops.joint_sinkhorn(patches, prototypes, group, num_groups=5))
    torch.set_num_threads(before)
    twice = ops.joint_sinkhorn(patches.expand(2, -1, -1), prototypes, group, num_groups=5)
    for one, other in itertools.product(results[:1], results[1:]):
        assert all(map(torch.equal, one, other))
    assert all(torch.equal(own[0], both[1]) for own, both in zip(results[0], twice, strict=True))


def test_a_nan_in_one_patch_is_one_in_all_of_the_item(draw):
    patches, prototypes, group = bank(draw, 2, 5, 7, 3)
    patches[0, 2, 1] = math.nan
    for run in (ops.joint_sinkhorn, reference.joint_sinkhorn):
        out = run(patches, prototypes, group, num_groups=3)
        assert out.group_mass[0].isnan().all()
        assert out.group_cost[0].isnan().all()
        assert out.group_mass[1].isfinite().all()
