"""The recipe: its schema, its files, and messages for people who write them.

Importing this package loads neither torch nor transformers.
"""

from asvd_q.recipe.base import matches
from asvd_q.recipe.budget import BudgetSection
from asvd_q.recipe.corpora import BUILT_IN, CalibrationSection, CorpusSection, EvaluateSection
from asvd_q.recipe.correct import CorrectSection
from asvd_q.recipe.decompose import DecomposeSection
from asvd_q.recipe.export import ExportSection
from asvd_q.recipe.load import load_recipe
from asvd_q.recipe.messages import explain_validation_error
from asvd_q.recipe.model import ModelSection
from asvd_q.recipe.quantize import FULLY_AWARE, FactorAware, QuantizeOverride, QuantizeSection
from asvd_q.recipe.quantsettings import QUANTIZATION_METHODS, PartialQuantSpec
from asvd_q.recipe.schema import Recipe, json_schema
from asvd_q.recipe.search import SearchSection
from asvd_q.recipe.tasks import TaskSection

__all__ = [
    "BUILT_IN",
    "FULLY_AWARE",
    "QUANTIZATION_METHODS",
    "BudgetSection",
    "CalibrationSection",
    "CorpusSection",
    "CorrectSection",
    "DecomposeSection",
    "EvaluateSection",
    "ExportSection",
    "FactorAware",
    "ModelSection",
    "PartialQuantSpec",
    "QuantizeOverride",
    "QuantizeSection",
    "Recipe",
    "SearchSection",
    "TaskSection",
    "explain_validation_error",
    "json_schema",
    "load_recipe",
    "matches",
]
