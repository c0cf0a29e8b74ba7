"""Commands for WebAssembly: run a module's functions, and make the WebAssembly Python ready."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from p2pcompute.app.common import Command, json_option, note, run_async, settings_of, usage
from p2pcompute.app.program_file import json_arguments
from p2pcompute.app.render import print_json, print_json_line, printable
from p2pcompute.app.submit_commands import Work, job_options, options_of, perform
from p2pcompute.model.job import Aggregation


@click.command(
    cls=Command,
    examples="""
    p2pcompute wasm primes.wasm
    p2pcompute wasm primes.wasm count_below 100000
    p2pcompute wasm primes.wat count_below --each 1000 2000 3000 --fuel 1000000000
    """,
)
@click.argument("module", type=click.Path(path_type=Path))
@click.argument("function", required=False)
@click.argument("arguments", nargs=-1)
@click.option("--each", is_flag=True, help="Call FUNCTION once for each of ARGUMENTS (several numbers: a JSON list).")
@click.option("--fuel", type=int, metavar="UNITS", help="Work that one call may do; about one unit an instruction.")
@job_options
@click.pass_context
def wasm(
    ctx: click.Context,
    /,
    module: Path,
    function: str | None,
    arguments: tuple[str, ...],
    each: bool,
    fuel: int | None,
    **options: Any,
) -> None:
    """Call FUNCTION of the WebAssembly MODULE (.wasm, or its text .wat) with ARGUMENTS, at whichever peer is best.

    Without FUNCTION, the functions of MODULE are listed. A module is granted nothing: one that imports anything is refused.
    """
    from p2pcompute.node.wasm_module import WasmModule, limits_of

    settings = settings_of(ctx)
    settings.load()
    try:
        content = module.read_bytes()
    except OSError as error:
        usage(f"cannot read {module}: {error.strerror}; nothing was run")
    found = WasmModule(content, _from_the_command_line, limits_of({} if fuel is None else {"fuel": fuel}))
    if function is None:
        _list(found.functions.values(), options["as_json"])
        return
    if each and not arguments:
        usage("--each wants at least one argument: give inputs, each a JSON value")
    values = json_arguments(arguments)
    work = Work(
        function=found[function],
        reduce=None,
        aggregation=Aggregation.NONE,
        inputs=values if each else [values],
        options=options_of(options),
        peer=options["peer"],
        as_json=options["as_json"],
        output=options["output"],
        name=f"{module.name}:{function}",
    )
    for value in values if each else [values]:
        found[function].check((value,), {})
    run_async(perform(settings, work))


async def _from_the_command_line(*_: Any, **__: Any) -> Any:
    raise AssertionError("the command line calls through `map`")


def _list(functions: Iterable[Any], as_json: bool) -> None:
    for function in functions:
        signature = function.signature
        if as_json:
            print_json_line(
                {
                    "name": signature.name,
                    "parameters": list(signature.parameters),
                    "results": list(signature.results),
                }
            )
        else:
            click.echo(printable(signature.text))


@click.command("wasm-python", cls=Command, examples="p2pcompute wasm-python\np2pcompute wasm-python --json")
@json_option
@click.pass_context
def wasm_python(ctx: click.Context, as_json: bool) -> None:
    """Make the WebAssembly Python of this machine, in which peers run functions of people whom they do not know.

    It takes a minute, once for each version of this program; peers that start afterwards offer it.
    """
    from p2pcompute.node.wasm_engines import WasmEngines

    settings = settings_of(ctx)
    config = settings.load()
    place = run_async(WasmEngines.look(settings.folders, config.wasm_python).prepare(note))
    if as_json:
        print_json({"path": str(place), "bytes": place.stat().st_size})
    else:
        click.echo(f"ready: {place} ({place.stat().st_size / 1e6:.0f} MB)")


COMMANDS = (wasm, wasm_python)
