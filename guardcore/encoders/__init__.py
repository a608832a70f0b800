"""Image-text encoders behind one protocol, and `load_encoder`, which makes one from a spec string."""

from __future__ import annotations

from typing import Any

from guardcore.encoders.protocol import Encoder, ImageEmbedding

__all__ = ["Encoder", "ImageEmbedding", "load_encoder"]

_FORMS = '"builtin", "open_clip:MODEL/PRETRAINED", "open_clip:MODEL/random", "transformers:ID_OR_DIR"'


def load_encoder(spec: str, **options: Any) -> Encoder:
    """Make the encoder that a spec string names.

    Args:
        spec: `builtin`; `open_clip:MODEL/PRETRAINED`, where PRETRAINED is a tag that open_clip knows, the path of a
            local checkpoint, or `random`; `transformers:ID_OR_DIR` for CLIP, SigLIP and SigLIP 2.
        options: of the loader: see `load_builtin`, `load_open_clip` and `load_transformers`. The two libraries' share
            `features` ("tokens", "value-path" or "value-only"), `device` and `dtype`.

    Raises:
        ValueError: the spec has none of these forms; the message lists them.
        ImportError: the extra that the encoder needs is not installed.
    """
    if not isinstance(spec, str):
        raise ValueError(f"spec: expected a string, one of {_FORMS}; got {type(spec).__name__}")
    kind, _, rest = spec.partition(":")
    if spec == "builtin":
        from guardcore.encoders.builtin import load_builtin

        return load_builtin(**options)
    if kind == "open_clip" and rest:
        from guardcore.encoders.open_clip import load_open_clip

        return load_open_clip(rest, **options)
    if kind == "transformers" and rest:
        from guardcore.encoders.transformers import load_transformers

        return load_transformers(rest, **options)
    raise ValueError(f"spec: expected one of {_FORMS}; got {spec!r}")
