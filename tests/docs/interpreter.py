"""Python as a reader has it open beside a page: one process, one namespace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["Interpreter"]

_SERVER = """
import contextlib, io, json, os, sys, traceback
asking, replies = os.fdopen(os.dup(0)), open(int(sys.argv[1]), "w")
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # nobody is there to answer questions
names = {"__name__": "__main__"}
for line in asking:
    asked, printed, error = json.loads(line), io.StringIO(), ""
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile("\\n" * asked["line"] + asked["code"], asked["page"], "exec"), names)
    except BaseException:
        error = traceback.format_exc()
    print(json.dumps([printed.getvalue(), error]), file=replies, flush=True)
"""


class Interpreter:
    """A process that is there from the first piece of code until `close`."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None

    def run(self, code: str, page: str, line: int) -> str:
        """Run a piece of code after all those before it.

        Args:
            page, line: where it stands, for tracebacks.

        Returns:
            What it has printed.
        """
        process = self._process or self._started()
        assert process.stdin is not None
        asked = {"code": code, "page": page, "line": line - 1}
        print(json.dumps(asked), file=process.stdin, flush=True)
        reply = self._replies.readline()
        assert reply, f"{page}, line {line}: the process has ended with {process.wait()}"
        printed, error = json.loads(reply)
        assert not error, f"{page}, line {line}:\n{error}"
        return str(printed)

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._replies.close()
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        read, write = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(write)],
            cwd=self._folder,
            env=dict(self._environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[write],
            text=True,
        )
        os.close(write)
        self._replies = open(read, encoding="utf-8")  # noqa: SIM115 - closed with the process
        return self._process
