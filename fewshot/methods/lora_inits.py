"""Where low-rank updates start: from weights, from data, from gradients."""

__all__: list[str] = []
