"""How unsafe is each patch, and each picture, for each category? One function a rule, all with the same signature.

Shapes: B pictures, T patches of all of them, V encoded tiles, D width, C categories, M prototypes a category.
Lower means closer to the unsafe concept. A rule gives a score to each patch and category; the statistic of a picture is
its lowest patch score (or the mean of the `pool` lowest): a mean over all patches would dilute a small object away.
Which figure is suspicious depends on rule, encoder and policy: `guardcore.detector.conformal` calibrates it.

rule                   patch score [C, T]                                                          problems a picture
normalized             sum_m T_nm C_nm / sum_m T_nm, the mass-normalized transport cost            C
joint                  1 - p(category | patch), against all other categories and neutral anchors   1
softmax                joint with relaxation 0: zero-shot classification against the anchors       0
paper                  sum_c sum_m T_nm C_nm, GuardAlign's Eq. 9 as printed, blind to category     C
mean-prototype-cosine  1 - cos(patch, mean prototype)                                              0
max-patch-cosine       1 - max_m cos(patch, prototype m)                                           0
global-cosine          1 - cos(picture, mean prototype), the same for every patch                  0
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Literal, NamedTuple, TypedDict, get_args

import torch
from torch import Tensor

from guardcore.detector.packing import PackedPatches, lowest_mean, packed_mean
from guardcore.ops import joint_sinkhorn_packed, sinkhorn_packed
from guardcore.prototypes.bank import PrototypeBank

Rule = Literal["normalized", "joint", "softmax", "paper", "mean-prototype-cosine", "max-patch-cosine", "global-cosine"]
Weights = Literal["uniform", "entropy", "inverse-entropy"]

# Chosen by bench/detection.py; docs/decisions/0005-scoring-rule.md shows the figures and says why.
DEFAULT_RULE: Rule = "softmax"


class SolverOptions(TypedDict):
    """See `guardcore.ops.sinkhorn`."""

    epsilon: float
    max_iterations: int
    tolerance: float
    relaxation: float | None


class Scores(NamedTuple):
    """What a rule says: patch [C, T], statistic [B, C], distance [B, C], all fp32, lower = closer to unsafe.

    distance is the transport distance <T, C> for `normalized` and `paper`; the mean cost of the mass that goes to the
    category for `joint` and `softmax`; the mean patch score for the cosines.
    """

    patch: Tensor
    statistic: Tensor
    distance: Tensor


@dataclass(frozen=True)
class Scoring:
    """A scoring rule and its settings.

    Attributes:
        rule: see the table of this module.
        relative_epsilon: epsilon in units of the bank's cost spread; > 0. Epsilon has no absolute scale: at the same
            value one encoder's plan is the independent coupling and another's the row minimum.
        relaxation: of `joint` and `normalized`: KL weight rho of the prototype marginal in units of epsilon; >= 0.
            None = balanced, 0 = no pull towards the marginal. The exponent rho / (rho + epsilon) is then
            relaxation / (relaxation + 1), whatever the encoder. "rule" = None for `normalized`, 0.1 for `joint`.
            `softmax` has 0 and `paper` None by definition, whatever this says; the cosines have no plan.
        weights: mass of the patches. `uniform`; `entropy` = exp(+h), Eq. 7 as printed; `inverse-entropy` = exp(-h),
            as the paper's prose has it. None = `entropy` for `paper` (whose prototypes get the like weights), else
            `uniform`.
        pool: a picture's statistic is the mean of its `pool` lowest patch scores; >= 1.
        logit_scale: temperature of the entropies, softmax(logit_scale * cosine); > 0. CLIP's is 100; the paper gives
            none.
        max_iterations, tolerance: stop rule of the solver, see `guardcore.ops.sinkhorn`.

    Raises:
        ValueError: a setting is out of its range; the message names it.
    """

    rule: Rule = DEFAULT_RULE
    relative_epsilon: float = 0.5
    relaxation: float | Literal["rule"] | None = "rule"
    weights: Weights | None = None
    pool: int = 1
    logit_scale: float = 100.0
    max_iterations: int = 100
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        """Check every field."""
        if self.rule not in get_args(Rule):
            raise ValueError(f"scoring rule: expected one of {', '.join(get_args(Rule))}; got {self.rule!r}")
        if self.weights not in (None, *get_args(Weights)):
            raise ValueError(f"weights: expected one of {', '.join(get_args(Weights))}; got {self.weights!r}")
        for name in ("relative_epsilon", "logit_scale"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a finite number above 0; got {getattr(self, name)!r}")
        for name in ("pool", "max_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1; got {getattr(self, name)!r}")
        relaxation = self.marginal_relaxation
        if relaxation is not None and (isinstance(relaxation, str) or not 0 <= relaxation < float("inf")):
            raise ValueError(f"relaxation: expected None, 'rule' or a finite number >= 0; got {relaxation!r}")

    @classmethod
    def parse(cls, text: str) -> Scoring:
        """Read `joint` or `joint:relative_epsilon=0.3,relaxation=none`.

        Raises:
            ValueError: the rule, a setting's name or its value is not known; the message lists what is.
        """
        rule, _, rest = text.strip().partition(":")
        settings = dict(_setting(part) for part in rest.split(",") if part.strip())
        return cls(rule=rule, **settings)  # type: ignore[arg-type]

    def __str__(self) -> str:
        """Return every setting in the form that `parse` reads; two scorings are the same if this is."""
        settings = asdict(self)
        rule = settings.pop("rule")
        settings |= {"relaxation": self.marginal_relaxation, "weights": self.patch_weights}
        return f"{rule}:" + ",".join(f"{name}={value}" for name, value in settings.items())

    @property
    def patch_weights(self) -> Weights:
        """The weights in force, with None resolved."""
        return self.weights or ("entropy" if self.rule == "paper" else "uniform")

    @property
    def marginal_relaxation(self) -> float | None:
        """The relaxation with "rule" resolved."""
        if self.relaxation != "rule":
            return self.relaxation
        return None if self.rule in ("normalized", "paper") else 0.1

    def score(self, packed: PackedPatches, bank: PrototypeBank) -> Scores:
        """Score pictures against a bank.

        A picture with a non-finite patch embedding, or with none, gets NaN; the others are not touched.

        Raises:
            ValueError: the rule needs neutral anchors and the bank has none.
        """
        self.check(bank)
        patch, distance = _RULES[self.rule](packed, bank, self)
        distance = packed_mean(patch, packed.cu_seqlens) if distance is None else distance
        return Scores(patch, lowest_mean(patch, packed.cu_seqlens, self.pool), distance)

    def check(self, bank: PrototypeBank) -> None:
        """Raise ValueError if the rule needs neutral anchors and the bank has none."""
        if self.rule in ("joint", "softmax") and not len(bank.neutral):
            raise ValueError(
                f"scoring rule {self.rule!r} weighs categories against neutral anchors, and this policy has none: "
                "add `neutral:` texts to it or use the rule 'normalized'"
            )

    def epsilon(self, bank: PrototypeBank) -> float:
        """The absolute epsilon: relative_epsilon times the bank's cost spread."""
        return self.relative_epsilon * bank.cost_spread

    def solver_options(self, bank: PrototypeBank) -> SolverOptions:
        """Keyword arguments of the transport operators."""
        epsilon = self.epsilon(bank)
        relaxation = {"softmax": 0.0, "paper": None}.get(self.rule, self.marginal_relaxation)
        return {
            "epsilon": epsilon,
            "max_iterations": self.max_iterations,
            "tolerance": self.tolerance,
            "relaxation": None if relaxation is None else relaxation * epsilon,
        }


