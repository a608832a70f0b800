"""Scoring rules against closed forms, the float64 definitions and each other."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from guardcore import reference
from guardcore.detector.packing import PackedPatches, lowest_mean, packed_mean
from guardcore.detector.scoring import Scoring, entropy, mean_prototypes, unit
from guardcore.patches import PatchSet
from guardcore.prototypes.bank import PrototypeBank

RULES = ["normalized", "joint", "softmax", "paper", "mean-prototype-cosine", "max-patch-cosine", "global-cosine"]
LENGTHS = [5, 1, 12]  # odd lengths, one of them a single patch


def bank_of(seed: int = 0, counts: tuple[int, ...] = (3, 1, 2), anchors: int = 4, width: int = 8) -> PrototypeBank:
    """Random unit prototypes; categories of different size, so that there is padding."""
    generator = torch.Generator().manual_seed(seed)
    rows = [unit(torch.randn(count, width, generator=generator)) for count in counts]
    prototypes = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    weights = (torch.arange(max(counts)) < torch.tensor(counts)[:, None]).float()
    return PrototypeBank(
        categories=tuple(f"c{i}" for i in range(len(counts))),
        labels=tuple(tuple(f"{i}.{j}" for j in range(count)) for i, count in enumerate(counts)),
        neutral_labels=tuple(f"n{i}" for i in range(anchors)),
        prototypes=prototypes,
        weights=weights,
        neutral=unit(torch.randn(anchors, width, generator=generator)) if anchors else torch.empty(0, width),
        cost_spread=0.2,
        spread_source="texts",
        policy_fingerprint="p",
        encoder_fingerprint="e",
        encoder_name="random",
    )


def pictures(seed: int = 1, lengths: list[int] = LENGTHS, width: int = 8) -> list[PatchSet]:
    generator = torch.Generator().manual_seed(seed)
    return [
        PatchSet(torch.randn(n, width, generator=generator), torch.randn(2, width, generator=generator), None, (8, 8))
        for n in lengths
    ]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("weights", [None, "uniform", "entropy", "inverse-entropy"])
def test_a_picture_scores_the_same_alone_and_in_a_batch(rule: str, weights: str | None) -> None:
    scoring, bank, items = Scoring(rule=rule, weights=weights), bank_of(), pictures()
    together = scoring.score(PackedPatches.pack(items), bank)
    edges = [0, 5, 6, 18]
    for i, item in enumerate(items):
        alone = scoring.score(PackedPatches.pack([item]), bank)
        assert alone.patch.shape == (3, LENGTHS[i])
        torch.testing.assert_close(together.patch[:, edges[i] : edges[i + 1]], alone.patch, rtol=0, atol=1e-6)
        torch.testing.assert_close(together.statistic[i], alone.statistic[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(together.distance[i], alone.distance[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_picture_is_nan_and_its_neighbors_are_untouched(rule: str, value: float) -> None:
    scoring, bank, items = Scoring(rule=rule, weights="entropy"), bank_of(), pictures()
    sound = scoring.score(PackedPatches.pack(items), bank)
    broken = dataclasses.replace(items[0], embeddings=items[0].embeddings.clone(), image=items[0].image.clone())
    broken.embeddings[2, 3] = value
    broken.image[0, 1] = value
    scores = scoring.score(PackedPatches.pack([broken, *items[1:]]), bank)
    assert scores.statistic[0].isnan().all()
    torch.testing.assert_close(scores.statistic[1:], sound.statistic[1:], rtol=0, atol=0)
    torch.testing.assert_close(scores.patch[:, 5:], sound.patch[:, 5:], rtol=0, atol=0)


def test_normalized_is_transport_cost_over_mass() -> None:
    bank, item = bank_of(), pictures()[2]
    scores = Scoring(rule="normalized", relative_epsilon=0.5, relaxation=None).score(PackedPatches.pack([item]), bank)
    plan = reference.sinkhorn(
        item.embeddings[None].double(), bank.prototypes.double(), None, bank.weights.double(), epsilon=0.1
    )
    torch.testing.assert_close(scores.patch.double(), plan.patch_score[0], rtol=0, atol=2e-6)
    torch.testing.assert_close(scores.distance.double(), plan.distance, rtol=0, atol=2e-6)
    torch.testing.assert_close(scores.statistic[0], scores.patch.amin(dim=1))


@pytest.mark.parametrize("relaxation", [0.0, 0.5])
def test_relaxed_normalized_is_its_float64_definition(relaxation: float) -> None:
    bank, item = bank_of(), pictures()[2]
    packed = PackedPatches.pack([item])
    scores = Scoring(rule="normalized", relative_epsilon=0.5, relaxation=relaxation).score(packed, bank)
    plan = reference.sinkhorn(
        item.embeddings[None].double(),
        bank.prototypes.double(),
        None,
        bank.weights.double(),
        epsilon=0.1,
        relaxation=0.1 * relaxation,
    )
    torch.testing.assert_close(scores.patch.double(), plan.patch_score[0], rtol=0, atol=2e-6)
    balanced = Scoring(rule="normalized", relative_epsilon=0.5).score(packed, bank)
    assert (scores.patch - balanced.patch).abs().max() > 1e-3


def test_each_rule_has_its_own_default_relaxation() -> None:
    defaults = {rule: Scoring(rule=rule).marginal_relaxation for rule in ("normalized", "joint", "paper")}
    assert defaults == {"normalized": None, "joint": 0.1, "paper": None}
    # The shipped calibration is tied to this text.
    assert str(Scoring()) == (
        "softmax:relative_epsilon=0.5,relaxation=0.1,weights=uniform,pool=1,logit_scale=100.0,max_iterations=100,"
        "tolerance=0.0001"
    )
    assert Scoring.parse("normalized:relaxation=rule").marginal_relaxation is None


def test_softmax_is_zero_shot_classification() -> None:
    bank, item = bank_of(), pictures()[0]
    scores = Scoring(rule="softmax", relative_epsilon=0.5).score(PackedPatches.pack([item]), bank)
    prototypes, group, _ = bank.joint()
    p = (unit(item.embeddings) @ prototypes.T / (0.5 * bank.cost_spread)).softmax(dim=1)
    for category in range(3):
        torch.testing.assert_close(scores.patch[category], 1 - p[:, group == category].sum(dim=1), rtol=0, atol=1e-6)
    own = p[:, group == 0]
    cost = 1 - unit(item.embeddings) @ prototypes[group == 0].T
    torch.testing.assert_close(scores.distance[0, 0], (own * cost).sum() / own.sum(), rtol=1e-5, atol=0)


def test_joint_goes_from_the_softmax_to_the_balanced_plan() -> None:
    bank, packed = bank_of(), PackedPatches.pack(pictures())
    settings = {"relative_epsilon": 1.0, "max_iterations": 500, "tolerance": 1e-7}
    softmax = Scoring(rule="softmax", **settings).score(packed, bank).patch
    joint = {r: Scoring(rule="joint", relaxation=r, **settings).score(packed, bank).patch for r in (0.0, 1e5, None)}
    torch.testing.assert_close(joint[0.0], softmax, rtol=0, atol=1e-6)
    torch.testing.assert_close(joint[1e5], joint[None], rtol=0, atol=2e-3)
    assert (joint[None] - softmax).abs().max() > 0.02


def test_joint_keeps_its_digits_where_a_patch_is_certain() -> None:
    bank = bank_of()
    certain = PatchSet(bank.prototypes[0, :1] * 7, bank.prototypes[0, :1], None, (8, 8))
    statistic = (
        Scoring(rule="joint", relative_epsilon=0.1, relaxation=0.0).score(PackedPatches.pack([certain]), bank).statistic
    )
    prototypes, group, _ = bank.joint()
    p = (prototypes.double() @ bank.prototypes[0, 0].double() / 0.02).softmax(dim=0)
    assert statistic[0, 0].item() == pytest.approx(p[group != 0].sum().item(), rel=1e-3)
    assert statistic[0, 0] < 1e-7  # 1 - p in fp32 would be 0 or a multiple of 6e-8


@pytest.mark.parametrize(("weights", "sign"), [("entropy", 1), ("inverse-entropy", -1)])
def test_paper_is_equations_7_to_9(weights: str, sign: int) -> None:
    bank, item, scale = bank_of(), pictures()[2], 100.0
    scores = Scoring(rule="paper", weights=weights, relative_epsilon=0.5, relaxation=None).score(
        PackedPatches.pack([item]), bank
    )

    x = torch.nn.functional.normalize(item.embeddings.double(), dim=1)
    groups = [bank.prototypes[i][bank.weights[i] > 0].double() for i in range(3)]
    means = torch.stack([torch.nn.functional.normalize(z.mean(dim=0), dim=0) for z in groups])

    def weight(vectors: torch.Tensor) -> torch.Tensor:
        p = (scale * vectors @ means.T).softmax(dim=1)
        return (sign * -(p * p.log()).sum(dim=1)).softmax(dim=0)

    d = torch.zeros(len(x), dtype=torch.float64)
    for z in groups:
        plan = reference.sinkhorn(x[None], z[None], weight(x)[None], weight(z)[None], epsilon=0.1)
        d += plan.patch_cost[0, 0]
    for category in range(3):  # blind to the category
        torch.testing.assert_close(scores.patch[category].double(), d, rtol=0, atol=2e-6)
    assert scores.statistic[0].tolist() == pytest.approx([d.min().item()] * 3, abs=2e-6)


def test_printed_paper_rule_cannot_flag_a_picture_that_is_unsafe_everywhere() -> None:
    # Ten orthogonal concepts; with equal patches d(n) is the sum over categories over N, whatever one of them shows.
    axes = torch.eye(12)
    bank = dataclasses.replace(
        bank_of(counts=(1,) * 10, anchors=1, width=12), prototypes=axes[:10, None], neutral=axes[10:11]
    )
    packed = PackedPatches.pack(
        [PatchSet(axis.repeat(16, 1), axis[None], None, (8, 8)) for axis in (axes[0], axes[11])]
    )
    t = {
        rule: Scoring(rule=rule, relaxation=None).score(packed, bank).statistic.amin(dim=1)
        for rule in ("paper", "normalized")
    }
    assert t["normalized"].tolist() == pytest.approx([0, 1], abs=1e-5)
    assert t["paper"].tolist() == pytest.approx([9 / 16, 10 / 16], abs=1e-5)


def test_cosine_rules_are_their_formulas() -> None:
    bank, item = bank_of(), pictures()[0]
    packed = PackedPatches.pack([item])
    cost = 1 - unit(item.embeddings) @ unit(bank.prototypes).transpose(1, 2)  # [C, N, M]
    nearest = torch.stack([cost[c, :, : int(bank.weights[c].sum())].amin(dim=1) for c in range(3)])
    scores = Scoring(rule="max-patch-cosine").score(packed, bank)
    torch.testing.assert_close(scores.patch, nearest, rtol=0, atol=1e-6)
    torch.testing.assert_close(scores.distance[0], nearest.mean(dim=1), rtol=0, atol=1e-6)

    means = torch.stack([unit(bank.prototypes[c].sum(dim=0)) for c in range(3)])
    scores = Scoring(rule="mean-prototype-cosine").score(packed, bank)
    torch.testing.assert_close(scores.patch, 1 - means @ unit(item.embeddings).T, rtol=0, atol=1e-6)

    scores = Scoring(rule="global-cosine").score(packed, bank)
    closest = (1 - means @ unit(item.image).T).amin(dim=1)
    torch.testing.assert_close(scores.patch, closest[:, None].expand(3, 5), rtol=0, atol=1e-6)
    torch.testing.assert_close(scores.statistic[0], closest, rtol=0, atol=1e-6)


def test_nearest_prototype_bounds_transport_from_below() -> None:
    # score[c, n] >= min_m C[n, m]: the bound that lets categories be cleared before any iteration.
    bank, packed = bank_of(), PackedPatches.pack(pictures())
    bound = Scoring(rule="max-patch-cosine").score(packed, bank).patch
    for epsilon in (0.05, 0.5, 5.0):
        assert (Scoring(rule="normalized", relative_epsilon=epsilon).score(packed, bank).patch >= bound - 1e-6).all()


def test_epsilon_follows_the_cost_spread_of_the_bank() -> None:
    bank, packed = bank_of(), PackedPatches.pack(pictures())
    doubled = bank.with_cost_spread(0.4)
    a = Scoring(rule="joint", relative_epsilon=0.6).score(packed, bank)
    b = Scoring(rule="joint", relative_epsilon=0.3).score(packed, doubled)
    torch.testing.assert_close(a.patch, b.patch, rtol=0, atol=1e-6)
    assert Scoring(relative_epsilon=0.3).epsilon(doubled) == pytest.approx(0.12)


def test_pool_averages_the_lowest_scores() -> None:
    scores, offsets = torch.tensor([[3.0, 1.0, 2.0, 9.0, 5.0]]), torch.tensor([0, 3, 4, 4, 5])
    assert lowest_mean(scores, offsets, 1).flatten().tolist()[:2] == [1.0, 9.0]
    pooled = lowest_mean(scores, offsets, 2).flatten()
    assert pooled[0] == 1.5
    assert pooled[1] == 9.0  # fewer patches than the pool
    assert pooled[2].isnan()  # no patches
    assert lowest_mean(torch.tensor([[1.0, math.nan]]), torch.tensor([0, 2]), 1).isnan().all()
    assert packed_mean(scores, torch.tensor([0, 5]), torch.tensor([1.0, 3, 0, 0, 0])).item() == 1.5


def test_entropy_has_its_extremes() -> None:
    means = torch.eye(4)
    assert entropy(torch.ones(1, 4), means, 100.0).item() == pytest.approx(math.log(4))
    assert entropy(means[:1], means, 100.0).item() == pytest.approx(0, abs=1e-6)
    assert mean_prototypes(torch.tensor([[[3.0, 0], [0, 5], [9, 9]]]), torch.tensor([[1.0, 1, 0]])).tolist() == [
        pytest.approx([0.5**0.5] * 2)
    ]


def test_unit_survives_any_length() -> None:
    x = torch.tensor([[3.0, 4.0]])
    for scale in (1e-37, 1.0, 5e37):
        torch.testing.assert_close(unit(x * scale), torch.tensor([[0.6, 0.8]]), rtol=1e-5, atol=0)
    assert unit(torch.zeros(1, 2)).tolist() == [[0, 0]]


@pytest.mark.parametrize("rule", ["joint", "softmax"])
def test_rules_against_anchors_refuse_a_bank_without(rule: str) -> None:
    with pytest.raises(ValueError, match="neutral anchors"):
        Scoring(rule=rule).score(PackedPatches.pack(pictures()), bank_of(anchors=0))


def test_text_form_round_trips_and_names_mistakes() -> None:
    for scoring in (
        Scoring(),
        Scoring(rule="paper"),
        Scoring(rule="normalized", relaxation=None, relative_epsilon=0.07, pool=3, weights="entropy"),
    ):
        assert str(Scoring.parse(str(scoring))) == str(scoring)
    assert Scoring.parse("softmax").rule == "softmax"
    assert "weights=entropy" in str(Scoring(rule="paper"))
    for text, match in [
        ("cosine", "expected one of normalized, joint"),
        ("joint:epsilon=1", "expected one of relative_epsilon"),
        ("joint:relative_epsilon=x", "relative_epsilon: expected a number"),
        ("joint:relative_epsilon=0", "relative_epsilon: expected a finite number above 0"),
        ("joint:relaxation=-1", "relaxation"),
        ("joint:relaxation=x", "relaxation: expected a number"),
        ("joint:pool=0", "pool: expected at least 1"),
        ("joint:weights=heavy", "weights: expected one of uniform"),
        ("joint:relative_epsilon=nan", "relative_epsilon"),
    ]:
        with pytest.raises(ValueError, match=match):
            Scoring.parse(text)
