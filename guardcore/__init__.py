"""guardcore: an accelerated backend for inference-time safety of vision-language models.

    import guardcore

    detector = guardcore.Detector(guardcore.load_encoder("builtin"), guardcore.Policy.builtin("demo"))
    verdict = detector.screen(image)
    verdict.flagged, verdict.action, verdict.scores, verdict.regions

    with guardcore.attach(guardcore.GuardAlign(detector), model, processor) as guarded:
        answer = guarded.generate(image, "What is this?", max_new_tokens=64)
    answer.text, answer.verdict, answer.trace

The operators are in `guardcore.ops`, their definitions in `guardcore.reference`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guardcore.adapters.transformers.attach import attach as attach
    from guardcore.calibration.attention_calibration import AttentionCalibration as AttentionCalibration
    from guardcore.calibration.score_rule import ScoreRule as ScoreRule
    from guardcore.defenses.eta import ETA as ETA
    from guardcore.defenses.guardalign import GuardAlign as GuardAlign
    from guardcore.defenses.none import Undefended as Undefended
    from guardcore.defenses.prefix import PlainPrefix as PlainPrefix
    from guardcore.detector.conformal import Calibration as Calibration
    from guardcore.detector.detector import Detector as Detector
    from guardcore.detector.regions import Region as Region
    from guardcore.detector.scoring import Scoring as Scoring
    from guardcore.detector.verdict import Verdict as Verdict
    from guardcore.encoders import load_encoder as load_encoder
    from guardcore.patches import PatchMode as PatchMode
    from guardcore.policy.errors import PolicyError as PolicyError
    from guardcore.policy.policy import Policy as Policy
    from guardcore.prototypes.bank import FingerprintError as FingerprintError
    from guardcore.prototypes.bank import PrototypeBank as PrototypeBank

__version__ = "0.1.0"

# Names are imported at first use: the command line's help must not wait for torch.
_HOME = {
    "AttentionCalibration": "calibration.attention_calibration",
    "Calibration": "detector.conformal",
    "Detector": "detector.detector",
    "ETA": "defenses.eta",
    "FingerprintError": "prototypes.bank",
    "GuardAlign": "defenses.guardalign",
    "PatchMode": "patches",
    "PlainPrefix": "defenses.prefix",
    "Policy": "policy.policy",
    "PolicyError": "policy.errors",
    "PrototypeBank": "prototypes.bank",
    "Region": "detector.regions",
    "ScoreRule": "calibration.score_rule",
    "Scoring": "detector.scoring",
    "Undefended": "defenses.none",
    "Verdict": "detector.verdict",
    "attach": "adapters.transformers.attach",
    "load_encoder": "encoders",
}
_MODULES = ("encoders", "ops", "reference")

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module at first use; raise AttributeError for any other."""
    if name in _MODULES:
        return import_module(f"guardcore.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'guardcore' has no attribute {name!r}")
    value = getattr(import_module(f"guardcore.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*__all__, *_MODULES])
