"""Defenses on vision-language models of transformers, through its own seams: no model class is patched."""
