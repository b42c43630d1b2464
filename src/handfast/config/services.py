"""Where clients go: targets, the services they make up, and the routes to those."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias, get_args

from handfast.config import scalars
from handfast.config.document import Kind, Value, below
from handfast.config.names import parse_server_name, parse_sni
from handfast.config.scalars import AnyParser, boolean, by, choice, count, file, is_true
from handfast.config.schema import (
    Balance,
    HandoffAddress,
    Route,
    SendProxy,
    Service,
    Target,
    TargetTls,
    UnixAddress,
)
from handfast.config.shape import (
    Rule,
    Shape,
    either,
    excludes,
    keywords,
    list_of,
    one_or_many,
    required,
)
from handfast.errors import Problem

TARGET_TLS: Final = Shape(
    fields={
        "server-name": by(parse_server_name, "a host name or an IP address"),
        "trusted-certs": list_of(file),
    }
)


def _target_tls(value: Value) -> TargetTls | None:
    if value.kind is Kind.BOOLEAN:
        return TargetTls() if boolean(value) else None
    return TargetTls(**keywords(TARGET_TLS.read(value)))


def _socket_needs_name(value: Value, found: Mapping[str, Any]) -> Iterable[Problem]:
    tls: TargetTls | None = found.get("tls")
    if tls and not tls.server_name and isinstance(found["address"], UnixAddress):
        where = value.entries["tls"]
        message = "is missing; a Unix socket has no name that its certificate could be for"
        yield Problem(message, below(where.path, "server-name"), where.line)


_NOT_FOR_APPLICATIONS: Final = {
    "tls": "is between the client and the application itself, which gets the session",
    "max-connections": "is for connections that handfast carries; the application has its own",
}


def _application_fits(value: Value, found: Mapping[str, Any]) -> Iterable[Problem]:
    """Refuse what has no meaning when the session itself goes to the target, and `user` else."""
    if isinstance(found["address"], HandoffAddress):
        for key, why in _NOT_FOR_APPLICATIONS.items():
            if found.get(key):
                yield value.entries[key].problem(f"{why}; remove it")
    elif "user" in found:
        message = "is whose application sessions go to, at a target handoff:/path; remove it"
        yield value.entries["user"].problem(message)


TARGET: Final = Shape(
    fields={
        "address": scalars.target,
        "tls": _target_tls,
        "max-connections": count,
        "user": scalars.text,
    },
    rules=(required("address", "where to forward to, such as tcp://127.0.0.1:80"),),
    checks=(_socket_needs_name, _application_fits),
)


def _target(value: Value) -> Target:
    """Take an address, or a mapping with one and more about it."""
    if value.kind is not Kind.MAPPING:
        return Target(address=scalars.target(value))
    found = TARGET.read(value)
    user = found.pop("user", "")
    if user:
        found["address"] = HandoffAddress(path=found["address"].path, user=user)
    return Target(**keywords(found))


def _hands_over(found: Mapping[str, Any]) -> bool:
    """Tell whether a service has a target that takes sessions."""
    targets: tuple[Target, ...] = found.get("targets") or (found["target"],)
    return any(isinstance(each.address, HandoffAddress) for each in targets)


def application_needs_no_header(value: Value, found: Mapping[str, Any]) -> Iterable[Problem]:
    """Refuse a PROXY header to who gets the session: its message says who the client is."""
    if found.get("send-proxy", "none") != "none" and _hands_over(found):
        message = "is not for a target handoff:/path, whose message says who the client is"
        yield value.entries["send-proxy"].problem(f"{message}; remove it")


SERVICE: Final[dict[str, AnyParser]] = {
    "target": _target,
    "targets": list_of(_target),
    "balance": choice(*get_args(Balance)),
    "send-proxy": choice(*get_args(SendProxy)),
}
ONE_TARGET_KEY: Final[Rule] = excludes("target", "targets")


def take_service(found: dict[str, Any]) -> Service:
    """Take a service out of what SERVICE's parsers found; the other keys stay."""
    targets = (found.pop("target"),) if "target" in found else found.pop("targets")
    rest: dict[str, Any] = {
        key: found.pop(key) for key in ("balance", "send-proxy") if key in found
    }
    return Service(targets=targets, **keywords(rest))


def _needs_a_condition(value: Value) -> Iterable[Problem]:
    passthrough = is_true(value.entries.get("passthrough"))
    if not passthrough and not value.entries.keys() & {"sni", "alpn"}:
        message = "has neither `sni` nor `alpn`; for clients of no route, write the listener's"
        yield value.problem(f"{message} own `target`")


def _passthrough_fits(value: Value, found: Mapping[str, Any]) -> Iterable[Problem]:
    """Refuse what cannot be when the clients speak TLS with the target itself."""
    if not found.get("passthrough"):
        return
    where = value.entries["passthrough"]
    if "sni" not in found:
        yield where.problem("needs `sni`: nothing else is known of such a client")
    if "alpn" in found:
        yield value.entries["alpn"].problem("is not negotiated by a passthrough route; remove it")
    if any(target.tls for target in found.get("targets", (found.get("target"),))):
        message = "cannot be together with `tls` to the target, which the client itself speaks"
        yield where.problem(f"{message}; remove one of them")
    if _hands_over(found):
        message = "has no session that could go to a target handoff:/path"
        yield where.problem(f"{message}; remove `passthrough`, or name another target")


ROUTE: Final = Shape(
    fields={
        "sni": one_or_many(by(parse_sni, "a name such as www.example.com or '*.example.com'")),
        "alpn": one_or_many(scalars.protocol),
        "passthrough": boolean,
        **SERVICE,
    },
    rules=(
        _needs_a_condition,
        either("target", "targets", "where to forward to, such as tcp://127.0.0.1:80"),
        ONE_TARGET_KEY,
    ),
    checks=(_passthrough_fits, application_needs_no_header),
)


def route(value: Value) -> Route:
    """Take one entry of `routes`."""
    found = ROUTE.read(value)
    return Route(service=take_service(found), **keywords(found))


_Claims: TypeAlias = defaultdict[str, list[tuple[Route, Value]]]


def unreachable(routes: tuple[Route, ...], values: tuple[Value, ...]) -> Iterable[Problem]:
    """Find names in routes that could never be taken, because an earlier route takes them all."""
    claims: _Claims = defaultdict(list)
    for one, value in zip(routes, values, strict=True):
        for name in one.sni or ("",):
            if place := _taken_by(claims, name, one):
                what = f"`sni` {name}" if name else "`alpn`"
                message = f"{what} is taken by {place.path} on line {place.line} already"
                yield value.problem(f"{message}; remove it, or put this route first")
        for name in one.sni or ("",):
            claims[name].append((one, value))


def _taken_by(claims: _Claims, name: str, route: Route) -> Value | None:
    patterns = (name, f"*.{name.partition('.')[2]}", "")
    earlier = (claim for pattern in patterns for claim in claims[pattern])
    return next((place for first, place in earlier if _takes_protocols(first, route)), None)


def _takes_protocols(first: Route, second: Route) -> bool:
    return not first.alpn or (bool(second.alpn) and set(second.alpn) <= set(first.alpn))
