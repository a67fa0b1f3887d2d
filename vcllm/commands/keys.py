"""`vcllm keys`: make, list, change, rotate and revoke API keys, next to the Redis that holds them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vcllm.commands.amounts import budget_of, lifetime_of, limit_of, overlap_of
from vcllm.commands.api import read_fleet
from vcllm.commands.audit import operator_deed
from vcllm.commands.display import open_console
from vcllm.commands.errors import CommandError
from vcllm.contracts.guard import GuardMode
from vcllm.contracts.keys import Budget, KeyChange, KeyLimits, KeyRecord, Scope
from vcllm.launch.credentials import load_credentials
from vcllm.settings import Settings
from vcllm.stores.api_keys import KeyStore
from vcllm.stores.connect import open_redis
from vcllm.stores.limits import LimitStore

app = typer.Typer(no_args_is_help=True, help="Make, list, change, rotate and revoke API keys.")

KeyId = Annotated[str, typer.Argument(metavar="ID", help="`vcllm keys list` shows it.")]
Expires = Annotated[
    str | None, typer.Option(metavar="WHEN", help="After so long (12h, 30d) or on a day (2027-01-31, UTC).")
]
NewLimit = Annotated[
    str | None, typer.Option(metavar="N", help="0: none. `default`: what the gateway is set to. Left out: as it is.")
]
Limit = Annotated[int | None, typer.Option(min=0, help="0: none. Default: what the gateway is set to.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key this is.")],
    scope: Annotated[list[Scope] | None, typer.Option(help="What it may do; repeat for more. Default: chat.")] = None,
    expires: Expires = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    concurrent_chats: Limit = None,
    budget: Annotated[str | None, typer.Option(metavar="TOKENS/PERIOD", help="200000/day, 5000000/month.")] = None,
    guard: Annotated[
        GuardMode | None, typer.Option(help="Checks of its answers. Default: as the charter says.")
    ] = None,
) -> None:
    """Make a key. It is shown this once: only its keyed hash is kept."""
    if not 1 <= len(name) <= 100:
        raise CommandError("A key's name has 1 to 100 characters.")
    limits = KeyLimits(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrent_chats=concurrent_chats,
    )
    ttl_s = None if expires is None else lifetime_of(expires)
    spends = None if budget is None else budget_of(budget)
    with key_store() as store, operator_deed(store.redis, "vcllm keys create") as doing:
        key, record = store.create(name, scope or [Scope.CHAT], ttl_s, limits=limits, budget=spends, guard=guard)
        doing.target = record.id
    _hand_over(key, f"Key {record.id} for {name} may: {', '.join(record.scopes)}.")


@app.command()
def change(
    key_id: KeyId,
    requests_per_minute: NewLimit = None,
    tokens_per_minute: NewLimit = None,
    concurrent_chats: NewLimit = None,
    budget: Annotated[str | None, typer.Option(metavar="TOKENS/PERIOD", help="200000/day, or `none`.")] = None,
    guard: Annotated[
        str | None, typer.Option(metavar="MODE", help=f"{', '.join(GuardMode)}, or `charter`: as the charter says.")
    ] = None,
) -> None:
    """Change a key's limits, budget or guard; running gateways notice within seconds, and what is used stays used."""
    bounds = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrent_chats": concurrent_chats,
    }
    told: dict[str, Any] = {}
    if limits := {name: limit_of(bound) for name, bound in bounds.items() if bound is not None}:
        told["limits"] = KeyLimits(**limits)
    if budget is not None:
        told["budget"] = None if budget == "none" else budget_of(budget)
    if guard is not None:
        told["guard"] = None if guard == "charter" else _guard_of(guard)
    with key_store() as store, operator_deed(store.redis, "vcllm keys change", key_id):
        record, *others = store.change(key_id, KeyChange(**told))
    shown = f"limits {_told_limits(record.limits)}, budget {_told_budget(record.budget)}, guard {_told_guard(record)}"
    also = f" The same limits and budget hold for {', '.join(other.id for other in others)}." if others else ""
    open_console().print(f"Key {key_id} has: {shown}.{also}", highlight=False, markup=False)


