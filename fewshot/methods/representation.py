"""Interventions on representations."""

__all__: list[str] = []
