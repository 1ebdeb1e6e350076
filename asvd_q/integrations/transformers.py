"""Lets plain transformers load our checkpoints without remote code.

    import asvd_q.integrations.transformers

After that `AutoConfig`, `AutoModel` and `AutoModelForCausalLM` know the model types of
`FAMILIES`, `asvd_q_llama` and so on, whatever the weights are quantized with. Classes come from
this package; the file of them that lies in a checkpoint is not run.
"""

from __future__ import annotations

from transformers import CONFIG_MAPPING

from asvd_q.errors import ModelError
from asvd_q.models import modeling_asvd_q as modeling

__all__ = ["FAMILIES", "register"]

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "opt", "gpt2")
"""Architectures that importing this module registers."""


def register(model_type: str) -> str:
    """Let the auto classes load factorised checkpoints of one more architecture.

    Args:
        model_type: as transformers calls it ("llama"), or as our checkpoints do
            ("asvd_q_llama").

    Returns:
        What our checkpoints call it.

    Raises:
        ModelError: transformers has no causal language model of that type.
    """
    base = modeling.base_type(model_type)
    try:
        return modeling.register(CONFIG_MAPPING[base])
    except KeyError as error:
        raise ModelError(
            f"model_type: transformers has no causal language model called {base!r}"
        ) from error


for _family in FAMILIES:
    register(_family)
