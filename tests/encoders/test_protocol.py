"""Spec strings, and what importing the encoders must not bring in."""

from __future__ import annotations

import subprocess
import sys

import pytest

from guardcore.encoders import Encoder, load_encoder

LIST_HEAVY = """
import sys
import guardcore.encoders, guardcore.patches
import guardcore.encoders.open_clip, guardcore.encoders.transformers, guardcore.encoders.vlm
print([name for name in ("open_clip", "transformers", "torchvision", "timm", "triton") if name in sys.modules])
"""


@pytest.mark.parametrize("spec", ["", "clip", "open_clip", "open_clip:", "transformers:", "builtin:x", "file:weights"])
def test_a_bad_spec_lists_the_forms(spec: str) -> None:
    with pytest.raises(ValueError, match=r"open_clip:MODEL/PRETRAINED.*transformers:ID_OR_DIR"):
        load_encoder(spec)


def test_a_spec_of_another_type_is_named() -> None:
    with pytest.raises(ValueError, match="got NoneType"):
        load_encoder(None)  # type: ignore[arg-type]


def test_importing_the_encoders_imports_no_heavy_library() -> None:
    found = subprocess.run([sys.executable, "-c", LIST_HEAVY], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_an_object_that_is_no_encoder_is_told_apart() -> None:
    assert not isinstance(object(), Encoder)
