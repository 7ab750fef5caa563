"""Trained keys and values in front of those of attention."""

__all__: list[str] = []
