"""guardcore: an accelerated backend for inference-time safety of vision-language models."""

__version__ = "0.1.0"
