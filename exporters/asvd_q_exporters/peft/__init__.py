"""GPTQ-format base checkpoints with a PEFT adapter that corrects them.

exporter.py   the exporter: options, refusals, bytes; imports neither torch nor peft
refusals.py   what a base and an adapter cannot hold
base.py       what the base holds of a layer
config.py     the adapter's configuration
write.py      both folders
runner.py     both in transformers and PEFT
unpack.py     reads the matrices back with numpy alone
"""

from asvd_q_exporters.peft.exporter import PeftExporter, PeftOptions

__all__ = ["PeftExporter", "PeftOptions"]
