"""Tasks of lm-eval by name, from a file of the user's, or built in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asvd_q.errors import MissingExtraError, TaskError, first_line
from asvd_q.evaluation.tasks.builtin import continuation_questions
from asvd_q.evaluation.tasks.silence import Silence
from asvd_q.recipe.tasks import BUILT_IN_TASKS, CONTINUATION, TaskSection

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

__all__ = ["LoadedTask", "load_tasks"]

_SEED = 1234
"""Of the choice of examples, lm-eval's own; for every model anew, so that all get the same."""


@dataclass(frozen=True)
class LoadedTask:
    """What a section names, with its data.

    Attributes:
        content: lm-eval's tasks and groups, as its `TaskManager.load` returns them.
        group: name of the group that the section names; None for single tasks.
    """

    section: TaskSection
    content: Mapping[str, Any]
    group: str | None

    def reset(self) -> None:
        """Begin anew with the choice of examples."""
        for task in self.content["tasks"].values():
            task.set_fewshot_seed(seed=_SEED)


def load_tasks(sections: Sequence[TaskSection]) -> list[LoadedTask]:
    """Load tasks and their data, which may come from the hub where that can be reached.

    Raises:
        MissingExtraError: lm-eval is not installed.
        TaskError: no such task, a file that cannot be read, or data that cannot be had.
    """
    if not sections:
        return []
    if find_spec("lm_eval") is None:
        raise MissingExtraError("lm-eval", "eval", "measure accuracy on tasks")
    with Silence().kept():
        return [_load(section) for section in sections]


def _load(section: TaskSection) -> LoadedTask:
    try:
        content = _content(section)
    except TaskError:
        raise
    except Exception as error:  # data, metrics and files of all kinds are read
        raise TaskError(
            f"the task {section.task} cannot be loaded: {first_line(error)}{_hint(error)}"
        ) from error
    for name, task in content["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise TaskError(f"the task {name} runs code that the model writes, which is not done")
        if getattr(task, "MULTIMODAL", False):
            raise TaskError(f"the task {name} has pictures or sound, and only text is read")
        _set_shots(name, task, section.shots)
    roots = set(content["groups"]) - {
        child for children in content["group_map"].values() for child in children
    }
    return LoadedTask(section, content, next(iter(roots), None))


def _set_shots(name: str, task: Any, shots: int | None) -> None:
    own = task.get_config("num_fewshot")
    if shots is None:
        task.set_config(key="num_fewshot", value=own or 0)
    elif own == 0 and shots > 0:
        # Of such a task the prompt is written out; examples before it would not fit.
        raise TaskError(f"the task {name} is for 0 shots: leave shots out")
    else:
        task.set_config(key="num_fewshot", value=shots)


def _content(section: TaskSection) -> Mapping[str, Any]:
    from lm_eval.tasks import TaskManager

    if section.task in BUILT_IN_TASKS:
        return _loaded(TaskManager(include_defaults=False), _built_in(section.task))
    if section.is_file:
        return _from_file(Path(section.task).expanduser())
    homes = _homes(section.task)
    if not homes:
        close = get_close_matches(section.task, [*BUILT_IN_TASKS, *_names()], n=1)
        raise TaskError(
            f"there is no task {section.task!r}: "
            + (f"did you mean {close[0]!r}? " if close else "")
            + f"Allowed are {', '.join(BUILT_IN_TASKS)}, lm-eval's names (`lm-eval ls tasks` "
            "prints them) and paths that end in .yaml"
        )
    # All of lm-eval's 14000 files take 15 seconds to read; a group may need more than its own.
    try:
        return _loaded(TaskManager(include_path=homes, include_defaults=False), section.task)
    except OSError:
        raise  # the data, which no other file would help to get
    except Exception:
        return _loaded(TaskManager(), section.task)


def _loaded(manager: TaskManager, task: str | Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = manager.load([task])
    return found


def _built_in(name: str) -> dict[str, Any]:
    """The task as lm-eval has it, with its data."""
    assert name == CONTINUATION
    questions = continuation_questions()
    if not questions:
        raise TaskError(f"{name} is made of Python's documentation, which this Python lacks")

    def data(**_: Any) -> Mapping[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list([asdict(question) for question in questions])}

    return {
        "task": name,
        "custom_dataset": data,
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }


def _from_file(path: Path) -> Mapping[str, Any]:
    """A task file, whose data files are looked for beside it; or a group's, its tasks beside it."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        config = load_yaml(path)
    except OSError as error:
        raise TaskError(f"cannot read the task file {path}: {error.strerror or error}") from None
    except Exception as error:  # YAML's own, and those of functions that it names
        reason = " ".join(str(error).split())
        raise TaskError(f"the task file {path} cannot be read: {reason}") from None
    if not isinstance(config.get("task"), str) and "group" not in config:
        raise TaskError(f"the task file {path} names no `task`")
    if "group" in config:
        here = TaskManager(include_path=path.parent, include_defaults=False)
        return _loaded(here, str(config["group"]))
    arguments = config.get("dataset_kwargs")
    if isinstance(arguments, dict) and "data_files" in arguments:
        files = _beside(arguments["data_files"], path.parent)
        config = config | {"dataset_kwargs": arguments | {"data_files": files}}
    return _loaded(TaskManager(include_defaults=False), config)


def _beside(files: Any, folder: Path) -> Any:
    """Names of data files with the folder before those that are found in it."""
    if isinstance(files, Mapping):
        return {key: _beside(value, folder) for key, value in files.items()}
    if isinstance(files, list):
        return [_beside(value, folder) for value in files]
    if isinstance(files, str) and (folder / files).exists():
        return str((folder / files).absolute())
    return files


def _hint(error: Exception) -> str:
    text = f"{type(error).__name__} {error}".lower()
    if any(word in text for word in ("connect", "offline", "couldn't reach", "resolve")):
        return (
            "; load it once where there is a network (it is kept for later), or name a task file "
            "that reads local data"
        )
    return ""


@lru_cache(maxsize=1)
def _files() -> tuple[tuple[Path, str], ...]:
    """Every task file that came with lm-eval: the folder that it belongs to, and its text."""
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent / "tasks"
    return tuple(
        (root / path.relative_to(root).parts[0], path.read_text(encoding="utf-8"))
        for path in sorted(root.glob("**/*.yaml"))
    )


def _homes(name: str) -> list[Path]:
    """Folders with files that have the name as a task, group or tag of theirs."""
    line = rf"^\s*(?:['\"]?(?:task|group|tag)['\"]?:|-)\s*['\"]?{re.escape(name)}['\"]?\s*$"
    named = re.compile(line, re.MULTILINE)
    return sorted({folder for folder, text in _files() if name in text and named.search(text)})


def _names() -> Iterator[str]:
    key = r"['\"]?(?:task|group)['\"]?"
    named = re.compile(rf"^{key}:\s*['\"]?([\w.-]+)['\"]?\s*$", re.MULTILINE)
    for _, text in _files():
        yield from named.findall(text)
