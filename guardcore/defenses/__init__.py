"""Defenses, one method a file, over the small common protocol of `guardcore.defenses.protocol`.

A defense knows no model library: it asks a `Host` to generate and to screen, and says in a trace what it did and why.
"""
