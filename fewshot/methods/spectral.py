"""Updates in a weight's spectrum: singular values, triangular factors, Fourier and cosine bases."""

__all__: list[str] = []
