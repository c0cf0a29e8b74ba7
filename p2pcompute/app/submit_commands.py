"""Commands that run something: submit and map."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from p2pcompute.app.common import Command, Settings, json_option, note, peer_option, run_async, settings_of, usage
from p2pcompute.app.placement_options import chosen_options
from p2pcompute.app.program_file import KINDS, file_inputs, function_of, json_arguments, json_lines, load_program
from p2pcompute.app.progress import Progress
from p2pcompute.app.render import plain, print_json_line, printable, result_text
from p2pcompute.model.engine import Engine
from p2pcompute.model.errors import NotRunningError, ResourceError, TaskFailedError
from p2pcompute.model.job import Aggregation, JobOptions, OnError

if TYPE_CHECKING:
    from p2pcompute.model.job import JobProgress
    from p2pcompute.node.peer import Peer
    from p2pcompute.node.remote import RemotePeer

    AnyPeer = Peer | RemotePeer

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be run, read from the command line and checked."""

    function: Callable[..., Any]
    reduce: Callable[..., Any] | None
    aggregation: Aggregation
    inputs: Iterable[Any]
    options: JobOptions
    peer: str | None
    as_json: bool
    output: Path | None
    name: str


def job_options(command: F) -> F:
    """The options that all commands share that run something."""
    for option in reversed(
        (
            click.option("--timeout", type=float, metavar="S", help="Seconds that one attempt of one task may take."),
            click.option("--job-timeout", type=float, metavar="S", help="Seconds that the whole job may take."),
            click.option("--retries", type=int, help="Attempts after one that died with its worker or peer (3)."),
            click.option("--priority", type=int, help="0 (last) to 9 (first); default 5."),
            click.option("--memory", metavar="SIZE", help="Memory of one worker, such as 512MB."),
            click.option(
                "--on-error",
                type=click.Choice([member.value for member in OnError]),
                default=OnError.RAISE.value,
                show_default=True,
                help="End the job when a task fails, or leave its input out.",
            ),
            click.option("--strategy", metavar="NAME", help="Who is given work first; default hlig (see the README)."),
            click.option("--fallback", metavar="NAME", help="Strategy to use where the first fails or leaves nobody."),
            click.option(
                "--target",
                metavar="NAME",
                help="For smart_adaptive: minimize_latency (default), maximize_throughput or minimize_cost.",
            ),
            click.option(
                "--cache",
                type=float,
                metavar="S",
                help="Use answers to equal calls again that are younger than S seconds.",
            ),
            click.option("--task-type", metavar="TYPE", help="compute (default), network, memory or mixed."),
            click.option(
                "--coordination",
                metavar="HOW",
                help="Whether key nodes of other communities dispatch there: auto (default), relay (they merge no results) or off.",
            ),
            click.option(
                "--require",
                "requirements",
                metavar="EXPR",
                multiple=True,
                help="What a peer must have, such as 'gpu_memory>=16GB'; may be repeated.",
            ),
            click.option(
                "--label", "labels", metavar="TEXT", multiple=True, help="Only peers with this label; may be repeated."
            ),
            click.option("--engine", metavar="NAME", help="What runs the tasks: python (default) or wasm-python."),
            click.option(
                "--isolation",
                metavar="LEVEL",
                help="How well peers must hold the tasks, at least: process, restricted, sandbox or wasm.",
            ),
            click.option(
                "--grant",
                "grants",
                metavar="GRANT",
                multiple=True,
                help="What the tasks need of a peer's owner: network, network:HOST:PORT, gpu, processes, folder:NAME or folder:NAME:rw.",
            ),
            click.option(
                "--prefer",
                "preferences",
                metavar="WISH",
                multiple=True,
                help="local, max_latency=100ms or cost_limit=10; other peers come last; may be repeated.",
            ),
            click.option(
                "--max-cost", type=float, metavar="SUM", help="What the whole job may cost at the peers' prices."
            ),
            click.option("--task-seconds", type=float, metavar="S", help="How long a task takes, if you know."),
            click.option("--wait", "waits", is_flag=True, help="Wait where no peer meets the requirements."),
            click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write results to FILE."),
            peer_option,
            json_option,
        )
    ):
        command = option(command)
    return command


