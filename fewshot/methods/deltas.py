"""Sparse deltas: a few entries of a weight, their indices and values alone."""

__all__: list[str] = []
