"""Updates in a random subspace of all weights."""

__all__: list[str] = []
