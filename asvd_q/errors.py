"""Errors a person can act on.

Every message is one line that names the field, layer or file at fault and what to do.
The command line prints it without a traceback and exits with code 2.
"""

__all__ = [
    "ArtefactError",
    "AsvdQError",
    "CorpusError",
    "ExportError",
    "MissingExtraError",
    "ModelError",
    "NumericsError",
    "ParityError",
    "RankError",
    "RecipeError",
    "ResourceError",
    "StoreError",
    "TaskError",
    "first_line",
]


def first_line(error: BaseException) -> str:
    """First line of another library's error, to be quoted in a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class AsvdQError(Exception):
    """Base of all errors that are the input's or the machine's fault, not the program's."""


class RecipeError(AsvdQError):
    """The recipe, or an override of it, is not valid."""


class ModelError(AsvdQError):
    """The source model cannot be found, read or understood."""


class CorpusError(AsvdQError):
    """A corpus is missing, empty or too short for what is asked of it."""


class RankError(AsvdQError):
    """A rank lies outside what the layer's shape allows."""


class NumericsError(AsvdQError):
    """NaN or infinity, or a factorisation that fails at every damping."""


class StoreError(AsvdQError):
    """A compressed store is missing, incomplete, damaged or of another recipe."""


class ExportError(AsvdQError):
    """An exporter cannot hold what the plan asks for."""


class ArtefactError(AsvdQError):
    """A folder is not an artefact of ours, or its files are damaged."""


class ParityError(AsvdQError):
    """An exported artefact does not agree with the store it was written from."""


class TaskError(AsvdQError):
    """A task cannot be loaded, or not be put to a model."""


class ResourceError(AsvdQError):
    """Too little memory or disk, or a place that cannot be written."""


class MissingExtraError(AsvdQError):
    """An optional package is not installed.

    Args:
        package: the distribution that is missing.
        extra: the extra of asvd-q that brings it.
        purpose: what it is needed for, as the end of a sentence.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{package} is not installed and is needed to {purpose}: pip install 'asvd-q[{extra}]'"
        )
        self.package = package
        self.extra = extra
