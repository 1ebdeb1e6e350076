"""Prints what an ONNX artefact writes, token by token, with ONNX Runtime GenAI and nothing of ours.

pip install onnxruntime-genai
python examples/genai_stream.py run/artefacts/onnx 'The string method' --tokens 48
"""

import argparse
from collections.abc import Iterator

import onnxruntime_genai as genai


def stream(folder: str, prompt: str, tokens: int) -> Iterator[str]:
    """The likeliest continuation, piece by piece; it ends at the model's end of text."""
    model = genai.Model(folder)
    tokenizer = genai.Tokenizer(model)
    pieces = tokenizer.create_stream()
    ids = tokenizer.encode(prompt)
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=len(ids) + tokens)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
        yield pieces.decode(generator.get_next_tokens()[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=48)
    given = parser.parse_args()
    for piece in stream(given.folder, given.prompt, given.tokens):
        print(piece, end="", flush=True)
    print()
