"""llm-compressor's GPTQ of a checkpoint, run by a Python that has it and not this package.

    python _llmcompressor.py CHECKPOINT FOLDER TEXTS.json BITS GROUP_SIZE

TEXTS.json is a list of lists of token ids, all of one length. The checkpoint's own modelling file
is what loads its factors here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint, folder, texts, bits, group_size = sys.argv[1:]
    tokens = json.loads(Path(texts).read_text())
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype="auto", trust_remote_code=True, local_files_only=True
    )
    weights = {
        "num_bits": int(bits),
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": int(group_size),
    }
    recipe = GPTQModifier(
        ignore=["lm_head"], config_groups={"all": {"targets": ["Linear"], "weights": weights}}
    )
    masks = [[1] * len(ids) for ids in tokens]
    oneshot(
        model=model,
        dataset=Dataset.from_dict({"input_ids": tokens, "attention_mask": masks}),
        recipe=[recipe],
        max_seq_length=len(tokens[0]),
        num_calibration_samples=len(tokens),
        trust_remote_code_model=True,
    )
    model.save_pretrained(folder, save_compressed=True)
    AutoTokenizer.from_pretrained(checkpoint, local_files_only=True).save_pretrained(folder)


if __name__ == "__main__":
    main()
