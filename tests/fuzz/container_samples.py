"""Valid bytes of programs in containers and of their tasks, and of ZIP programs."""

from __future__ import annotations

import io
import zipfile

from p2pcompute.execution import values
from p2pcompute.execution.container.program import ContainerProgram, ContainerTask, pack_container_program
from p2pcompute.model.engine import Demands, Engine


def container_programs() -> list[bytes]:
    """Programs with everything in them, and with nothing."""
    full = ContainerProgram(
        version=1,
        engine=Engine.CONTAINER,
        image="ghcr.io/lab/tool:1.2@sha256:" + "0" * 64,
        command=("convert", "-q", "{}"),
        entrypoint=("/bin/sh",),
        environment=(("LANG", "C"), ("SEED", "7")),
        folder="/data",
        files=(("scripts/run.sh", b"#!/bin/sh\n", True), ("table.csv", b"1,2", False)),
        archive=zip_programs()[0],
        start="run.py",
        outputs="results",
        memory_bytes=64 << 20,
        cpus=0.5,
        processes=8,
        scratch_bytes=1 << 20,
        checks=False,
        demands=Demands(grants=("folder:data:rw", "gpu", "network")),
    )
    return [pack_container_program(full), pack_container_program(ContainerProgram(1, Engine.CONTAINER, "alpine"))]


def container_tasks() -> list[bytes]:
    """Arguments of tasks."""
    handle = values.Handle(bytes(range(32)), 1 << 20)
    full = ContainerTask(("-o", "out/x"), (("A", "b"),), (("in/a.txt", b"data"), ("in/big", handle)), 2.5)
    return [values.encode(full.plain()), values.encode(ContainerTask().plain())]


def zip_programs() -> list[bytes]:
    """Archives with each method, with folders, and with one at the top."""
    found = []
    for method, root in ((zipfile.ZIP_DEFLATED, ""), (zipfile.ZIP_STORED, "tool/")):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr(f"{root}run.py", "print('x' * 100)\n" * 20)
            archive.writestr(f"{root}data/table.csv", "1,2\n" * 200)
        found.append(buffer.getvalue())
    return found
