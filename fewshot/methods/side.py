"""Networks beside the backbone."""

__all__: list[str] = []