_Part = tuple[Tensor, Tensor | None]


def _normalized(packed: PackedPatches, bank: PrototypeBank, scoring: Scoring) -> _Part:
    weights = weights_of(packed, bank, scoring)
    prototypes, mass = _to(packed, bank.prototypes, bank.weights)
    plan = sinkhorn_packed(
        packed.embeddings, packed.cu_seqlens, prototypes, weights, mass, **scoring.solver_options(bank)
    )
    return plan.patch_score, plan.distance


def _joint(packed: PackedPatches, bank: PrototypeBank, scoring: Scoring) -> _Part:
    weights = weights_of(packed, bank, scoring)
    prototypes, group, mass = _to(packed, *bank.joint())
    groups = len(bank.categories) + 1
    problem = (packed.embeddings, packed.cu_seqlens, prototypes, group, weights, mass)
    plan = joint_sinkhorn_packed(*problem, num_groups=groups, **scoring.solver_options(bank))
    # 1 - p as the sum of the other groups' shares: near p = 1, where it matters, the difference would lose all digits.
    others = (1 - torch.eye(groups, device=plan.group_mass.device)[:-1]) @ plan.group_mass
    mass_of = packed_mean(plan.group_mass, packed.cu_seqlens, weights)[:, :-1]
    cost_of = packed_mean(plan.group_cost, packed.cu_seqlens, weights)[:, :-1]
    return others, cost_of / mass_of.clamp_min(torch.finfo(torch.float32).tiny)


def _paper(packed: PackedPatches, bank: PrototypeBank, scoring: Scoring) -> _Part:
    """GuardAlign's Eq. 7-10 (arXiv 2602.24027), with either sign of the entropy.

    d(n) = sum_c sum_m T_c(n, m) C_c(n, m) belongs to a patch, not to a category, so every category carries the same
    patch score, statistic and p-value, and the picture is flagged by min_n d(n), as printed. Among equals a picture or
    region is named after the category at the smallest transport distance.
    """
    weights = weights_of(packed, bank, scoring)
    prototypes, present = _to(packed, bank.prototypes, bank.weights)
    mass = present if weights is None else present * _text_weights(prototypes, present, scoring)
    plan = sinkhorn_packed(
        packed.embeddings, packed.cu_seqlens, prototypes, weights, mass, **scoring.solver_options(bank)
    )
    return plan.patch_cost.sum(dim=0, keepdim=True).expand_as(plan.patch_cost), plan.distance


