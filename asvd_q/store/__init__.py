"""The compressed model on disk, written block by block, read lazily."""

from asvd_q.store.store import Store, StoredLayer, StoreHeader, is_store, store_metadata

__all__ = ["Store", "StoreHeader", "StoredLayer", "is_store", "store_metadata"]
