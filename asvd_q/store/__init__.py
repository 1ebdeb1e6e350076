"""The compressed model on disk, written block by block, read lazily."""

from asvd_q.store.store import Store, StoredLayer, StoreHeader

__all__ = ["Store", "StoreHeader", "StoredLayer"]
