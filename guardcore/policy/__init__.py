"""Policies: what is unsafe, what only looks like it, and what to do about it."""