@app.command()
def rotate(
    key_id: KeyId,
    overlap: Annotated[
        str, typer.Option(metavar="TIME", help="How long the old key still works; 0: no longer.")
    ] = "24h",
    expires: Expires = None,
) -> None:
    """Make a successor with the same rights, limits and budget; the old key lives on for a while."""
    ttl_s = None if expires is None else lifetime_of(expires)
    with key_store() as store, operator_deed(store.redis, "vcllm keys rotate", key_id):
        key, record = store.rotate(key_id, overlap_of(overlap), ttl_s)
        old = store.get(key_id)
    _hand_over(key, f"Key {record.id} takes the place of {key_id}, which ends {_minute(old.expires)}.")


@app.command("list")
def list_keys() -> None:
    """The keys there are, without the keys themselves."""
    with key_store() as store:
        records, used = store.all(), store.last_used()
    table = Table("id", "name", "may", "expires", "last used", "limits", "budget", "guard")
    for record in records:
        table.add_row(
            record.id,
            Text(record.name),  # a name is no markup
            ", ".join(record.scopes),
            _ending(record),
            _minute(used.get(record.id)),
            _told_limits(record.limits),
            _told_budget(record.budget),
            _told_guard(record),
        )
    open_console().print(table if records else "There are no keys yet. `vcllm keys create NAME` makes one.")


@app.command()
def usage(
    key_id: KeyId,
    days: Annotated[int, typer.Option(min=1, max=366, help="Today and so many before, in UTC.")] = 30,
) -> None:
    """What a key has used, day by day, together with those it was rotated from."""
    with key_store() as store:
        usage = LimitStore(store.redis).usage_of(store.get(key_id), days)
    console = open_console()
    table = Table("day", "requests", "tokens")
    for day in usage.data:
        table.add_row(day.day, f"{day.requests:,}", f"{day.tokens:,}")
    console.print(table if usage.data else f"Key {key_id} was not used in this time.", highlight=False)
    if usage.budget is not None:
        console.print(f"{usage.used:,} of {_told_budget(usage.budget)} tokens are used.", highlight=False)


@app.command()
def revoke(key_id: KeyId) -> None:
    """Make a key useless; running gateways notice within seconds."""
    with key_store() as store, operator_deed(store.redis, "vcllm keys revoke", key_id):
        store.revoke(key_id)
    open_console().print(f"Key {key_id} opens nothing any more.", highlight=False)


@contextmanager
def key_store() -> Iterator[KeyStore]:
    """The keys of what runs on this machine; CommandError where nothing does."""
    settings = Settings()
    url = settings.redis_url if "redis_url" in settings.model_fields_set else read_fleet(settings.home).get("redis")
    if url is None:
        raise CommandError(
            "No VC-LLM is running here. Start it with `vcllm up`, or set VCLLM_REDIS_URL and VCLLM_PEPPER."
        )
    with open_redis(url, patience=1) as redis:
        yield KeyStore(redis, load_credentials(settings).pepper)


def _hand_over(key: str, sentence: str) -> None:
    """The key alone goes to standard output, so that a script can take it from there."""
    Console(stderr=True, soft_wrap=True).print(
        f"{sentence} Keep the key; it is not shown again.", markup=False, highlight=False
    )
    typer.echo(key)


def _ending(record: KeyRecord) -> str:
    if record.expires is None:
        return "never"
    if record.expires <= time.time():
        return "expired"
    rotated = "" if record.replaced_by is None else f" (rotated: {record.replaced_by})"
    return _minute(record.expires) + rotated


def _minute(when: float | None) -> str:
    return "never" if when is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


def _told_limits(limits: KeyLimits) -> str:
    """0 is said as `any`; what the gateway decides is left out."""
    bounds = (
        (limits.requests_per_minute, "requests/min"),
        (limits.tokens_per_minute, "tokens/min"),
        (limits.concurrent_chats, "at once"),
    )
    return ", ".join(f"{bound or 'any'} {what}" for bound, what in bounds if bound is not None) or "default"


def _guard_of(text: str) -> GuardMode:
    try:
        return GuardMode(text)
    except ValueError as error:
        modes = ", ".join(GuardMode)
        raise CommandError(f"'{text}' is not a mode of the guard. Write {modes}, or `charter`.") from error


def _told_guard(record: KeyRecord) -> str:
    return record.guard or "by charter"


def _told_budget(budget: Budget | None) -> str:
    return "none" if budget is None else f"{budget.tokens:,}/{budget.period}"
