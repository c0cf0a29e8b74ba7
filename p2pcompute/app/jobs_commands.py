"""Commands about jobs at a running peer: jobs, job show, job result, job cancel, job logs."""

from __future__ import annotations

from typing import Any

import click

from p2pcompute.app.common import Command, Group, Settings, json_option, note, peer_option, run_async, settings_of
from p2pcompute.app.render import (
    Column,
    console,
    duration,
    plain,
    print_json,
    print_json_line,
    print_table,
    printable,
    result_text,
    size_text,
)

_USED_COLUMNS: list[Column] = [
    ("peer", lambda row: str(row["peer"]), "left"),
    ("tasks", lambda row: str(row["attempts"]), "right"),
    ("CPU", lambda row: duration(row["cpu_s"]), "right"),
    ("time", lambda row: duration(row["wall_s"]), "right"),
    ("peak memory", lambda row: size_text(row["peak_memory_bytes"]), "right"),
    ("read", lambda row: size_text(row["read_bytes"]), "right"),
    ("written", lambda row: size_text(row["written_bytes"]), "right"),
]
_TASK_COLUMNS: list[Column] = [
    ("task", lambda row: str(row["task"]), "right"),
    ("peer", lambda row: str(row["peer"] or "-"), "left"),
    ("outcome", lambda row: str(row["outcome"]), "left"),
    ("attempt", lambda row: str(row.get("attempt", "-")), "right"),
    ("time", lambda row: duration(row.get("wall_s")), "right"),
    ("CPU", lambda row: duration(row.get("cpu_s")), "right"),
    ("peak memory", lambda row: size_text(row.get("peak_memory_bytes")), "right"),
    ("before", lambda row: _tried(row["attempts"]), "left"),
]
_job_argument = click.argument("job", metavar="JOB")


@click.command(cls=Command, examples="p2pcompute jobs\np2pcompute jobs --json | jq '.[].state'")
@peer_option
@json_option
@click.pass_context
def jobs(ctx: click.Context, peer: str | None, as_json: bool) -> None:
    """List the jobs that were submitted at a peer running here, the last ended ones included."""
    rows = _ask(settings_of(ctx), peer, "jobs")
    if as_json:
        print_json(rows)
        return
    print_table(
        "",
        [
            ("job", lambda row: row["job"], "left"),
            ("name", lambda row: row["name"], "left"),
            ("state", lambda row: row["state"], "left"),
            ("done", _done, "right"),
            ("failed", lambda row: str(row["tasks_failed"]), "right"),
            ("time", lambda row: duration(row["elapsed_s"]), "right"),
            ("peers", lambda row: _by_peer(row.get("done_by_peer", {})), "left"),
        ],
        rows,
        empty="no jobs yet: `p2pcompute submit --help` shows how to start one",
    )


@click.group(cls=Group)
def job() -> None:
    """Look into one job, get its result, cancel it. JOB is its id, or the start of it."""


@job.command(examples="p2pcompute job show abcdefgh\np2pcompute job show abcdefgh --json")
@_job_argument
@peer_option
@json_option
@click.pass_context
def show(ctx: click.Context, job: str, peer: str | None, as_json: bool) -> None:
    """Show all that is known about JOB."""
    details = _ask(settings_of(ctx), peer, "job.show", job=job)
    if as_json:
        print_json(details)
        return
    from rich.text import Text

    lines = {
        "job": details["job"],
        "name": details["name"],
        "state": details["state"],
        "tasks": f"{_done(details)} done, {details['tasks_failed']} failed, {details.get('tasks_running', 0)} running",
        "time": duration(details["elapsed_s"]),
        "by peer": _by_peer(details["done_by_peer"]) or "-",
        "retries": str(details.get("retries", 0)),
        "from the cache": str(details.get("tasks_cached", 0)),
        "error": details.get("error") or "-",
    }
    for name, text in lines.items():
        console().print(Text(f"{name:8} {printable(str(text))}"))
    print_table(
        "attempts that did not succeed",
        [
            ("task", lambda row: str(row["task"]), "right"),
            ("peer", lambda row: row["peer"], "left"),
            ("outcome", lambda row: row["outcome"], "left"),
            (
                "detail",
                lambda row: row["detail"].strip().splitlines()[-1][:120] if row["detail"].strip() else "",
                "left",
            ),
        ],
        [row for row in details["attempts"] if row["outcome"] != "returned"],
        empty="every attempt succeeded",
    )
    print_table("what it used", _USED_COLUMNS, details["used"]["by_peer"], empty="nothing has ended yet")


