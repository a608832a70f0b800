"""Which attention is calibrated: rules by span, layers, heads and rows, as plain data with a fingerprint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from guardcore.calibration.mass import LayerMass
from guardcore.calibration.score_rule import ScoreRule
from guardcore.calibration.spans import Rows, TokenClass, check_rows

MIDDLE_BAND = (0.28, 0.45)
_SPANS = tuple(kind.name.lower() for kind in TokenClass if kind is not TokenClass.UNTOUCHED)
_FORMAT = 1  # part of every fingerprint: raise it when the same fields start to mean something else


@dataclass(frozen=True)
class AttentionCalibration:
    """A rule for the attention of chosen rows to chosen spans, in chosen layers and heads.

    Nothing in it can change: `rules` and `heads` are read-only views of copies.

    Attributes:
        rules: by span (`prefix`, `instruction`, `image`, `unsafe`) its rule, or text for `ScoreRule.parse`. Rule
            `target_mass` is for the prefix only.
        layers: two numbers with a decimal point are a band of depth: of L layers those with start <= l / L < end, or
            the one that the band's middle falls into if there is none. Whole numbers are the layers themselves. The
            default takes layers 9 to 14 of 32.
        heads: by layer the query heads that are calibrated; layers without an entry are not. None is all heads.
        rows: `instruction`, or with what is generated.

    Raises:
        ValueError: an unknown span, a bad rule, band, layer, head or choice of rows; it is named.

    What the paper leaves open (strength, layers, heads, generated rows) follows its closest ancestor: ClearSight
    (arXiv 2503.13107) enhances layers 9 to 14 of 32 by 0.15, in all heads, while decoding too.

    Source: Zhu et al. 2026 (arXiv 2602.24027), section 3.2.
    """

    rules: Mapping[str, ScoreRule] = field(default_factory=lambda: {"prefix": ScoreRule("gated", 0.15)})
    layers: tuple[float, float] | tuple[int, ...] = MIDDLE_BAND
    heads: Mapping[int, tuple[int, ...]] | None = None
    rows: Rows = "instruction+generated"

    def __post_init__(self) -> None:
        """Check every field, and bring it into the one form that its fingerprint knows."""
        heads = _checked_heads(self.heads)
        object.__setattr__(self, "rules", MappingProxyType(_checked_rules(self.rules)))
        object.__setattr__(self, "layers", _checked_layers(self.layers))
        object.__setattr__(self, "heads", None if heads is None else MappingProxyType(heads))
        check_rows(self.rows)

    def layer_indices(self, depth: int) -> tuple[int, ...]:
        """The layers of a model with `depth` layers that are calibrated, in order.

        Raises:
            ValueError: a layer that the model does not have, or heads of a layer that is not among `layers`.
        """
        if _is_band(self.layers):
            start, end = self.layers
            found = tuple(layer for layer in range(depth) if start <= layer / depth < end)
            found = found or (int((start + end) / 2 * depth),)
        else:
            found = tuple(int(layer) for layer in self.layers)
            if found and found[-1] >= depth:
                raise ValueError(f"layers: expected below the model's {depth} layers; got {found[-1]}")
        if self.heads is None:
            return found
        stray = sorted(set(self.heads) - set(found))
        if stray:
            raise ValueError(f"heads: expected layers among {list(found)}; got {stray[0]}")
        return tuple(layer for layer in found if layer in self.heads)

    @property
    def classes(self) -> frozenset[TokenClass]:
        """The classes of keys that have a rule which changes anything."""
        return frozenset(TokenClass[name.upper()] for name, rule in self.rules.items() if rule.active)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over all fields: keys and values in caches depend on it."""
        text = json.dumps([_FORMAT, self.to_dict()], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        # By the fingerprint: layers (0, 1) are two layers, (0.0, 1.0) are all of them, and Python calls them equal.
        return isinstance(other, AttentionCalibration) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> tuple[Any, ...]:
        # Read-only views can be neither pickled nor copied, what they show can.
        heads = None if self.heads is None else dict(self.heads)
        return type(self), (dict(self.rules), self.layers, heads, self.rows)

    def __str__(self) -> str:
        rules = ", ".join(f"{name} {rule}" for name, rule in self.rules.items()) or "no rule"
        band = f"{self.layers[0]:g} to {self.layers[-1]:g} of the depth"
        layers = band if _is_band(self.layers) else ", ".join(map(str, self.layers))
        heads = "all heads" if self.heads is None else f"{sum(map(len, self.heads.values()))} heads"
        return f"{rules}; layers {layers}; {heads}; {self.rows}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        heads = None if self.heads is None else {str(layer): list(heads) for layer, heads in self.heads.items()}
        rules = {name: str(rule) for name, rule in self.rules.items()}
        return {"rules": rules, "layers": list(self.layers), "heads": heads, "rows": self.rows}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AttentionCalibration:
        """What `to_dict` gave; raise ValueError at an unknown field or a bad value. Left out fields are the default."""
        if not isinstance(data, Mapping):
            raise ValueError(f"calibration: expected a mapping of fields; got {type(data).__name__}")
        unknown = sorted(set(data) - {"rules", "layers", "heads", "rows"})
        if unknown:
            raise ValueError(f"calibration: expected the fields rules, layers, heads, rows; got {unknown[0]!r}")
        fields = dict(data)
        if isinstance(fields.get("heads"), Mapping):
            fields["heads"] = {_layer_number(layer): heads for layer, heads in fields["heads"].items()}
        return cls(**fields)

    def save(self, path: str | Path) -> None:
        """Write the calibration as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> AttentionCalibration:
        """Read what `save` wrote; raise ValueError with the file's name, or OSError."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:  # the latter: brackets in brackets in brackets
            raise ValueError(f"{path}: {error}") from error

    def fit(self, masses: Sequence[Sequence[LayerMass]], heads: int) -> AttentionCalibration:
        """The same rules in the heads where they act most.

        Args:
            masses: for each of some requests what their traces hold, under this calibration.
            heads: pairs of layer and query head to keep, those with the largest |mean over requests of after -
                before|; among equals the first. >= 1.

        Raises:
            TypeError: something else than masses by request.
            ValueError: no masses, a mass that is not finite, requests with different layers or heads, or fewer pairs
                than `heads`.
        """
        pairs = _effects(masses)
        if not _is_index(heads) or not 1 <= heads <= len(pairs):
            raise ValueError(f"heads: expected 1 to the {len(pairs)} pairs of layer and head; got {heads!r}")
        kept = sorted(sorted(pairs, key=lambda pair: -pairs[pair])[:heads])
        chosen = {layer: tuple(head for own, head in kept if own == layer) for layer, _ in kept}
        return replace(self, layers=tuple(chosen), heads=chosen)


def _effects(masses: Sequence[Sequence[LayerMass]]) -> dict[tuple[int, int], float]:
    """By (layer, head), in order, the size of the mean change over the requests."""
    for request in masses:
        if not isinstance(request, Sequence) or not all(isinstance(mass, LayerMass) for mass in request):
            raise TypeError("masses: expected for each request a sequence of LayerMass, such as its trace's masses")
    shapes = {tuple((mass.layer, len(mass.after)) for mass in request) for request in masses}
    if len(shapes) != 1 or not next(iter(shapes)):
        raise ValueError(f"masses: expected requests with the same layers and heads; got {len(shapes)} kinds, or none")
    sums: dict[tuple[int, int], float] = {}
    for number, request in enumerate(masses):
        for mass in request:
            for head, change in enumerate(mass.change):
                if not math.isfinite(change):
                    raise ValueError(f"masses: expected finite ones; request {number}, {mass}, head {head} has none")
                sums[mass.layer, head] = sums.get((mass.layer, head), 0.0) + change
    return {pair: abs(sums[pair]) / len(masses) for pair in sorted(sums)}


def _checked_rules(rules: Mapping[str, ScoreRule | str]) -> dict[str, ScoreRule]:
    if not isinstance(rules, Mapping):
        raise ValueError(f"rules: expected a mapping of spans to rules; got {type(rules).__name__}")
    found = {}
    for name, rule in rules.items():
        if name not in _SPANS:
            raise ValueError(f"rules: expected spans among {', '.join(_SPANS)}; got {name!r}")
        rule = ScoreRule.parse(rule) if isinstance(rule, str) else rule
        if not isinstance(rule, ScoreRule):
            raise ValueError(f"rules: expected a ScoreRule for {name}; got {type(rule).__name__}")
        if rule.kind == "target_mass" and name != "prefix":
            raise ValueError(f"rules: target_mass is for the prefix only; got it for {name}")
        found[name] = rule
    return dict(sorted(found.items()))


def _is_band(layers: Sequence[float]) -> bool:
    return any(isinstance(layer, float) for layer in layers)


def _checked_layers(layers: Sequence[float]) -> tuple[float, ...]:
    if not isinstance(layers, Sequence) or isinstance(layers, str | bytes):
        raise ValueError(f"layers: expected a band of depth or layer numbers; got {layers!r}")
    if not all(isinstance(layer, int | float) and not isinstance(layer, bool) for layer in layers):
        raise ValueError(f"layers: expected numbers; got {list(layers)!r}")
    if _is_band(layers):
        if len(layers) != 2 or not 0 <= layers[0] < layers[1] <= 1:
            raise ValueError(f"layers: expected a band 0 <= start < end <= 1; got {list(layers)!r}")
        return float(layers[0]), float(layers[1])
    if not layers or min(layers) < 0:
        raise ValueError(f"layers: expected at least one layer number, none negative; got {list(layers)!r}")
    return tuple(sorted(set(layers)))


def _checked_heads(heads: Mapping[int, Sequence[int]] | None) -> dict[int, tuple[int, ...]] | None:
    if heads is None:
        return None
    if not isinstance(heads, Mapping) or not heads:
        raise ValueError(f"heads: expected heads by layer, or None for all; got {heads!r}")
    for layer, chosen in heads.items():
        fine = isinstance(chosen, Sequence) and bool(chosen) and all(map(_is_index, chosen))
        if not _is_index(layer) or not fine:
            raise ValueError(f"heads: expected a layer and its heads, numbers >= 0; got {layer!r}: {chosen!r}")
    return {layer: tuple(sorted(set(heads[layer]))) for layer in sorted(heads)}


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _layer_number(layer: object) -> int:
    """The number that JSON writes as text; in one spelling only, so that no two entries are of the same layer."""
    if isinstance(layer, str) and layer.isdecimal() and layer == str(int(layer)):
        return int(layer)
    if isinstance(layer, int) and _is_index(layer):
        return layer
    raise ValueError(f"heads: expected layer numbers; got {layer!r}")
