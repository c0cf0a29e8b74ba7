"""How a ZIP program starts in a container: its files are put into the task's folder, and Python runs a short script that runs it.

Packages come with the program or with the image, never from a network: what `requirements.txt` names and the image lacks is installed from the
folder `wheels` of the archive, or the task fails saying what is missing.
"""

from __future__ import annotations

from p2pcompute.execution.container.program import FOLDER, ContainerProgram
from p2pcompute.execution.program_zip import open_program_zip, unpack_program_zip

#: The script, beside the program's own files.
START = ".p2pcompute_start.py"
REQUIREMENTS, WHEELS = "requirements.txt", "wheels"

#: Runs inside the image, by whatever Python that has: nothing of the product is there.
_SCRIPT = """
import importlib.metadata, os, re, runpy, subprocess, sys

start, root = sys.argv[1], sys.argv[2]
folder = os.path.join("{folder}", root)
os.chdir(folder)
listed = os.path.join(folder, "{requirements}")
missing = []
if os.path.exists(listed):
    with open(listed, encoding="utf-8") as lines:
        for line in lines:
            line = line.split(" #")[0].strip()
            if not line or line.startswith("#"):
                continue
            name = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)
            if name is None:
                sys.exit("{requirements}: %r is no name of a package: only packages can be required" % line)
            try:
                importlib.metadata.version(name[0])
            except importlib.metadata.PackageNotFoundError:
                missing.append(line)
if missing:
    wheels = os.path.join(folder, "{wheels}")
    packages = "/tmp/packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--find-links", wheels, "--target", packages, *missing]
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) if os.path.isdir(wheels) else None
    if said is None or said.returncode:
        sys.stderr.write(said.stdout if said else "")
        sys.exit("the program requires " + ", ".join(missing) + ", which the image has not: put wheels of it into {wheels}/ of the ZIP "
                 "program, or use an image that has it")
    sys.path.insert(0, packages)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (packages, os.environ.get("PYTHONPATH", ""))))
place = os.path.join("{folder}", start)
sys.path[0:1] = [os.path.dirname(place)]
if folder not in sys.path:
    sys.path.insert(1, folder)
sys.argv[:] = [place, *sys.argv[3:]]
runpy.run_path(place, run_name="__main__")
"""


def prepared(program: ContainerProgram) -> tuple[tuple[tuple[str, bytes, bool], ...], tuple[str, ...]]:
    """(files, words of the command) of a program, its archive unpacked. Raises UsageError."""
    if not program.archive:
        return program.files, program.command
    checked = open_program_zip(program.archive, program.start)
    unpacked = unpack_program_zip(program.archive)
    script = _SCRIPT.format(folder=FOLDER, requirements=REQUIREMENTS, wheels=WHEELS).encode()
    files = (*program.files, *((path, data, False) for path, data in unpacked.items()), (START, script, False))
    command = program.command or ("python3",)
    return files, (*command, f"{FOLDER}/{START}", checked.start, checked.root.rstrip("/"))
