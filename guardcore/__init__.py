"""guardcore: an accelerated backend for inference-time safety of vision-language models.

    import guardcore

    detector = guardcore.Detector(guardcore.load_encoder("builtin"), guardcore.Policy.builtin("demo"))
    verdict = detector.screen(image)
    verdict.flagged, verdict.action, verdict.scores, verdict.regions

The operators are in `guardcore.ops`, their definitions in `guardcore.reference`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    "Calibration": "detector.conformal",
    "Detector": "detector.detector",
    "FingerprintError": "prototypes.bank",
    "PatchMode": "patches",
    "Policy": "policy.policy",
    "PolicyError": "policy.errors",
    "PrototypeBank": "prototypes.bank",
    "Region": "detector.regions",
    "Scoring": "detector.scoring",
    "Verdict": "detector.verdict",
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