def _mean_prototype_cosine(packed: PackedPatches, bank: PrototypeBank, _: Scoring) -> _Part:
    return 1 - mean_prototypes(*_to(packed, bank.prototypes, bank.weights)) @ unit(packed.embeddings).T, None


def _max_patch_cosine(packed: PackedPatches, bank: PrototypeBank, _: Scoring) -> _Part:
    prototypes, present = _to(packed, bank.prototypes, bank.weights)
    cost = 1 - unit(prototypes) @ unit(packed.embeddings).T  # [C, M, T]
    return cost.masked_fill((present == 0)[..., None], torch.inf).amin(dim=1), None


def _global_cosine(packed: PackedPatches, bank: PrototypeBank, _: Scoring) -> _Part:
    """Of the vectors of a tiled picture the closest counts. It says nothing about place: all patches get that score."""
    cost = 1 - mean_prototypes(*_to(packed, bank.prototypes, bank.weights)) @ unit(packed.images).T  # [C, V]
    score = lowest_mean(cost, packed.image_offsets, 1)  # [B, C]
    return score.T.repeat_interleave(packed.cu_seqlens.diff().to(score.device), dim=1), score


_RULES: dict[Rule, Callable[[PackedPatches, PrototypeBank, Scoring], _Part]] = {
    "normalized": _normalized,
    "joint": _joint,
    "softmax": _joint,
    "paper": _paper,
    "mean-prototype-cosine": _mean_prototype_cosine,
    "max-patch-cosine": _max_patch_cosine,
    "global-cosine": _global_cosine,
}


def mean_prototypes(prototypes: Tensor, present: Tensor) -> Tensor:
    """Direction of the mean unit prototype of each category, Eq. 7: prototypes[C, M, D], present[C, M] -> [C, D]."""
    return unit((unit(prototypes) * present[..., None]).sum(dim=1))


def entropy(vectors: Tensor, means: Tensor, logit_scale: float) -> Tensor:
    """Entropy in nats of softmax_c(logit_scale * cos(v, mean of c)), Eq. 7: vectors[..., D], means[C, D] -> [...]."""
    logits = logit_scale * (unit(vectors) @ means.T)
    entropies: Tensor = torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)
    return entropies


def unit(vectors: Tensor) -> Tensor:
    """Vectors[..., D] of length 1; a zero vector stays zero. Scaled first, so that no length over- or underflows."""
    peak = vectors.abs().amax(dim=-1, keepdim=True)
    scaled = vectors / peak.masked_fill(peak == 0, 1)
    length: Tensor = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / length.clamp_min(1)


def weights_of(packed: PackedPatches, bank: PrototypeBank, scoring: Scoring) -> Tensor | None:
    """Weights [T] for the solver, which normalizes them per picture; entropies are at most log C, so exp is safe.

    A broken patch gets weight 1: its embedding spoils its own picture, a broken weight would stop the whole batch.
    """
    if scoring.patch_weights == "uniform":
        return None
    means = mean_prototypes(*_to(packed, bank.prototypes, bank.weights))
    return (_sign(scoring) * entropy(packed.embeddings, means, scoring.logit_scale)).exp().nan_to_num(1.0)


def _text_weights(prototypes: Tensor, present: Tensor, scoring: Scoring) -> Tensor:
    """The paper's b [C, M], "computed analogously": the entropy of each prototype over the category means."""
    means = mean_prototypes(prototypes, present)
    return (_sign(scoring) * entropy(prototypes, means, scoring.logit_scale)).exp()


def _sign(scoring: Scoring) -> int:
    return 1 if scoring.patch_weights == "entropy" else -1


def _to(packed: PackedPatches, *tensors: Tensor) -> list[Tensor]:
    return [tensor.to(packed.embeddings.device) for tensor in tensors]


def _setting(text: str) -> tuple[str, float | int | str | None]:
    """One `name=value` of `Scoring.parse`."""
    name, _, value = (part.strip() for part in text.partition("="))
    known = [field.name for field in fields(Scoring) if field.name != "rule"]
    if name not in known:
        raise ValueError(f"scoring setting: expected one of {', '.join(known)}; got {name!r}")
    if name == "weights" or value.lower() in ("none", "rule"):
        return name, None if value.lower() == "none" else value
    try:
        return name, int(value) if name in ("pool", "max_iterations") else float(value)
    except ValueError:
        raise ValueError(f"scoring setting {name}: expected a number; got {value!r}") from None
