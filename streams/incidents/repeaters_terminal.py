"""`vedette repeaters`: list, propose, approve and revoke clients whose near-duplicates do not page."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import click
import msgspec
from rich.console import Console
from rich.table import Table

from streams.errors import BundleMismatch, ConfigError, Conflict
from streams.incidents.repeaters import Repeaters, standing
from streams.incidents.terminal import BY, JSON, Length, Session, line, moment
from streams.store.messages import Repeater

#: What the proposals of a bundle's report say.
REPORTED = "would page in the benign history that bundle {digest} was calibrated on"


@click.group()
def repeaters() -> None:
    """Clients whose near-duplicates open tickets and do not page: list, propose, approve, revoke."""


@repeaters.command("list")
@click.option("--ended", is_flag=True, help="Those that ended within a week too.")
@JSON
@click.pass_obj
def _list(session: Session, ended: bool, as_json: bool) -> int:
    """Proposed and approved repeaters."""
    now = time.time_ns() // 1000
    found = [one for one in _repeaters(session).all() if ended or one.ends > now]
    if as_json:
        _print_json(found)
    elif not found:
        Console().print("No repeaters.")
    else:
        table = Table(box=None, pad_edge=False)
        for name in ("client", "standing", "until (UTC)", "proposed by", "reason"):
            table.add_column(name, no_wrap=name in ("client", "until (UTC)"), overflow="fold")
        for one in found:
            how = standing(one, now)
            said = f"{how} by {one.approved_by}" if how == "approved" else how
            cells = (one.client, said, moment(one.ends)[:16], one.proposed_by, one.reason)
            table.add_row(*(line(cell) for cell in cells), style="dim" if how == "ended" else "")
        Console().print(table)
    return 0


@repeaters.command("propose")
@click.argument("clients", nargs=-1, metavar="[CLIENT]...")
@click.option("--bundle", metavar="FILE", help="Every client that the report of this bundle proposes.")
@click.option("--for", "seconds", required=True, type=Length(), help="How long, from now: 12h, 30d; at most 90 days.")
@click.option("--reason", default="", help="Why they repeat themselves.")
@BY
@JSON
@click.pass_obj
def _propose(
    session: Session,
    clients: tuple[str, ...],
    bundle: str | None,
    seconds: float,
    reason: str,
    by: str,
    as_json: bool,
) -> int:
    """Propose clients by their hashes; it changes nothing until somebody else approves.

    Of a bundle's clients those that are proposed or approved already are passed over.
    """
    reported, why = _reported(bundle) if bundle is not None else ((), "")
    if not clients and bundle is None:
        raise ConfigError("name clients by their hashes, or a bundle whose report proposes some")
    desk, now = _repeaters(session), time.time_ns() // 1000
    ends = now + round(seconds * 1e6)
    made = [desk.propose(client, by, ends, reason, now=now) for client in clients]
    for client in reported:
        try:
            made.append(desk.propose(client, by, ends, reason or why, now=now))
        except Conflict as known:
            if not as_json:
                Console().print(line(str(known), "dim"))
    _told(made, as_json)
    return 0


@repeaters.command("approve")
@click.argument("client")
@BY
@JSON
@click.pass_obj
def _approve(session: Session, client: str, by: str, as_json: bool) -> int:
    """Approve what somebody else has proposed."""
    _told([_repeaters(session).approve(client, by)], as_json)
    return 0


@repeaters.command("revoke")
@click.argument("client")
@click.option("--comment", default="", help="Why.")
@BY
@JSON
@click.pass_obj
def _revoke(session: Session, client: str, comment: str, by: str, as_json: bool) -> int:
    """End an approval, or refuse a proposal, now."""
    _told([_repeaters(session).revoke(client, by, comment)], as_json)
    return 0


def _reported(bundle: str) -> tuple[tuple[str, ...], str]:
    """The clients that a bundle's report proposes, and why."""
    from detectors.errors import BundleError
    from detectors.manifest import read_manifest, read_report

    try:
        report, digest = read_report(bundle), read_manifest(bundle)["digest"]
    except (BundleError, OSError) as refusal:
        raise BundleMismatch(str(refusal)) from None
    return report.proposed_repeaters, REPORTED.format(digest=digest[:12])


def _repeaters(session: Session) -> Repeaters:
    from streams.store.client import connect
    from streams.store.keys import ModelKeys

    return Repeaters(connect(session.settings.redis), ModelKeys(session.model_settings.name))


def _told(made: Sequence[Repeater], as_json: bool) -> None:
    if as_json:
        _print_json(made)
        return
    for one in made:
        who = f"approved by {one.approved_by}" if one.approved_by else "not approved yet"
        text = f"{one.client}  proposed by {one.proposed_by}, {who}, until {moment(one.ends)} UTC: {one.reason}"
        Console().print(line(f"{text} (revoked by {one.revoked_by})" if one.revoked_by else text))
    if not made:
        Console().print("Nobody new to propose.")


def _print_json(found: object) -> None:
    click.echo(json.dumps(msgspec.to_builtins(found), indent=2))
