"""What a peer offers, against what programs demand."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcompute.execution.bundle import make_program
from p2pcompute.execution.engines.document import ProgramHead, head_of
from p2pcompute.model.engine import Demands, Engine
from p2pcompute.model.errors import ConfigError, ProtocolError
from p2pcompute.model.peer import Isolation
from p2pcompute.node.config import Folder, load_config
from p2pcompute.node.offers import Offers, offers_of
from p2pcompute.wire.codec import pack

OFFERS = Offers(Isolation.RESTRICTED, (Engine.PYTHON, Engine.WASM, Engine.CONTAINER), ("folder:data", "network"))


def program(engine: Engine = Engine.PYTHON, isolation: Isolation | None = None, *grants: str) -> ProgramHead:
    return ProgramHead(engine, Demands(isolation, grants))


@pytest.mark.parametrize(
    "head",
    [
        program(),
        program(Engine.WASM, Isolation.WASM),
        program(Engine.CONTAINER, Isolation.SANDBOX),
        program(Engine.PYTHON, Isolation.RESTRICTED, "folder:data", "network:example.org:80"),
    ],
)
def test_what_is_offered_may_run(head: ProgramHead) -> None:
    assert OFFERS.lack(head) is None


@pytest.mark.parametrize(
    ("head", "reason", "text"),
    [
        (program(Engine.COMMAND), "engine", "for the engine command, this peer has python, wasm, container"),
        (
            program(Engine.PYTHON, Isolation.SANDBOX),
            "isolation",
            "isolation sandbox or better, this peer gives restricted",
        ),
        (program(Engine.CONTAINER, Isolation.WASM), "isolation", "this peer gives sandbox"),
        (program(Engine.PYTHON, None, "folder:data:rw"), "grant", "'folder:data:rw', which the owner"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(head: ProgramHead, reason: str, text: str) -> None:
    lack = OFFERS.lack(head)
    assert lack is not None
    assert lack.reason == reason
    assert text in lack.text


def test_a_program_carries_its_engine_and_its_demands() -> None:
    demands = Demands(Isolation.SANDBOX, ("folder:data:rw", "gpu"))
    made = make_program({"call": len}, Engine.WASM_PYTHON, demands)
    assert head_of(made.data) == ProgramHead(Engine.WASM_PYTHON, demands)
    assert head_of(make_program({"call": len}).data) == ProgramHead()
    assert made.id != make_program({"call": len}, Engine.WASM_PYTHON).id


@pytest.mark.parametrize(
    "fields",
    [
        {"engine": "java"},
        {"engine": 7},
        {"demands": {"isolation": "castle"}},
        {"demands": {"grants": ["everything"]}},
        {"demands": ["network"]},
    ],
)
def test_a_head_that_no_submitter_makes_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        head_of(pack(fields))


def test_what_an_owner_grants_is_offered(tmp_path: Path) -> None:
    folders = f"data={tmp_path}, out={tmp_path / 'b'}:rw"
    config = load_config({"folders": folders, "grants": ["network"], "engines": ["python"]}, {}, None)
    assert config.folders == (Folder("data", tmp_path), Folder("out", tmp_path / "b", True))
    assert offers_of(config).grants == ("folder:data", "folder:out:rw", "network")
    assert offers_of(config).engines == (Engine.PYTHON,)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"folders": "data"}, "write NAME=PATH"),
        ({"folders": "data=relative/path"}, "absolute"),
        ({"folders": "a=/x,a=/y"}, "one name"),
        ({"grants": "folder:data"}, "folders ="),
        ({"grants": "all"}, "is no grant"),
        ({"engines": "java"}, "is no engine"),
        ({"isolation": "castle"}, "write one of auto"),
    ],
)
def test_what_makes_no_sense_is_refused_at_the_start(flags: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load_config(flags, {}, None)
