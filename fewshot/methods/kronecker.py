"""Updates by Kronecker and Hadamard products, and by blocks."""

__all__: list[str] = []
