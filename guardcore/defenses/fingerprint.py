"""The fingerprint of a defense."""

from __future__ import annotations

import hashlib
import json
from typing import Any

_FORMAT = 1  # raise it when the same settings start to mean something else


def digest(*settings: Any) -> str:
    """SHA-256 (hex) over plain settings, in canonical JSON."""
    text = json.dumps([_FORMAT, *settings], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
