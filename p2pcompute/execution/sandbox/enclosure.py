"""Starting a process inside bubblewrap, as nobody where this is root; and which process of this system it is.

Refuses to know: workers, pools, what runs inside.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2pcompute.execution import process_tree
from p2pcompute.execution.sandbox import bubblewrap, stage
from p2pcompute.execution.sandbox.bubblewrap import View

#: Whose rights sandboxes of root have: no file is this user's.
NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Enclosure:
    """How sandboxes are made here. `program`: bubblewrap; `python`: makes the stage; `user`: whose rights, None for this process's own."""

    program: str
    python: str
    user: int | None = None

    def start(
        self,
        view: View,
        command: Sequence[str],
        descriptors: Sequence[int],
        environment: Mapping[str, str],
        **options: Any,
    ) -> Enclosed:
        """Start `command` with `descriptors` in a sandbox with this view; `options` as of Popen. Raises OSError."""
        with contextlib.ExitStack() as opened:
            source = os.memfd_create("sandbox", os.MFD_CLOEXEC)
            opened.callback(os.close, source)
            news, told = os.pipe()
            opened.callback(os.close, told)
            with contextlib.ExitStack() as undo:
                undo.callback(os.close, news)
                data = bubblewrap.as_data(["--info-fd", str(told), *bubblewrap.arguments(view)])
                os.write(source, data)
                os.lseek(source, 0, os.SEEK_SET)
                process = subprocess.Popen(
                    [*self._beginning(source), *command],
                    pass_fds=(*descriptors, source, told),
                    env=dict(environment),
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    **options,
                )
                undo.pop_all()
        os.set_blocking(news, False)
        return Enclosed(process, news)

    def _beginning(self, source: int) -> list[str]:
        if self.user is None:
            return [self.program, "--args", str(source), "--"]
        return [self.python, "-I", "-S", str(stage.__file__), str(self.user), str(source), self.program]


class Enclosed:
    """A started sandbox. `process`: bubblewrap itself, whose death ends everything inside."""

    def __init__(self, process: subprocess.Popen[bytes], news: int) -> None:
        self.process = process
        #: Where bubblewrap tells the number of the first process inside; -1 once that was read.
        self._news = news
        self._first: int | None = None
        #: The process of the command, once found.
        self._command: int | None = None

    def outer_pid(self, pid: int) -> int | None:
        """The number that this system knows the process by which is `pid` inside and a child of the command; None where it is gone."""
        command = self._command_pid()
        for each in process_tree.children_of(command) if command is not None else ():
            if process_tree.innermost_pid(each) == pid:
                return each
        return None

    def kill_inside(self) -> bool:
        """Kill the command with its group, if it has not ended; False where it is not known yet."""
        first = self._first_pid()
        if first is None:
            return False
        for each in process_tree.children_of(first):
            process_tree.kill_group(each)
        return True

    def _command_pid(self) -> int | None:
        if self._command is None:
            first = self._first_pid()
            children = [] if first is None else process_tree.children_of(first)
            self._command = children[0] if children else None
        return self._command

    def _first_pid(self) -> int | None:
        if self._news >= 0:
            with contextlib.suppress(OSError, ValueError, KeyError):
                self._first = int(json.loads(os.read(self._news, 4096))["child-pid"])
            self.close()
        return self._first

    def close(self) -> None:
        """Let go of what is held here; the sandbox goes on."""
        if self._news >= 0:
            os.close(self._news)
            self._news = -1
