"""Other people's ways to compute what our operators compute, one file a library.

Every one starts from the raw embeddings, normalization and cost included, and ends at the operator's values; each is
the best use of its library that we know of. Corrections by the libraries' authors are welcome.
"""
