"""Prompts in every layer, of text and image encoders."""

__all__: list[str] = []
