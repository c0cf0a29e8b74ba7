"""The command line: the group of all commands, and the way in from the shell.

Refuses to know what a command does; each group of commands has its own module.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from p2pcompute import __version__
from p2pcompute.app import (
    command_commands,
    demo,
    doctor_command,
    jobs_commands,
    network_commands,
    owner_commands,
    peer_commands,
    run_command,
    submit_commands,
    topology_command,
    wasm_commands,
)
from p2pcompute.app.common import Group, Settings, json_option
from p2pcompute.app.render import print_json

PROGRAM = "p2pcompute"
_SHELLS = ("bash", "zsh", "fish")


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`p2pcompute COMMAND --help` shows each command with examples.",
)
@click.version_option(__version__, "--version", prog_name=PROGRAM)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Lend each other computing power, peer to peer, without a server.

    Start a peer with `p2pcompute up`; peers of your network on this local network find each other. Any of them takes
    jobs. Data goes to stdout, everything else to stderr.
    """
    if ctx.obj is None:
        ctx.obj = Settings()


@cli.command(examples="p2pcompute version\np2pcompute version --json")
@json_option
def version(as_json: bool) -> None:
    """Print the version of this program, its protocol and Python."""
    import platform

    from p2pcompute.node.versions import protocol_versions

    newest, oldest = protocol_versions()
    if as_json:
        print_json(
            {
                "version": __version__,
                "protocol": newest,
                "protocol_oldest": oldest,
                "python": platform.python_version(),
                "platform": platform.platform(),
            }
        )
    else:
        click.echo(f"{PROGRAM} {__version__} (protocol {newest}, Python {platform.python_version()})")


@cli.command(
    examples="p2pcompute completion bash >> ~/.bashrc\n"
    "p2pcompute completion zsh >> ~/.zshrc\n"
    "p2pcompute completion fish > ~/.config/fish/completions/p2pcompute.fish"
)
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print the script that completes commands and options in SHELL."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None, "click knows every shell of _SHELLS"
    click.echo(found(cli, {}, PROGRAM, "_P2PCOMPUTE_COMPLETE").source())


for _command in (
    *peer_commands.COMMANDS,
    *owner_commands.COMMANDS,
    topology_command.topology,
    network_commands.network,
    *submit_commands.COMMANDS,
    *wasm_commands.COMMANDS,
    *command_commands.COMMANDS,
    run_command.run,
    *jobs_commands.COMMANDS,
    doctor_command.doctor,
    demo.demo,
):
    cli.add_command(_command)


def main() -> NoReturn:
    """Run the command line with the arguments of this process."""
    cli.main(prog_name=PROGRAM)
    sys.exit(0)
