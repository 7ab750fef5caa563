"""Selections of leaves by what they are: attention, layers, embeddings, tokens."""

__all__: list[str] = []
