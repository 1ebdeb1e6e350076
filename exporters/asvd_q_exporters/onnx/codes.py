"""What every operator for integer codes asks of a stored matrix."""

from __future__ import annotations

from asvd_q.quantization import QuantizedWeight, StoredWeight

__all__ = ["integer_codes"]


def integer_codes(weight: StoredWeight, operator: str) -> QuantizedWeight:
    """The weight, where an operator of that name can hold it.

    Raises:
        ValueError: no integer codes, or codes in act order.
    """
    if not isinstance(weight, QuantizedWeight):
        raise ValueError("its store holds no integer codes")
    if weight.permutation is not None:
        raise ValueError(
            f"its columns are grouped in act order, which {operator} cannot read; quantize it "
            "without act order"
        )
    return weight
