"""Random-weight vision-language models small enough for tests, each with a real processor of its family.

`build("llava").model.generate(**processor output)` works without a network: tokenizers are trained on a few sentences,
image processors get tiny sizes. For tests and benchmarks of `guardcore.adapters.transformers`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.tiny_models.gemma import gemma3, paligemma
from bench.tiny_models.idefics import idefics3, smolvlm
from bench.tiny_models.internvl import internvl
from bench.tiny_models.llava import llava, llava_next, llava_onevision
from bench.tiny_models.mistral import mistral3
from bench.tiny_models.mllama import mllama
from bench.tiny_models.qwen import qwen2_5_vl, qwen2_vl, qwen3_vl
from bench.tiny_models.tiny_model import TinyModel

FAMILIES: dict[str, Callable[[], TinyModel]] = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "internvl": internvl,
    "smolvlm": smolvlm,
    "idefics3": idefics3,
    "gemma3": gemma3,
    "mistral3": mistral3,
    "paligemma": paligemma,
    "mllama": mllama,
}


def build(name: str, seed: int = 0) -> TinyModel:
    """Build the tiny model of a family, a fraction of a second after transformers is imported.

    Raises:
        ValueError: there is no such family.
    """
    if name not in FAMILIES:
        raise ValueError(f"name: expected one of {sorted(FAMILIES)}; got {name!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FAMILIES[name]()


__all__ = ["FAMILIES", "TinyModel", "build"]
