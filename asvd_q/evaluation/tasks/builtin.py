"""A multiple-choice task that needs no file: which text goes on from a paragraph's first half.

Its text is Python's own documentation, the test part (`asvd_q.statistics.builtin`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from asvd_q.statistics.builtin import python_docs

__all__ = ["Question", "continuation_questions"]

_COUNT, _SEED = 200, 233
_OPTIONS, _OPTION_WORDS = 4, 8
_STRETCH = 48


@dataclass(frozen=True)
class Question:
    """Words that begin a paragraph, and texts of which one goes on from there.

    Attributes:
        answer: number of the right one.
    """

    context: str
    choices: tuple[str, ...]
    answer: int


def continuation_questions(count: int = _COUNT, seed: int = _SEED) -> list[Question]:
    """Questions from stretches of prose, none of them the right one twice.

    The wrong options begin the second halves of other stretches. All have one number of words, so
    that neither length nor a full stop gives the right one away. The same Python gives the same
    questions.

    Args:
        count: at most; fewer where the documentation is short, none where Python has it not.
        seed: of the choice of stretches, of wrong options and of the right one's place.
    """
    halves = _halves()
    if len(halves) < _OPTIONS:
        return []
    generator = random.Random(seed)
    questions = []
    for right in generator.sample(list(halves), min(count, len(halves))):
        choices = generator.sample([one for one in halves if one != right], _OPTIONS - 1)
        answer = generator.randrange(_OPTIONS)
        choices.insert(answer, right)
        questions.append(Question(halves[right], tuple(choices), answer))
    return questions


def _halves() -> dict[str, str]:
    """What begins the second half of a stretch → its first half; stretches are parts of paragraphs.

    Equal beginnings count once, so that no question has two right options.
    """
    found: dict[str, str] = {}
    for topic in python_docs("test"):
        for paragraph in topic.split("\n\n"):
            words = paragraph.removeprefix("* ").split()
            if not _is_prose(words):
                continue
            for start in range(0, len(words), _STRETCH):
                stretch = words[start : start + _STRETCH]
                half = len(stretch) // 2
                if half >= _OPTION_WORDS:
                    option = " ".join(stretch[half : half + _OPTION_WORDS])
                    found.setdefault(option, " ".join(stretch[:half]))
    return found


def _is_prose(words: Sequence[str]) -> bool:
    """Whether it reads as sentences; grammars, tables and sessions of the interpreter do not."""
    plain = sum(word.strip(".,:;()").isalpha() for word in words)
    return len(words) > 0 and words[-1].endswith((".", ":")) and plain > 0.6 * len(words)
