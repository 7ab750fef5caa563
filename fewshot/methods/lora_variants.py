"""Relatives of LoRA that train each site by itself."""

__all__: list[str] = []
