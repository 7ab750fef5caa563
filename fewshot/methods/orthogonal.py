"""Rotations and reflections of weights."""

__all__: list[str] = []
