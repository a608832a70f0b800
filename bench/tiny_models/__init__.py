"""Random-weight vision-language models small enough for tests, each with a real processor of its family.

`build("llava").model.generate(**processor output)` works without a network: tokenizers are trained on a few sentences,
image processors get tiny sizes. For tests and benchmarks of `guardcore.adapters.transformers`.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.tiny_models.llava import llava
from bench.tiny_models.qwen import qwen2_vl
from bench.tiny_models.tiny_model import TinyModel

FAMILIES: dict[str, Callable[[int], TinyModel]] = {
    "llava": llava,
    "qwen2_vl": qwen2_vl,
}


def build(name: str, seed: int = 0) -> TinyModel:
    """Build the tiny model of a family; seconds.

    Raises:
        ValueError: there is no such family.
    """
    if name not in FAMILIES:
        raise ValueError(f"name: expected one of {sorted(FAMILIES)}; got {name!r}")
    return FAMILIES[name](seed)


__all__ = ["FAMILIES", "TinyModel", "build"]
