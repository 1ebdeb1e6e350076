"""The models that decode: a small real one, and random Llamas of any width."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks._families import save_tokenizer

__all__ = ["WIDE", "WIDTHS", "WREN", "Llama", "model_folder", "narrow"]

WREN = Path(__file__).resolve().parent.parent / "tests" / "data" / "wren"

_POSITIONS = 2048
_HEAD_SIZE = 64


@dataclass(frozen=True)
class Llama:
    """The shape of a random model.

    Attributes:
        hidden, intermediate: width of the stream and of the feed-forward layers.
        heads, kv_heads: of 64 channels each.
    """

    hidden: int
    intermediate: int
    blocks: int
    heads: int
    kv_heads: int
    vocabulary: int


WIDE = Llama(hidden=2048, intermediate=5632, blocks=4, heads=32, kv_heads=4, vocabulary=32000)
"""The layers of a Llama of 1.1 billion parameters, four blocks of its twenty-two."""

WIDTHS = (256, 512, 1024, 2048)


def narrow(width: int) -> Llama:
    """Two blocks of `WIDE`'s proportions, with a head too small to matter."""
    heads = width // _HEAD_SIZE
    return Llama(
        hidden=width,
        intermediate=width * WIDE.intermediate // WIDE.hidden,
        blocks=2,
        heads=heads,
        kv_heads=max(heads * WIDE.kv_heads // WIDE.heads, 1),
        vocabulary=1024,
    )


def model_folder(model: Path | Llama, folder: Path) -> Path:
    """Where a model lies; a random one is saved in `folder` unless it is there already.

    In bfloat16, a matrix (out, in) normal with variance 1 / in.
    """
    if isinstance(model, Path):
        return model
    if (folder / "tokenizer.json").is_file():  # what is written last
        return folder
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=model.hidden,
        intermediate_size=model.intermediate,
        num_hidden_layers=model.blocks,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        vocab_size=model.vocabulary,
        max_position_embeddings=_POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    decoder = LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.ndim == 2:
                scale = 1.0 if "embed_tokens" in name else parameter.shape[1] ** -0.5
                parameter.normal_(std=scale)
    decoder.save_pretrained(folder)
    save_tokenizer(folder, model.vocabulary)
    return folder
