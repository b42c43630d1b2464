"""One entry of `listeners`: an address, its certificates, and what is behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Final, get_args

from handfast.config import scalars
from handfast.config.clients import client_auth
from handfast.config.document import Kind, Value
from handfast.config.negotiation import tls_policy
from handfast.config.scalars import choice, count, file, integer, is_true
from handfast.config.schema import (
    Address,
    Certificate,
    KernelTls,
    KernelTlsMode,
    Listener,
    Route,
    UnixAddress,
)
from handfast.config.services import (
    ONE_TARGET_KEY,
    SERVICE,
    application_needs_no_header,
    route,
    take_service,
    unreachable,
)
from handfast.config.shape import (
    Shape,
    either,
    excludes,
    keywords,
    list_of,
    missing,
    needs,
    required,
)
from handfast.errors import Problem

MAX_KERNEL_AFTER: Final = 1 << 40  # bytes
PASSWORDS: Final = ("key-password", "key-password-file", "key-password-env")

CERTIFICATE: Final = Shape(
    fields={
        "chain": file,
        "cert": file,
        "cacerts": list_of(file),
        "key": file,
        "key-password": scalars.password,
        "key-password-file": file,
        "key-password-env": scalars.variable,
    },
    rules=(
        required("key", "the file of the private key"),
        either("chain", "cert", "`chain`, one PEM file with the leaf first"),
        excludes("chain", "cert", "cacerts"),
        *(excludes(one, other) for one, other in (*pairwise(PASSWORDS), PASSWORDS[::2])),
    ),
)


def _certificate(value: Value) -> Certificate:
    return Certificate(**keywords(CERTIFICATE.read(value)))


def _has_own_target(value: Value) -> bool:
    return "target" in value.entries or "targets" in value.entries


def _leads_somewhere(value: Value) -> Iterable[Problem]:
    if not _has_own_target(value) and "routes" not in value.entries:
        remedy = "where to forward to, such as tcp://127.0.0.1:80, or write `routes`"
        yield missing(value, "target", f"is missing; write {remedy}")


def _has_certificates(value: Value) -> Iterable[Problem]:
    if "certificates" not in value.entries and not _passes_all_through(value):
        message = "is missing; write a list with the certificate to show"
        yield missing(value, "certificates", message)


def _passes_all_through(value: Value) -> bool:
    """Tell whether every client speaks TLS with a target itself."""
    routes = value.entries.get("routes")
    if routes is None or _has_own_target(value):
        return False
    return all(is_true(each.entries.get("passthrough")) for each in routes.items)


def _header_has_a_source(value: Value, found: Mapping[str, Any]) -> Iterable[Problem]:
    if "accept-proxy" in found and isinstance(found["listen"], UnixAddress):
        message = "lists networks, and who connects to a Unix socket is of none; remove it"
        yield value.entries["accept-proxy"].problem(message)


def _routes_are_reachable(value: Value, found: Mapping[str, Any]) -> Iterable[Problem]:
    if "routes" in found:
        yield from unreachable(found["routes"], value.entries["routes"].items)


def _routes_speak_what_is_negotiated(value: Value, found: Mapping[str, Any]) -> Iterable[Problem]:
    routes: tuple[Route, ...] = found.get("routes", ())
    for one, place in zip(routes, value.entries["routes"].items if routes else (), strict=True):
        for name in one.alpn:
            if name not in found.get("alpn", ()):
                message = f"{name} is not in the `alpn` of its listener; add it there"
                yield place.entries["alpn"].problem(message)


_kernel_tls_word: Final = choice(*get_args(KernelTlsMode))


def _kernel_tls(value: Value) -> str:
    """Take a mode; a bare on or off is a boolean to YAML, and becomes true or false in tools."""
    if value.kind is Kind.BOOLEAN:
        return "on" if is_true(value) else "off"
    return _kernel_tls_word(value)


def _kernel_tls_fits(value: Value, found: Mapping[str, Any]) -> Iterable[Problem]:
    if isinstance(found["listen"], UnixAddress) and found.get("kernel-tls", "off") != "off":
        message = "is for TCP, and this listener is a Unix socket; remove it"
        yield value.entries["kernel-tls"].problem(message)
    if "kernel-tls-after" in found and found.get("kernel-tls", "off") == "off":
        message = "has no meaning while `kernel-tls` is off; set that to auto, or remove this"
        yield value.entries["kernel-tls-after"].problem(message)


LISTENER: Final = Shape(
    fields={
        "listen": scalars.listen,
        "name": scalars.text,
        "certificates": list_of(_certificate),
        "tls": tls_policy,
        "kernel-tls": _kernel_tls,
        "kernel-tls-after": integer(0, MAX_KERNEL_AFTER),
        "client-auth": client_auth,
        "alpn": list_of(scalars.protocol, least=0, most=100),
        "accept-proxy": list_of(scalars.network),
        "max-connections": count,
        **SERVICE,
        "routes": list_of(route),
    },
    rules=(
        required("listen", "an address such as 0.0.0.0:443"),
        _leads_somewhere,
        ONE_TARGET_KEY,
        needs("balance", "target", "targets"),
        needs("send-proxy", "target", "targets"),
        _has_certificates,
    ),
    checks=(
        _header_has_a_source,
        _routes_are_reachable,
        _routes_speak_what_is_negotiated,
        _kernel_tls_fits,
        application_needs_no_header,
    ),
)


def listener(value: Value) -> Listener:
    """Take one entry of `listeners`."""
    found = LISTENER.read(value)
    address: Address = found.pop("listen")
    own: dict[str, Any] = {"service": take_service(found)} if _has_own_target(value) else {}
    if "kernel-tls" in found:
        mode, after = found.pop("kernel-tls"), found.pop("kernel-tls-after", 0)
        own["kernel_tls"] = KernelTls(mode=mode, after=after)
    return Listener(
        address=address, **{"name": str(address), "certificates": (), **own, **keywords(found)}
    )
