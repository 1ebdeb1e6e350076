"""A Runner as a model of lm-eval. Importing this module imports lm-eval."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from asvd_q.artefact import Runner
from asvd_q.errors import TaskError
from asvd_q.evaluation.tasks.generating import generate_until
from asvd_q.evaluation.tasks.scoring import Advance, Score, score_continuations
from asvd_q.evaluation.tasks.silence import Silence

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

__all__ = ["RunnerLM"]

_CONTEXT = 2048
"""Where neither the model nor its tokenizer says how much it takes; lm-eval takes it too."""

_NO_LIMIT = 10**9
"""A tokenizer without a limit of its own says more than this."""

_MAX_NEW_TOKENS = 256
"""Where a task does not say; lm-eval's own."""

_GREEDY = ("until", "do_sample", "temperature", "max_gen_toks")
"""What of a task's generation settings is followed."""


class RunnerLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """What lm-eval asks of a model, answered by a Runner.

    Text becomes tokens as lm-eval's own model of transformers has it: the tokenizer adds the BOS
    token where it does so by itself, context and continuation are encoded together and split
    behind the context's tokens, and an empty context is the BOS token, or EOS without one.

    Args:
        context: tokens that the model takes; None asks the tokenizer.
        batch_size: rows per forward pass.
        advance: called with the requests done and their number.
        silence: around lm-eval, lifted while the Runner computes.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: PreTrainedTokenizerBase,
        *,
        context: int | None = None,
        batch_size: int = 4,
        advance: Advance = lambda done, total: None,
        silence: Silence | None = None,
    ) -> None:
        super().__init__()
        self.runner = runner
        self.tokenizer = tokenizer
        self.max_length = context or _tokenizer_limit(tokenizer)
        self.batch_size = batch_size
        self._advance = advance
        self._silence = silence or Silence()

    @property
    def eot_token_id(self) -> int:
        """The end-of-sequence token."""
        return self._special("eos_token_id", "bos_token_id")

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text with an empty context."""
        return self._special("bos_token_id", "eos_token_id")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; a text that begins with the prefix token's text gets no second one."""
        if add_special_tokens is None:
            prefix = str(self.tokenizer.decode([self.prefix_token_id]))
            add_special_tokens = not string.startswith(prefix)
        # verbose=False: a text longer than the context is cut, and needs no warning.
        encoded = self.tokenizer(string, add_special_tokens=add_special_tokens, verbose=False)
        return list(encoded["input_ids"])

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Of (context, continuation) pairs.

        Raises:
            TaskError: a continuation without characters.
        """
        if not all(request.args[1] for request in requests):
            raise TaskError("an answer is empty: there is nothing to score")
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Of whole texts; a long one is cut into windows, every token of it scored once."""
        windows: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            found = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in map(make_disjoint_window, found):
                windows.append(window)
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, score in zip(owners, self._scores(windows), strict=True):
            totals[owner] += score.loglikelihood
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Continuations of (context, settings) pairs, without what stops them.

        Raises:
            TaskError: settings that no Runner follows, or no room for the new tokens.
        """
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            key = json.dumps(request.args[1], sort_keys=True, default=str)
            groups.setdefault(key, []).append(index)
        texts = [""] * len(requests)
        for indices in groups.values():
            settings = _generation(requests[indices[0]].args[1])
            contexts = [requests[index].args[0] for index in indices]
            for index, text in zip(indices, self._continued(contexts, settings), strict=True):
                texts[index] = text
        return texts

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = True,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        found = self._scores([(before, tokens) for _, before, tokens in requests])
        return [(score.loglikelihood, score.greedy) for score in found]

    def _scores(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Score]:
        with self._silence.lifted():
            return score_continuations(
                self.runner,
                pairs,
                context=self.max_length,
                batch_size=self.batch_size,
                advance=self._advance,
            )

    def _continued(self, contexts: Sequence[str], settings: dict[str, Any]) -> list[str]:
        new = settings["max_gen_toks"]
        room = self.max_length - new
        if room <= 0:
            raise TaskError(
                f"the task wants {new} new tokens and the model takes {self.max_length} in all: "
                "set max_gen_toks in a task file of your own"
            )
        prompts = [self.tok_encode(text)[-room:] or [self.prefix_token_id] for text in contexts]
        with self._silence.lifted():
            texts = generate_until(
                self.runner,
                self.tokenizer,
                prompts,
                until=settings["until"],
                max_new_tokens=new,
                temperature=settings["temperature"],
                batch_size=self.batch_size,
                advance=self._advance,
            )
        return [postprocess_generated_text(text, settings["until"], None) for text in texts]

    def _special(self, *names: str) -> int:
        for name in names:
            token: int | None = getattr(self.tokenizer, name)
            if token is not None:
                return token
        raise TaskError("the tokenizer has neither a BOS nor an EOS token: tasks need one of them")


def _tokenizer_limit(tokenizer: PreTrainedTokenizerBase) -> int:
    limit = int(tokenizer.model_max_length)
    return limit if limit < _NO_LIMIT else _CONTEXT


def _generation(given: dict[str, Any]) -> dict[str, Any]:
    """A task's generation settings with lm-eval's defaults."""
    settings: dict[str, Any] = dict(normalize_gen_kwargs(given, _MAX_NEW_TOKENS))
    if settings["do_sample"]:
        unknown = sorted(set(settings) - set(_GREEDY))
        if unknown:
            raise TaskError(
                f"the task samples with {', '.join(unknown)}, which is not supported: only "
                "temperature is"
            )
    settings["temperature"] = float(settings.get("temperature", 0.0) or 0.0)
    return settings
