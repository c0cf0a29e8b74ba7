"""ZIP programs: where they start, and everything about an archive that is refused, by name."""

from __future__ import annotations

import io
import stat
import struct
import zipfile

import pytest

from p2pcompute.execution.program_zip import ENTRY_FILES, open_program_zip, result_zip, unpack_program_zip
from p2pcompute.model import limits
from p2pcompute.model.errors import UsageError

Member = tuple[str | zipfile.ZipInfo, bytes]


def made(*members: Member, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def special(name: str, kind: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = (kind | 0o777) << 16
    return member


@pytest.mark.parametrize("position", range(len(ENTRY_FILES)))
def test_the_first_of_the_entry_files_is_run(position: int) -> None:
    files = [(name, b"") for name in reversed(ENTRY_FILES[position:])]
    assert open_program_zip(made(*files, ("zz.py", b""))).start == ENTRY_FILES[position]


def test_one_folder_at_the_top_is_the_program() -> None:
    found = open_program_zip(
        made(("tool/", b""), ("tool/main.py", b""), ("tool/a/b.py", b""), ("__MACOSX/tool/._main.py", b""))
    )
    assert (found.root, found.start) == ("tool/", "tool/main.py")


def test_a_named_file_is_run_and_one_that_is_not_there_is_named() -> None:
    data = made(("main.py", b""), ("other/go.py", b""))
    assert open_program_zip(data, "other/go.py").start == "other/go.py"
    assert open_program_zip(made(("tool/go.py", b""), ("tool/x", b"")), "go.py").start == "tool/go.py"
    with pytest.raises(UsageError, match=r"no file 'away\.py': name one of main\.py, other/go\.py"):
        open_program_zip(data, "away.py")
    with pytest.raises(UsageError, match=r"none of run\.py, main\.py"):
        open_program_zip(made(("readme.txt", b"")))
    with pytest.raises(UsageError, match="empty"):
        open_program_zip(made())


def test_what_was_packed_is_unpacked() -> None:
    files = {"run.py": b"print()", "a/b.bin": bytes(range(256)) * 1000, "empty": b""}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert unpack_program_zip(made(*files.items(), method=method)) == files
    with pytest.raises(UsageError, match="by method 14"):
        open_program_zip(made(*files.items(), method=zipfile.ZIP_LZMA))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("../run.py", "leads out"),
        ("a/../../run.py", "leads out"),
        ("a/..", "leads out"),
        ("/etc/run.py", "absolute"),
        ("C:/run.py", "absolute"),
        ("c:run.py", "absolute"),
        ("..\\run.py", "backslash"),
        ("a/./b", "empty part"),
        ("a//b", "empty part"),
        ("a\nb", "control"),
        ("x" * 256, "255 bytes"),
        ("a/" * 600 + "b", "characters"),
    ],
)
def test_names_that_lead_anywhere_are_refused_by_name(name: str, says: str) -> None:
    data = made(("run.py", b""), (name, b"x"))
    for use in (open_program_zip, unpack_program_zip):
        with pytest.raises(UsageError, match=says):
            use(data)


def test_a_name_cut_by_nul_is_judged_as_a_whole() -> None:
    data = made(("run.py", b""), ("fine.pyQ../../../etc/x", b"x")).replace(b"fine.pyQ", b"fine.py\0")
    with pytest.raises(UsageError, match="control"):
        open_program_zip(data)


@pytest.mark.parametrize(
    ("kind", "says"), [(stat.S_IFLNK, "is a link"), (stat.S_IFIFO, "is no ordinary"), (stat.S_IFCHR, "is no ordinary")]
)
def test_links_and_devices_are_refused_by_name(kind: int, says: str) -> None:
    data = made(("run.py", b""), (special("evil", kind), b"/etc/passwd"))
    with pytest.raises(UsageError, match=f"'evil' in the ZIP program {says}"):
        open_program_zip(data)


def test_a_file_that_is_a_folder_of_others_and_a_name_twice_are_refused() -> None:
    with pytest.raises(UsageError, match="'a' is a file and a folder"):
        open_program_zip(made(("run.py", b""), ("a", b""), ("a/b", b"")))
    with pytest.warns(UserWarning, match="Duplicate"):
        data = made(("run.py", b"1"), ("run.py", b"2"))
    with pytest.raises(UsageError, match=r"'run\.py' stands twice"):
        open_program_zip(data)


def test_bombs_are_refused_by_ratio_and_by_total() -> None:
    with pytest.raises(UsageError, match="'bomb' in the ZIP program unpacks to 20971520 bytes"):
        open_program_zip(made(("run.py", b""), ("bomb", bytes(20 << 20))))
    # Many members that each repeat themselves modestly, all of them pointing at the same packed bytes.
    overlapping = _overlapping(bytes(100_000), 600)
    with pytest.raises(UsageError, match="taken for a bomb"):
        open_program_zip(overlapping)


def _overlapping(data: bytes, count: int) -> bytes:
    """An archive whose directory names one packed member `count` times."""
    single = made(("aaaa.py", data))
    at = single.index(b"PK\x01\x02")
    end = single.index(b"PK\x05\x06")
    entry = single[at:end]
    entries = b"".join(entry.replace(b"aaaa.py", b"%04d.py" % number) for number in range(count))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(entries), at, 0)
    return single[:at] + entries + tail


def test_too_many_files_and_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TASK_FILES_MAX", 10)
    with pytest.raises(UsageError, match="11 files"):
        open_program_zip(made(*((f"{number}.py", b"") for number in range(11))))
    monkeypatch.setattr(limits, "TASK_FILES_BYTES_MAX", 1_000)
    with pytest.raises(UsageError, match="1200 bytes together"):
        open_program_zip(made(("run.py", bytes(600)), ("b", bytes(600))))


def test_a_member_that_is_longer_than_it_says_is_refused() -> None:
    data = bytearray(made(("run.py", b"x" * 5_000)))
    directory = data.index(b"PK\x01\x02")
    struct.pack_into("<L", data, directory + 24, 100)
    struct.pack_into("<L", data, 22, 100)
    with pytest.raises(UsageError, match=r"'run\.py' in the ZIP program (is longer|cannot be unpacked)"):
        unpack_program_zip(bytes(data))


def test_an_encrypted_member_and_what_is_no_archive_are_refused() -> None:
    data = bytearray(made(("run.py", b"x")))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(UsageError, match="encrypted"):
        open_program_zip(bytes(data))
    for bad in (b"", b"PK", b"no archive at all" * 10):
        with pytest.raises(UsageError, match="no ZIP archive"):
            open_program_zip(bad)


def test_a_result_archive_holds_files_and_logs_and_why_it_was_stopped() -> None:
    data = result_zip({"a/b.txt": b"1"}, "log\n", "printed\n", "")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "execution_log.txt": b"log\n",
            "task_logs.txt": b"printed\n",
            "output/a/b.txt": b"1",
        }
    assert data == result_zip({"a/b.txt": b"1"}, "log\n", "printed\n", "")
    with zipfile.ZipFile(io.BytesIO(result_zip({}, "", "", "why"))) as archive:
        assert archive.read("task_stopped.txt") == b"why"
