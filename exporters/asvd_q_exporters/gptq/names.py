"""Many names of modules in few words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["compact"]


def compact(names: Iterable[str]) -> str:
    """Names that differ in their first number alone become one, with all their numbers.

    `layers.0.up`, `layers.1.up` and `layers.4.up` are `layers.{0-1,4}.up`.
    """
    numbers: dict[tuple[str, str], list[int]] = {}
    for name in names:
        parts = name.split(".")
        at = next((index for index, part in enumerate(parts) if part.isdigit()), None)
        if at is None:
            numbers[name, ""] = []
            continue
        before, after = ".".join(parts[:at]), ".".join(parts[at + 1 :])
        numbers.setdefault((before, after), []).append(int(parts[at]))
    return ", ".join(
        ".".join(filter(None, (before, _ranges(found), after)))
        for (before, after), found in numbers.items()
    )


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return words[0] if len(numbers) == 1 else "{" + ",".join(words) + "}" if words else ""
