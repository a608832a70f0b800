"""Other people's ways to compute what our operators compute, one file an operator."""
