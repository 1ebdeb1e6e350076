"""Allocation: what is known of the layers in, a plan out."""

from asvd_q.search.planning import make_plan
from asvd_q.search.uniform import RankChoice, explicit_ranks, uniform_ranks

__all__ = ["RankChoice", "explicit_ranks", "make_plan", "uniform_ranks"]
