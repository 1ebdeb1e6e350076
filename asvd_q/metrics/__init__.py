"""Quality measures: functions of logits and token ids alone."""

from asvd_q.metrics.divergence import agreement, kl_divergence, relative_error
from asvd_q.metrics.perplexity import PerplexityMeter, token_nll

__all__ = ["PerplexityMeter", "agreement", "kl_divergence", "relative_error", "token_nll"]
