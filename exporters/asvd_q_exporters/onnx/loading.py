"""How a graph is run in each of its runtimes, as the model card says it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from asvd_q.usage import Snippet, Usage
from asvd_q_exporters._loading import PROMPT, TOKENS, has_tokenizer
from asvd_q_exporters.onnx.genai import GENAI_FILE
from asvd_q_exporters.onnx.session import LEVEL

if TYPE_CHECKING:
    from asvd_q_exporters.onnx.exporter import OnnxOptions

__all__ = ["usage"]

_HERE = 'folder = "."  # that of this card'

_RUNTIME = f"""\
import numpy as np
import onnxruntime as ort
%(imports)s
{_HERE}
options = ort.SessionOptions()
%(options)ssession = ort.InferenceSession(
    f"{{folder}}/model.onnx", options, providers=["CPUExecutionProvider"]
)
types = {{"tensor(float)": np.float32, "tensor(float16)": np.float16}}
inputs = {{one.name: one for one in session.get_inputs()}}
outputs = [one.name for one in session.get_outputs()]
past = {{
    name: np.zeros((1, one.shape[1], 0, one.shape[3]), types[one.type])
    for name, one in inputs.items()
    if name.startswith("past_key_values.")
}}
%(prompt)s
new = made
for _ in range({TOKENS}):
    length = len(made)
    feeds = {{
        "input_ids": np.array([new]),
        "attention_mask": np.ones((1, length), np.int64),
        "position_ids": np.arange(length - len(new), length)[None],
    }}
    feeds = {{name: value for name, value in feeds.items() if name in inputs}}
    found = dict(zip(outputs, session.run(outputs, feeds | past)))
    past = {{name: found[name.replace("past_key_values", "present")] for name in past}}
    new = [int(found["logits"][0, -1].argmax())]
    made = made + new
%(show)s
"""

_GENAI = f"""\
import onnxruntime_genai as genai

{_HERE}
model = genai.Model(folder)
tokenizer = genai.Tokenizer(model)
tokens = tokenizer.encode("{PROMPT}")
parameters = genai.GeneratorParams(model)
parameters.set_search_options(do_sample=False, max_length=len(tokens) + {TOKENS})
generator = genai.Generator(model, parameters)
generator.append_tokens(tokens)
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
"""

_OPTIMUM = f"""\
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer, pipeline

folder = "."  # that of this card, or its name on the hub
model = ORTModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
text = pipeline("text-generation", model=model, tokenizer=tokenizer)
print(text("{PROMPT}", max_new_tokens={TOKENS}))
"""


def usage(folder: Path, options: OnnxOptions) -> Usage:
    """See `asvd_q.usage.DescribedExporter`."""
    tags = ["onnx", "onnxruntime"]
    if (folder / GENAI_FILE).is_file():
        tags.append("onnxruntime-genai")
    return Usage(tuple(_snippets(folder, options)), "onnx", tuple(tags))


def _snippets(folder: Path, options: OnnxOptions) -> Iterator[Snippet]:
    known = has_tokenizer(folder)
    needs = ("onnxruntime", "numpy", *(("transformers",) if known else ()))
    yield Snippet("ONNX Runtime", needs, _in_runtime(options, known=known), _note(folder))
    if not known:
        return
    if (folder / GENAI_FILE).is_file():
        yield Snippet("ONNX Runtime GenAI", ("onnxruntime-genai",), _GENAI)
    yield Snippet(
        "optimum",
        ("optimum-onnx[onnxruntime]",),
        _OPTIMUM,
        "optimum-onnx 0.1.0 wants transformers before 4.58, so an environment of its own.",
    )


def _in_runtime(options: OnnxOptions, *, known: bool) -> str:
    """Any graph, whatever inputs it has; keys and values are copied for each token."""
    level = ""
    if options.session_level is not None:
        entry = f'"{LEVEL}", "{options.session_level}"'
        level = f"options.add_session_config_entry({entry})\n"
    return _RUNTIME % {
        "imports": "from transformers import AutoTokenizer\n" if known else "",
        "options": level,
        "prompt": (
            f'tokenizer = AutoTokenizer.from_pretrained(folder)\nmade = tokenizer("{PROMPT}")'
            '["input_ids"]'
            if known
            else "made = [1, 2, 3]  # no tokenizer came with the model"
        ),
        "show": f"print({'tokenizer.decode(made, skip_special_tokens=True)' if known else 'made'})",
    }


def _note(folder: Path) -> str:
    if (folder / "model.onnx_data").is_file():
        return "`model.onnx_data` holds the weights and has to stay beside `model.onnx`."
    return ""
