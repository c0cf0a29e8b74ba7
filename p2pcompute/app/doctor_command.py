"""`p2pcompute doctor`: what could keep a peer from working."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from p2pcompute.app.common import Command, Settings, json_option, run_async, settings_of, uses_colours
from p2pcompute.app.render import print_json, printable

if TYPE_CHECKING:
    from p2pcompute.node.doctor import Finding

_COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "red"}


@click.command(
    cls=Command, examples="p2pcompute doctor\np2pcompute doctor --json | jq '.[] | select(.level != \"OK\")'"
)
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Look at Python, files, keys, memberships, ports, broadcasts and running peers, and say what to do.

    Ends with exit code 1 where something FAILs. Nothing is changed.
    """
    settings = settings_of(ctx)
    findings = run_async(_examine(settings))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        colours = uses_colours(sys.stdout, settings.environ)
        for finding in findings:
            level = (
                click.style(f"{finding.level.value:4}", fg=_COLOURS[finding.level.value])
                if colours
                else f"{finding.level.value:4}"
            )
            click.echo(f"{level} {finding.subject}: {printable(finding.text)}")
            if finding.advice:
                click.echo(f"     -> {printable(finding.advice)}")
    if any(finding.level.value == "FAIL" for finding in findings):
        raise click.exceptions.Exit(1)


async def _examine(settings: Settings) -> list[Finding]:
    from p2pcompute.node.doctor import Doctor
    from p2pcompute.node.seams import SystemClock, SystemEntropy

    return await Doctor(settings.folders, settings.environ, SystemClock(), SystemEntropy()).examine(
        settings.config_file
    )
