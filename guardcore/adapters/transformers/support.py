"""Which models can be calibrated: where their text attention is, and what stands in the way, by name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.calibration.layer_rule import layer_rules
from guardcore.calibration.spans import TokenClass


class UnsupportedError(NotImplementedError):
    """A model, or what it was asked to do, that attention calibration can't serve; the message says why."""


@dataclass(frozen=True, eq=False)
class TextModel:
    """The text side of a vision-language model.

    Attributes:
        config: its configuration, whose attention implementation is exchanged.
        path: names of the sub-configurations from the model's to this one; empty if it is the model's own.
        depth: layers.
        heads: query heads of a layer.
        scale: of the attention's scores.
        layers: by index the modules that attend through transformers' attention interface.
        problems: by index why a layer can't be calibrated.
    """

    config: Any
    path: tuple[str, ...]
    depth: int
    heads: int
    scale: float
    layers: Mapping[int, nn.Module]
    problems: Mapping[int, str]

    def check(self, calibrations: Iterable[AttentionCalibration | None]) -> None:
        """Raise UnsupportedError unless every rule finds a layer that it can act in, and none that it can't.

        Raise ValueError if a calibration names layers or heads that the model does not have.
        """
        for calibration in calibrations:
            if calibration is not None:
                layer_rules([calibration], depth=self.depth, heads=self.heads, scale=self.scale)
                self._check_layers(calibration)
                self._check_rules(calibration)

    def eager_attention(self) -> Callable[..., Any]:
        """The function behind "eager", which every modeling file has for itself; raise UnsupportedError without one."""
        files = {sys.modules[type(module).__module__] for module in self.layers.values()}
        found = {getattr(each, "eager_attention_forward", None) for each in files}
        function = found.pop()
        if function is None or found:
            raise UnsupportedError(
                "its layers have no eager attention in common; load it with attn_implementation='sdpa'"
            )
        return function

    def _check_layers(self, calibration: AttentionCalibration) -> None:
        wanted = calibration.layer_indices(self.depth)
        named = not any(isinstance(layer, float) for layer in calibration.layers)
        for layer in wanted:
            if layer in self.problems or (named and layer not in self.layers):
                raise UnsupportedError(f"layer {layer} can't be calibrated: {self._problem(layer)}")
        if wanted and not set(wanted) & set(self.layers):
            raise UnsupportedError(f"none of the layers {list(wanted)} can be calibrated: {self._problem(wanted[0])}")

    def _check_rules(self, calibration: AttentionCalibration) -> None:
        """Keys of pictures are in cross-attention layers where the model has such, all others among the text's."""
        wanted = calibration.layer_indices(self.depth)
        crossing = {layer for layer, module in self.layers.items() if is_cross_attention(module)}
        for kind in sorted(calibration.classes):
            across = kind is TokenClass.IMAGE and bool(crossing)
            heard_in = crossing if across else set(self.layers) - crossing
            if not heard_in & set(wanted):
                raise UnsupportedError(
                    f"a rule for {kind.name.lower()} needs a {'cross' if across else 'self'}-attention layer; "
                    f"none of the layers {list(wanted)} is one"
                )

    def _problem(self, layer: int) -> str:
        return self.problems.get(layer, "it does not attend through transformers' attention interface")


def find_text_model(model: Any) -> TextModel:
    """Find the text side of a model of transformers.

    Raises:
        UnsupportedError: it has none, is an encoder-decoder or on several devices, or no layer can be calibrated.
    """
    name = type(model).__name__
    if not hasattr(model, "config") or not hasattr(model, "set_attn_implementation"):
        raise UnsupportedError(f"{name} is no model of transformers with an attention interface")
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise UnsupportedError(f"{name} is spread over several devices; put it on one")
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedError(f"{name} is an encoder-decoder: its prompt and its answer are not one sequence")
    config = model.config.get_text_config(decoder=True)
    path = _path(model.config, config)
    if path is None:
        raise UnsupportedError(f"{name} keeps its text configuration where set_attn_implementation does not reach")
    layers = {
        module.layer_idx: module
        for module in model.modules()
        if getattr(module, "config", None) is config and _attends(module)
    }
    problems = {layer: why for layer, module in layers.items() if (why := _obstacle(module, config)) is not None}
    usable = [module for layer, module in layers.items() if layer not in problems]
    if not usable:
        why = next(iter(problems.values()), "no layer attends through transformers' attention interface")
        raise UnsupportedError(f"the attention of {name} can't be calibrated: {why}")
    scale = getattr(usable[0], "scaling", None) or getattr(usable[0], "head_dim", 1) ** -0.5
    return TextModel(config, path, config.num_hidden_layers, config.num_attention_heads, scale, layers, problems)


def check_version() -> None:
    """Raise UnsupportedError if the installed transformers does not tell a mask function where its rows are."""
    import transformers
    from transformers import masking_utils

    if "q_offset" not in inspect.signature(masking_utils.sdpa_mask).parameters:
        raise UnsupportedError(
            f"transformers {transformers.__version__} describes masks otherwise; 5.23 is known to work"
        )


def is_cross_attention(module: nn.Module) -> bool:
    """Whether a layer's keys are of pictures rather than of the text."""
    return bool(getattr(module, "is_cross_attention", "CrossAttention" in type(module).__name__))


def _path(config: Any, text: Any) -> tuple[str, ...] | None:
    if config is text:
        return ()
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        found = None if inner is None else _path(inner, text)
        if found is not None:
            return (name, *found)
    return None


def _attends(module: nn.Module) -> bool:
    """Whether the module calls the attention function that its configuration names."""
    if not isinstance(getattr(module, "layer_idx", None), int):
        return False
    try:
        return "get_interface(" in inspect.getsource(type(module).forward)
    except (OSError, TypeError):
        return False


def _obstacle(module: nn.Module, config: Any) -> str | None:
    if getattr(module, "sinks", None) is not None:
        return "it has attention sinks, a share of the attention that no key gets"
    if hasattr(module, "kv_lora_rank"):
        return "its attention is latent: keys and values of different widths"
    kinds = getattr(config, "layer_types", None)
    kind = kinds[module.layer_idx] if kinds else None
    chunked = kind == "chunked_attention" if kind else getattr(config, "attention_chunk_size", None) is not None
    return "its attention is chunked: a row sees its own chunk only" if chunked else None
