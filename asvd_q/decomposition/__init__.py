"""Scaling, spectrum, factors: W ≈ A B, or codes with A B beside them: W ≈ Q + A B."""

from asvd_q.decomposition.correction import (
    CorrectionTarget,
    leading_directions,
    projected_gram,
)
from asvd_q.decomposition.factors import Factors, relative_output_error, truncate
from asvd_q.decomposition.refit import refit_left, refit_target, refitted_output_error
from asvd_q.decomposition.rotation import latent_rotation, rotate
from asvd_q.decomposition.scaling import (
    Scaling,
    diagonal_scaling,
    identity_scaling,
    whitening_scaling,
)
from asvd_q.decomposition.spectrum import Spectrum, spectrum

__all__ = [
    "CorrectionTarget",
    "Factors",
    "Scaling",
    "Spectrum",
    "diagonal_scaling",
    "identity_scaling",
    "latent_rotation",
    "leading_directions",
    "projected_gram",
    "refit_left",
    "refit_target",
    "refitted_output_error",
    "relative_output_error",
    "rotate",
    "spectrum",
    "truncate",
    "whitening_scaling",
]
