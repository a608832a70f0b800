"""Prototype banks: the texts of a policy as the vectors of one encoder."""