@click.command(
    cls=Command,
    examples="""
    p2pcompute submit examples/wordcount.py --map count --reduce merge texts/*.txt
    p2pcompute submit sizes.py --map size --aggregation sum --as path *.log
    p2pcompute submit parse.py --map parse --as lines access.log --output parsed.jsonl --json
    """,
)
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--map", "map_name", metavar="NAME", required=True, help="Function of FILE that is run on every input.")
@click.option(
    "--reduce", "reduce_name", metavar="NAME", help="Function of FILE that merges a list of results into one."
)
@click.option(
    "--aggregation", metavar="NAME", help="How results become one: sum, average, max, min, concat, or none (default)."
)
@click.option(
    "--as",
    "kind",
    type=click.Choice(KINDS),
    default="bytes",
    show_default=True,
    help="What the function gets of a file.",
)
@job_options
@click.pass_context
def submit(
    ctx: click.Context,
    /,
    file: Path,
    inputs: tuple[Path, ...],
    map_name: str,
    reduce_name: str | None,
    aggregation: str | None,
    kind: str,
    **options: Any,
) -> None:
    """Run a function of FILE on every one of INPUTS (files), on all peers that may.

    Results are printed as JSON where they have that form: one a line in the order of INPUTS, or the one value that
    --reduce or --aggregation makes of them. The peer running here takes the job; without one, one is started for it.
    """
    settings = settings_of(ctx)
    settings.load()
    if aggregation is None:
        chosen = Aggregation.REDUCE if reduce_name else Aggregation.NONE
    else:
        chosen = Aggregation.parse(aggregation)
    needs_reduce = chosen in (Aggregation.REDUCE, Aggregation.CUSTOM)
    if needs_reduce and not reduce_name:
        usage(f"--aggregation {chosen} needs a function that merges results: give --reduce NAME")
    if reduce_name and not needs_reduce:
        usage(f"--aggregation {chosen} takes no function: leave --reduce out, or --aggregation")
    given = file_inputs(inputs, kind)
    module = load_program(file)
    _run(settings, module, map_name, reduce_name, chosen, given, options)


@click.command(
    "map",
    cls=Command,
    examples="""
    p2pcompute map primes.py count_below 1000 2000 3000
    p2pcompute map hello.py greet '"Ada"' '"Alan"'
    generate | p2pcompute map model.py score --jsonl - --json
    """,
)
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("function")
@click.argument("arguments", nargs=-1)
@click.option("--jsonl", metavar="FILE", help='Read inputs from FILE ("-": stdin), one JSON value a line.')
@job_options
@click.pass_context
def map_(
    ctx: click.Context,
    /,
    file: Path,
    function: str,
    arguments: tuple[str, ...],
    jsonl: str | None,
    **options: Any,
) -> None:
    """Run FUNCTION of FILE on every one of ARGUMENTS, each a JSON value, on all peers that may.

    Results are printed in the order of the arguments, one a line.
    """
    settings = settings_of(ctx)
    settings.load()
    if (jsonl is None) == (not arguments):
        usage("give inputs either as arguments, each a JSON value, or with --jsonl FILE")
    with contextlib.ExitStack() as stack:
        inputs: Iterable[Any]
        if jsonl is None:
            inputs = json_arguments(arguments)
        else:
            inputs = json_lines(_lines_of(jsonl, stack), "stdin" if jsonl == "-" else jsonl)
        _run(settings, load_program(file), function, None, Aggregation.NONE, inputs, options)


def _lines_of(name: str, stack: contextlib.ExitStack) -> Iterable[str]:
    if name == "-":
        return sys.stdin
    try:
        return stack.enter_context(Path(name).open(encoding="utf-8"))
    except OSError as error:
        usage(f"cannot read the inputs {name}: {error.strerror}; nothing was run")


def _run(
    settings: Settings,
    module: ModuleType,
    map_name: str,
    reduce_name: str | None,
    aggregation: Aggregation,
    inputs: Iterable[Any],
    options: dict[str, Any],
) -> None:
    work = Work(
        function=function_of(module, map_name),
        reduce=None if reduce_name is None else function_of(module, reduce_name),
        aggregation=aggregation,
        inputs=inputs,
        options=options_of(options),
        peer=options["peer"],
        as_json=options["as_json"],
        output=options["output"],
        name=f"{module.__name__}.{map_name}",
    )
    run_async(perform(settings, work))


def options_of(given: dict[str, Any]) -> JobOptions:
    """What `job_options` gave, as the options of a job. Raises UsageError."""
    from p2pcompute.node.door import options_named

    # None is what no time-out for the whole job is called anyway.
    return options_named({"on_error": given["on_error"], "job_timeout_s": given["job_timeout"]} | chosen_options(given))


