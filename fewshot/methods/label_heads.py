"""Heads that read what a class is called."""

__all__: list[str] = []