@job.command(examples="p2pcompute job explain abcdefgh\np2pcompute job explain abcdefgh 17 --json")
@_job_argument
@click.argument("task", type=int, required=False)
@peer_option
@json_option
@click.pass_context
def explain(ctx: click.Context, job: str, task: int | None, peer: str | None, as_json: bool) -> None:
    """Tell where the tasks of JOB ran, how often they were tried and why, and what they used; TASK: of this one alone."""
    found = _ask(settings_of(ctx), peer, "job.explain", job=job, task=task)
    if as_json:
        print_json(found)
        return
    asked = "; ".join(found["requirements"]) or "nothing special"
    note(printable(f"job {found['job']} ({found['name']}): strategy {found['strategy']}, requires {asked}"))
    print_table("", _TASK_COLUMNS, found["tasks"], empty="no task has ended yet")
    if task is None:
        print_table("what it used", _USED_COLUMNS, found["used"]["by_peer"], empty="nothing yet")
        if found["remembered"] > len(found["tasks"]):
            note(f"the newest {len(found['tasks'])} of {found['remembered']} tasks; give a number for an older one")


@job.command(examples="p2pcompute job result abcdefgh\np2pcompute job result abcdefgh --wait --json")
@_job_argument
@click.option("--wait", is_flag=True, help="Wait until the job has ended.")
@peer_option
@json_option
@click.pass_context
def result(ctx: click.Context, job: str, wait: bool, peer: str | None, as_json: bool) -> None:
    """Print the result of JOB again: the merged value, or one result a line."""
    from p2pcompute.node.results import read_end

    answer = _ask(settings_of(ctx), peer, "job.result", job=job, wait=wait)
    single, value, rows = read_end(answer)
    if single:
        if as_json:
            print_json_line({"job": answer["job"], "state": answer["state"], "result": plain(value)})
        else:
            click.echo(result_text(value))
        return
    for index, found in rows:
        if as_json:
            print_json_line({"index": index, "result": plain(found)})
        else:
            click.echo(result_text(found))


@job.command(examples="p2pcompute job cancel abcdefgh")
@_job_argument
@peer_option
@click.pass_context
def cancel(ctx: click.Context, job: str, peer: str | None) -> None:
    """End JOB; code that runs for it is stopped on every peer."""
    answer = _ask(settings_of(ctx), peer, "job.cancel", job=job)
    note(f"job {answer['job']}: {answer['state']}")


@job.command(examples="p2pcompute job logs abcdefgh\np2pcompute job logs abcdefgh --json")
@_job_argument
@peer_option
@json_option
@click.pass_context
def logs(ctx: click.Context, job: str, peer: str | None, as_json: bool) -> None:
    """Print what the tasks of JOB wrote to stdout and stderr, as far as it was kept."""
    for row in _ask(settings_of(ctx), peer, "job.logs", job=job):
        if as_json:
            print_json_line(row)
            continue
        for line in str(row["text"]).splitlines():
            click.echo(f"[{printable(row['peer'])} task {row['task']} {row['stream']}] {printable(line)}")


def _ask(settings: Settings, peer: str | None, method: str, **arguments: Any) -> Any:
    settings.load()
    return run_async(_call(settings, peer, method, arguments))


async def _call(settings: Settings, peer: str | None, method: str, arguments: dict[str, Any]) -> Any:
    from p2pcompute.node.running import connect

    async with await connect(settings.folders, peer) as client:
        return await client.call(method, **arguments)


def _done(row: Any) -> str:
    total = row["tasks_total"]
    return f"{row['tasks_done']}/{'?' if total is None else total}"


def _tried(attempts: list[dict[str, Any]]) -> str:
    return printable("; ".join(f"{one['peer']}: {one['outcome']} ({one['detail'].strip()[-80:]})" for one in attempts))


def _by_peer(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


COMMANDS = (jobs, job)