async def perform(settings: Settings, work: Work) -> None:
    """Run the job at the peer that runs here, or at one that is started for it, and print or write its results."""
    async with a_door(settings, work.peer, work.options.engine) as door:
        with Progress(quiet=not sys.stderr.isatty()) as progress, _sink(work.output) as sink:
            try:
                if work.aggregation is Aggregation.NONE:
                    await _print_each(door, work, progress, sink)
                else:
                    await _print_one(door, work, progress, sink)
            except Exception as error:
                # What a task raised comes back as the user's own exception, caused by ours, which says where and why.
                if isinstance(error.__cause__, TaskFailedError):
                    raise error.__cause__ from None
                raise
    failed = progress.latest.tasks_failed if progress.latest is not None else 0
    if failed and work.options.on_error is OnError.SKIP:
        note(
            "1 input was left out: its task failed"
            if failed == 1
            else f"{failed} inputs were left out: their tasks failed"
        )


async def _print_each(door: AnyPeer, work: Work, progress: Progress, sink: IO[str] | None) -> None:
    index = 0
    results = door.map(
        work.function,
        work.inputs,
        options=work.options,
        on_progress=progress.show,
        on_output=lambda rows: _print_output(door, rows, progress),
        name=work.name,
    )
    async with contextlib.aclosing(results):  # type: ignore[type-var]
        async for value in results:
            # Left-out inputs have no result, so numbers of results mean inputs only where every one must have one.
            numbered = {} if work.options.on_error is OnError.SKIP else {"index": index}
            _write({**numbered, "result": plain(value)} if work.as_json else value, work.as_json, sink)
            index += 1


async def _print_one(door: AnyPeer, work: Work, progress: Progress, sink: IO[str] | None) -> None:
    outcome = await door.map_reduce(
        work.function,
        work.reduce,
        work.inputs,
        aggregation=work.aggregation,
        options=work.options,
        on_progress=progress.show,
        on_output=lambda rows: _print_output(door, rows, progress),
        name=work.name,
    )
    progress.show(outcome.progress)
    if not work.as_json:
        _write(outcome.value, False, sink)
        return
    _write({"result": plain(outcome.value), **progress_document(outcome.progress, door)}, True, sink)


def progress_document(progress: JobProgress, door: AnyPeer) -> dict[str, Any]:
    """How a job went, beside its result."""
    from p2pcompute.model.ids import format_job_id

    return {
        "job": format_job_id(progress.job),
        "state": progress.state.value,
        "tasks_done": progress.tasks_done,
        "tasks_failed": progress.tasks_failed,
        "tasks_cached": progress.tasks_cached,
        "retries": progress.retries,
        "elapsed_s": round(progress.elapsed_s, 3),
        "done_by_peer": {door.name_of(peer): count for peer, count in progress.done_by_peer},
    }


def _write(value: Any, as_json: bool, sink: IO[str] | None) -> None:
    if sink is not None:
        sink.write(result_text(value) + "\n")
    elif as_json:
        print_json_line(value)
    else:
        click.echo(result_text(value))


def _print_output(door: AnyPeer, rows: Sequence[Any], progress: Progress) -> None:
    for row in rows:
        for line in str(row.text).splitlines():
            progress.say(f"[{printable(door.name_of(row.peer))} task {row.index}] {printable(line)}")


@contextlib.contextmanager
def _sink(path: Path | None) -> Any:
    """The file that results go to; it takes the place of an older one only once everything is in it."""
    if path is None:
        yield None
        return
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def a_door(settings: Settings, wanted: str | None, engine: Engine | None = None) -> AsyncIterator[AnyPeer]:
    """The peer that runs here, or one that is started in this process for as long as this is entered.

    `engine`: what the job asks for; one that is started for it has the WebAssembly Python made first.
    """
    from p2pcompute.node.running import socket_of

    folders = settings.folders
    try:
        path = await socket_of(folders, wanted)
    except NotRunningError:
        if wanted is not None:
            raise
        path = None
    if path is not None:
        from p2pcompute.node.remote import RemotePeer

        async with await RemotePeer.connect(path) as remote:
            yield remote
        return
    from p2pcompute.node.peer import Peer

    note("no peer of yours is running here: starting one for this job (`p2pcompute up` keeps one running)")
    config = settings.load()
    if engine is Engine.WASM_PYTHON:
        from p2pcompute.node.wasm_engines import WasmEngines

        await WasmEngines.look(folders, config.wasm_python).prepare(note)
    async with Peer(config, folders=folders) as peer:
        yield peer


COMMANDS = (submit, map_)
