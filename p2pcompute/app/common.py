"""What every command shares: options, errors in words, exit codes, and one way into asyncio.

Rules: stdout is for data and stderr for everything else; a command is quiet unless asked; the same error ends with the
same exit code everywhere (that of its class in `model/errors.py`; 130 for Ctrl-C, 143 for SIGTERM).

Modules of this room import only click and `model/` at the top: `p2pcompute --help` must not pay for a peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import os
import signal
import sys
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from p2pcompute.model.errors import P2PComputeError, TaskFailedError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from p2pcompute.node.config import PeerConfig
    from p2pcompute.node.folders import Folders

T = TypeVar("T")

#: A program that a signal ended has this and the signal's number as its exit code.
EXIT_BY_SIGNAL = 128
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
EXIT_NO_READER = 141
#: No first sentence of a command's help is longer.
_SENTENCE_CHARACTERS_MAX = 200


class ShownError(click.ClickException):
    """An error of our tree, told to a person."""

    def __init__(self, error: P2PComputeError) -> None:
        super().__init__(str(error))
        # click declares it for the class; here it differs from error to error.
        vars(self)["exit_code"] = error.exit_code
        self._details = error.remote_traceback if isinstance(error, TaskFailedError) else ""

    def show(self, file: IO[Any] | None = None) -> None:
        """Write it to stderr, the remote traceback first, as Python does."""
        if self._details and self._details.strip() not in self.message:
            click.echo(self._details.rstrip(), err=True)
        click.echo(f"error: {self.message}", err=True)


class Command(click.Command):
    """A command with the options that all have: `--config`, `--log-level`, `-v`, and examples in its help."""

    def __init__(self, *args: Any, examples: str = "", **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._examples = examples
        self.params.extend(
            [
                click.Option(
                    ["--config"],
                    type=click.Path(exists=True, dir_okay=False, path_type=Path),
                    expose_value=False,
                    callback=_remember("config_file"),
                    help="Configuration file to read instead of the one in the configuration folder.",
                ),
                click.Option(
                    ["--log-level"],
                    type=click.Choice(["debug", "info", "warning", "error", "critical"], case_sensitive=False),
                    expose_value=False,
                    callback=_remember("log_level"),
                    help="Least severe log line to write to stderr (default: warning).",
                ),
                click.Option(
                    ["-v", "--verbose"],
                    count=True,
                    expose_value=False,
                    callback=_remember("verbose"),
                    help="More log lines: -v is --log-level info, -vv is debug.",
                ),
            ]
        )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, one a line."""
        if self._examples:
            with formatter.section("Examples"):
                for line in self._examples.strip().splitlines():
                    formatter.write(f"  {line.strip()}\n")

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors of our tree and signals become exit codes."""
        try:
            return super().invoke(ctx)
        except P2PComputeError as error:
            raise ShownError(error) from error
        except KeyboardInterrupt:
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            _leave_pipe()
        except Exception as error:
            # What a submitted function raised is shown as it happened there; how this program heard of it helps nobody.
            if isinstance(error.__cause__, TaskFailedError):
                raise ShownError(error.__cause__) from error
            raise


class Group(click.Group):
    """A group whose unknown commands are answered with the nearest known one."""

    command_class = Command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every command with the whole first sentence of its help: click would cut it in mid-word."""
        rows = [
            (name, command.get_short_help_str(limit=_SENTENCE_CHARACTERS_MAX))
            for name in self.list_commands(ctx)
            if (command := self.get_command(ctx, name)) is not None and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with a suggestion."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            error = UnknownNameError("command", args[0], self.list_commands(ctx))
            # Letters swapped or left out in a short name fall below difflib's usual ratio.
            if error.nearest is None:
                near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1, cutoff=0.5)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
            else:
                hint = f" (did you mean {error.nearest!r}?)"
            raise click.UsageError(f"no such command: {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)


Group.group_class = Group


@dataclass(slots=True)
class Settings:
    """What was said once for the whole call; `ctx.obj` of every command."""

    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    config_file: Path | None = None
    log_level: str | None = None
    verbose: int = 0

    @property
    def folders(self) -> Folders:
        """Where this user's files are."""
        from p2pcompute.node.folders import Folders

        return Folders.locate(self.environ)

    def load(self, **flags: object) -> PeerConfig:
        """The configuration from flags, environment and file; logging is set up by it. Raises ConfigError."""
        from p2pcompute.app.logs import configure_logging
        from p2pcompute.node.config import load_config

        level = self.log_level or ("debug" if self.verbose > 1 else "info" if self.verbose else None)
        config = load_config({**flags, "log_level": level}, self.environ, self.config_file or self.folders.config_file)
        configure_logging(config.log_level, config.log_format, colours=uses_colours(sys.stderr, self.environ))
        return config


def settings_of(ctx: click.Context) -> Settings:
    """The settings of this call."""
    found = ctx.find_object(Settings)
    if found is None:
        found = ctx.find_root().obj = Settings()
    return found


def _remember(name: str) -> Any:
    def callback(ctx: click.Context, _: click.Parameter, value: object) -> None:
        if value:
            setattr(settings_of(ctx), name, value)

    return callback


json_option = click.option("--json", "as_json", is_flag=True, help="Print data as JSON on stdout.")
peer_option = click.option(
    "--peer",
    "peer",
    metavar="NUMBER|NAME|ID",
    help="Which of the peers running here to use (default: the one with the lowest number).",
)


def uses_colours(stream: IO[str], environ: dict[str, str]) -> bool:
    """Whether `stream` is a terminal whose user has not said NO_COLOR."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def note(text: str) -> None:
    """Tell a person something that is no data: stderr."""
    click.echo(text, err=True)


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end. Ctrl-C, SIGTERM and the end of its terminal cancel it, so that it cleans up, and then end the command."""
    terminated = False

    async def guarded() -> T:
        nonlocal terminated
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        # SIGHUP: the terminal was closed.
        for number in (signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ())):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, terminate)
        return await main

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        raise click.exceptions.Exit(EXIT_TERMINATED if terminated else EXIT_INTERRUPTED) from None
    except BaseExceptionGroup as group:
        raise _only(group) from group


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def usage(text: str) -> NoReturn:
    """End the command: it was called in a way that cannot be."""
    raise UsageError(text)


def _leave_pipe() -> NoReturn:
    # The reader of our output (`head`) has left. Python would complain once more when it flushes stdout at exit.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise click.exceptions.Exit(EXIT_NO_READER) from None
