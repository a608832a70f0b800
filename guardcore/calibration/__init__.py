"""Attention calibration as plain data: whose scores change, by which rule, in which layers, and what came of it.

Arithmetic on tensors and ranges only; nothing here knows a model, a tokenizer or a picture.
"""
