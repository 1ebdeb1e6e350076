"""Model folders whose files hold codes or factors, read as if they held the dense weights.

A format is one file, with a function that finds its matrices (see `Format`), and one entry in
`FORMATS`.
"""

from asvd_q.models.stored.contents import FORMATS, Codes, Contents, read_contents

__all__ = ["FORMATS", "Codes", "Contents", "read_contents"]
