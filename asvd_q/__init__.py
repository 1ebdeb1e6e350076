"""asvd-q: low-rank decomposition and quantization of language models, exported and proven.

Importing this package loads neither torch nor transformers.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
