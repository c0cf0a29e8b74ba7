"""The recipes of docs/containers: the Python image is built and used, of the others the engine checks the syntax."""

from __future__ import annotations

import io
import json
import tarfile
import urllib.parse
from pathlib import Path

import pytest

from p2pcompute.execution.container.program import ContainerProgram, pack_container_program
from p2pcompute.model.engine import Engine
from tests.support.dockerd import ask
from tests.unit.execution.container.conftest import MakeBench
from tests.unit.execution.test_program_zip import made

pytestmark = pytest.mark.timeout(60)

RECIPES = Path(__file__).resolve().parents[4] / "docs" / "containers"


def _build(engine: Path, recipe: str, **query: str) -> str:
    """What the engine said while it built."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(RECIPES / recipe / "Dockerfile", "Dockerfile")
    status, answer = ask(
        engine, "POST", f"/build?{urllib.parse.urlencode({'networkmode': 'none', **query})}", buffer.getvalue()
    )
    assert status in (200, 400), answer
    return answer.decode()


async def test_the_python_image_is_built_and_runs_a_zip_program(
    containers: MakeBench, engine_socket: Path, python_image: str
) -> None:
    said = _build(engine_socket, "python", t="p2pcompute-test/recipe", buildargs=json.dumps({"BASE": python_image}))
    assert "Successfully tagged" in said, said
    async with containers() as bench:
        archive = made(("main.py", b"import os, sys\nprint(sys.argv[1], os.getcwd(), os.environ['PYTHONUNBUFFERED'])"))
        program = ContainerProgram(1, Engine.CONTAINER, "p2pcompute-test/recipe", archive=archive)
        result = await bench.result(bench.spawn_packed(pack_container_program(program)), "given")
        assert result.stdout == b"given /work 1\n"


@pytest.mark.parametrize("recipe", sorted(path.parent.name for path in RECIPES.glob("*/Dockerfile")))
def test_the_engine_takes_the_syntax_of_every_recipe(engine_socket: Path, recipe: str) -> None:
    """It reads a recipe to its end before the first step, which then wants an image that nobody has."""
    said = _build(engine_socket, recipe, buildargs=json.dumps({"BASE": "127.0.0.1:1/none"}))
    assert "FROM ${BASE}" in said, said
    assert "parse error" not in said
    assert "unknown instruction" not in said


def test_a_recipe_with_a_wrong_word_is_noticed(
    engine_socket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "Dockerfile").write_text("ARG BASE=x\nFROM ${BASE}\nRUM true\n")
    monkeypatch.setattr("tests.unit.execution.container.test_recipes.RECIPES", tmp_path)
    assert "unknown instruction: RUM" in _build(engine_socket, "bad")
