"""Every transcript in this folder, played in the laboratory; `pytest --rewrite` writes down what is said now."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcompute.sim.lab import Lab, LabSettings, run
from p2pcompute.sim.trace import Detail
from tests.scenarios.stage import Stage
from tests.scenarios.transcript import TranscriptError, parse, play

TRANSCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path, request: pytest.FixtureRequest) -> None:
    rewrite = bool(request.config.getoption("--rewrite"))
    text = path.read_text()
    told: list[str] = []

    async def scenario(lab: Lab) -> None:
        stage = Stage(lab)
        told.append(await play(path.name, text, stage.perform, rewrite=rewrite))
        await stage.end()

    run(scenario, 1, LabSettings(detail=Detail.NOTES), name=path.stem)
    if rewrite:
        path.write_text(told[0])


def test_there_are_transcripts() -> None:
    assert len(TRANSCRIPTS) >= 5


def test_a_transcript_reads_as_written() -> None:
    steps, after = parse("# why\nup p0 via=p1\n----\np0: p1 appeared\n\n# end\n")
    assert [(step.command.name, step.command.arguments, step.command.options) for step in steps] == [
        ("up", ("p0",), {"via": "p1"})
    ]
    assert steps[0].expected == "p0: p1 appeared"
    assert after == ("", "# end")


def test_a_command_without_its_rule_is_refused() -> None:
    with pytest.raises(TranscriptError, match="line 2"):
        parse("run 5\n")
