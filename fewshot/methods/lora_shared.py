"""Low-rank updates whose factors are shared between sites."""

__all__: list[str] = []
