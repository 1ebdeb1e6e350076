"""Keys of what a model file says of itself: the metadata properties of `model.onnx`.

The unpacker has them in words of its own, because it shares no code with the exporter.
"""

from __future__ import annotations

__all__ = ["BUFFERS_KEY", "MERGED_KEY", "METADATA_KEY", "POSITIONS_KEY", "SHARED_KEY"]

METADATA_KEY = "asvd_q"
"""The artefact's metadata, as JSON."""

SHARED_KEY = "asvd_q.shared"
"""The parameters that the file holds under another's name, as JSON."""

MERGED_KEY = "asvd_q.merged"
"""The matrices that the file holds as one, with the rows of each, as JSON."""

BUFFERS_KEY = "asvd_q.buffers"
""""shared" where past and present may be the same memory."""

POSITIONS_KEY = "asvd_q.positions"
"""How many tokens the graph takes at most, where it has a table of positions."""
