"""Opens a model lazily, lists its weights and the sites that feed them, runs it block by block."""

from asvd_q.models.refs import Site, WeightRef
from asvd_q.models.source import SourceModel

__all__ = ["Site", "SourceModel", "WeightRef"]
