"""What the stores of these tests hold."""

from __future__ import annotations

from asvd_q.plan import QuantSpec
from tests.support import Choice

CHOICES: dict[str, Choice] = {
    "q_proj": (8, None),
    "k_proj": (None, QuantSpec(bits=3, group_size=16, symmetric=False)),
    "v_proj": (4, QuantSpec(bits=4, group_size=32, clip="mse")),
    "o_proj": (None, QuantSpec(method="nf4", group_size=128)),
    "gate_proj": (6, QuantSpec(bits=8, group_size=-1, symmetric=False)),
    "up_proj": (5, QuantSpec(method="nf4", double_quant=True)),
}
"""Every kind of content; the other layers are left alone."""


def choose(name: str, shape: tuple[int, int]) -> Choice:
    return CHOICES.get(name.rsplit(".", 1)[-1], (None, None))
