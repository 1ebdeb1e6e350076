"""`genai_config.json`, from which ONNX Runtime GenAI knows how to run the graph beside it.

GenAI reads what it needs of a model here and never looks into `config.json`. What the graph itself
says, it is asked for; the configuration names the tokens and the length.

Source: the files that onnxruntime-genai 0.18's own builder writes, and runs of that version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asvd_q.errors import ExportError
from asvd_q_exporters.onnx.save import MODEL_FILE
from asvd_q_exporters.onnx.session import LEVEL

if TYPE_CHECKING:
    import onnx_ir

    from asvd_q.models import SourceModel
    from asvd_q_exporters.onnx.decoders import AttentionForm, Past

__all__ = [
    "GENAI_FILE",
    "GraphFacts",
    "expected_facts",
    "genai_config",
    "genai_text",
    "graph_facts",
]

GENAI_FILE = "genai_config.json"
_GENERATION_FILE = "generation_config.json"

_TOKENS = ("input_ids", "attention_mask", "position_ids")
_NEEDED = ("max_position_embeddings", "hidden_size", "num_attention_heads", "vocab_size")
_ORIGINAL = "original_max_position_embeddings"
_RESTART = 4096
"""Tokens after which GenAI computes a "phi3" model's cache anew."""

_SEARCH: dict[str, Any] = {
    "do_sample": False,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}
"""What transformers does where generation_config.json is silent."""


@dataclass(frozen=True)
class GraphFacts:
    """What GenAI has to know of a graph.

    Attributes:
        inputs: those of the tokens, by name.
        blocks: pairs of past keys and values.
        heads: of keys and values.
        head_size: width of one.
        vocabulary: width of the logits.
    """

    inputs: tuple[str, ...]
    blocks: int
    heads: int
    head_size: int
    vocabulary: int


def graph_facts(model: onnx_ir.Model) -> GraphFacts | None:
    """Of a traced graph; None where keys and values differ in shape, which GenAI cannot hold.

    Where blocks differ from one another, GenAI asks the graph for each, so the first stands here.
    """
    inputs = {value.name: value.shape for value in model.graph.inputs}
    caches = [shape for name, shape in inputs.items() if name.startswith("past_key_values.")]
    tokens = tuple(name for name in _TOKENS if name in inputs)
    return _facts(tokens, caches, int(model.graph.outputs[0].shape[-1]))


def expected_facts(source: SourceModel, past: Past, form: AttentionForm) -> GraphFacts | None:
    """The same before there is a graph.

    Args:
        past: keys and values as the model makes them.
        form: how it will attend.
    """
    config = source.config.get_text_config()
    if not _says_enough(config):
        return None
    tokens = _TOKENS if form.reads_positions else _TOKENS[:-1]
    return _facts(tokens, [part.shape for layer in past for part in layer], config.vocab_size)


def _facts(
    tokens: tuple[str, ...], caches: Sequence[Sequence[Any]], vocabulary: int
) -> GraphFacts | None:
    sizes = [(int(shape[1]), int(shape[3])) for shape in caches]
    if not sizes or sizes[::2] != sizes[1::2]:
        return None
    return GraphFacts(tokens, len(sizes) // 2, *sizes[0], vocabulary)


def genai_text(
    source: SourceModel,
    facts: GraphFacts | None,
    *,
    share_buffer: bool,
    session_level: int | None = None,
) -> str | None:
    """Content of `genai_config.json`; None of a model that GenAI cannot run.

    That is one whose keys and values differ in shape, and one whose configuration has no longest
    text, width or number of heads by the names that they have elsewhere: GenAI wants numbers there.

    Args:
        facts: of the graph.
        share_buffer: past and present may lie in one buffer, as long as the longest text.
        session_level: accuracy level that sessions have to be set to; None where the graph says it.

    Raises:
        ExportError: the model's generation_config.json cannot be read.
    """
    config = source.config.get_text_config()
    if facts is None or not _says_enough(config):
        return None
    found = genai_config(
        config,
        _generation(source),
        facts,
        share_buffer=share_buffer,
        session_level=session_level,
    )
    return json.dumps(found, indent=2) + "\n"


def genai_config(
    config: Any,
    generation: Mapping[str, Any],
    facts: GraphFacts,
    *,
    share_buffer: bool,
    session_level: int | None = None,
) -> dict[str, Any]:
    """The file as a mapping.

    Args:
        config: the model's configuration, as transformers has it.
        generation: content of its generation_config.json, which goes first.
        facts: of the graph.
        share_buffer, session_level: as `genai_text` takes them.
    """

    def tokens(name: str) -> list[int]:
        value = generation.get(name)
        value = getattr(config, name, None) if value is None else value
        several = value if isinstance(value, list) else [] if value is None else [value]
        # GenAI refuses a model whose end of text is no token of it.
        return [token for token in several if 0 <= token < facts.vocabulary]

    bos, eos, pad = tokens("bos_token_id"), tokens("eos_token_id"), tokens("pad_token_id")
    # GenAI takes 0 where nothing stands, and reads a prompt only up to its last other token.
    padding = [*pad, *eos, -1][0]
    search = {key: generation.get(key) for key in _SEARCH}
    # GenAI hands what it does not know itself to the session, as text.
    level = {} if session_level is None else {LEVEL: str(session_level)}
    return {
        "model": {
            "type": _type(config),
            "vocab_size": facts.vocabulary,
            "context_length": config.max_position_embeddings,
            **({"bos_token_id": bos[0]} if bos else {}),
            "eos_token_id": eos[0] if len(eos) == 1 else eos,
            "pad_token_id": padding,
            "decoder": {
                "filename": MODEL_FILE,
                "session_options": {**level, "provider_options": []},
                "head_size": facts.head_size,
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.num_attention_heads,
                "num_key_value_heads": facts.heads,
                "num_hidden_layers": facts.blocks,
                "inputs": {
                    **{name: name for name in facts.inputs},
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "max_length": config.max_position_embeddings,
            "past_present_share_buffer": share_buffer,
            **{key: _SEARCH[key] if value is None else value for key, value in search.items()},
        },
    }


def _says_enough(config: Any) -> bool:
    return all(getattr(config, name, None) is not None for name in _NEEDED)


def _type(config: Any) -> str:
    """What GenAI calls the architecture: "decoder" runs whatever has inputs such as ours.

    The names of single architectures, of which it does not know all, change nothing but this:
    longrope turns keys by other angles beyond the length that it was first trained for, so that
    earlier ones are of no use there. GenAI starts over at that point, as transformers does, where
    the type is "phi3".
    """
    rope = getattr(config, "rope_parameters", None) or {}
    lengths = (getattr(config, _ORIGINAL, None), rope.get(_ORIGINAL))
    return "phi3" if rope.get("rope_type") == "longrope" and _RESTART in lengths else "decoder"


def _generation(source: SourceModel) -> dict[str, Any]:
    path = source.path / _GENERATION_FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExportError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ExportError(f"{path} is no mapping")
    return found
