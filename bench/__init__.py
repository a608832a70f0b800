"""Measurements of guardcore: cases, rivals and the runner that compares them."""
