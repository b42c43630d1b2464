"""A Config as YAML in the full dialect, with every default written out."""

from __future__ import annotations

from typing import Any

import yaml

from handfast.config.scalars import UNITS
from handfast.config.schema import (
    Certificate,
    ClientAuth,
    Config,
    HandoffAddress,
    Limits,
    Listener,
    Route,
    Service,
    Target,
    TargetAddress,
    Timeouts,
    TlsPolicy,
    UnixAddress,
)


def effective(config: Config) -> str:
    """Write a configuration after defaults.

    `parse` gives an equal Config back from it, with no `base`: file names are written as they
    were resolved. An inline password is the exception, being shown as ***; passwords from a file
    or an environment variable are only named, so they come back.
    """
    isolation = config.isolation
    document = {
        "nworkers": config.nworkers,
        "logfile": config.logfile or "-",
        "loglevel": config.loglevel,
        **_present(control=config.control, pidfile=config.pidfile),
        **_present(metrics=config.metrics and str(config.metrics)),
        "watch": config.watch,
        "user": isolation.user,
        **_present(group=isolation.group, chroot=isolation.chroot),
        "isolation": isolation.mode,
        **_timeouts(config.timeouts),
        "limits": _limits(config.limits),
        "listeners": [_listener(listener) for listener in config.listeners],
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _timeouts(timeouts: Timeouts) -> dict[str, int | str]:
    return {
        f"{name.replace('_', '-')}-timeout": _duration(getattr(timeouts, name))
        for name in timeouts.__struct_fields__
    }


def _limits(limits: Limits) -> dict[str, int]:
    return {name.replace("_", "-"): getattr(limits, name) for name in limits.__struct_fields__}


def _listener(listener: Listener) -> dict[str, Any]:
    return {
        "name": listener.name,
        "listen": str(listener.address),
        **_present(certificates=[_certificate(each) for each in listener.certificates]),
        "tls": _tls(listener.tls),
        "kernel-tls": listener.kernel_tls.mode,
        **_present(kernel_tls_after=listener.kernel_tls.after),
        "client-auth": _client_auth(listener.client_auth),
        "alpn": list(listener.alpn),
        **_present(accept_proxy=list(listener.accept_proxy)),
        "max-connections": listener.max_connections,
        **(_service(listener.service) if listener.service else {}),
        **_present(routes=[_route(route) for route in listener.routes]),
    }


def _certificate(certificate: Certificate) -> dict[str, Any]:
    return _present(
        chain=certificate.chain,
        cert=certificate.cert,
        cacerts=list(certificate.cacerts),
        key=certificate.key,
        key_password=certificate.key_password and repr(certificate.key_password),
        key_password_file=certificate.key_password_file,
        key_password_env=certificate.key_password_env,
    )


def _tls(tls: TlsPolicy) -> dict[str, Any]:
    return {
        "versions": list(tls.versions),
        **_present(ciphersuites=list(tls.ciphersuites)),
        "require-post-quantum": tls.require_post_quantum,
    }


def _client_auth(auth: ClientAuth) -> dict[str, Any]:
    rules = [
        {"allow" if rule.allow else "deny": _lists(rule.fields) or "any"} for rule in auth.rules
    ]
    files = _present(trusted_certs=list(auth.trusted_certs), crls=list(auth.crls))
    return {"mode": auth.mode, **files, **_present(rules=rules)}


def _lists(fields: tuple[tuple[str, tuple[str, ...]], ...]) -> dict[str, list[str]]:
    return {field: list(values) for field, values in fields}


def _route(route: Route) -> dict[str, Any]:
    conditions = _present(sni=list(route.sni), alpn=list(route.alpn), passthrough=route.passthrough)
    return {**conditions, **_service(route.service)}


def _service(service: Service) -> dict[str, Any]:
    return {
        "targets": [_target(target) for target in service.targets],
        "balance": service.balance,
        "send-proxy": service.send_proxy,
    }


def _target(target: Target) -> str | dict[str, Any]:
    address = _target_address(target.address)
    if target.tls is None:
        about: dict[str, Any] = {}
    else:
        trusted = list(target.tls.trusted_certs)
        about = {"tls": _present(server_name=target.tls.server_name, trusted_certs=trusted) or True}
    about |= _present(max_connections=target.max_connections)
    if isinstance(target.address, HandoffAddress):
        about |= _present(user=target.address.user)
    return {"address": address, **about} if about else address


def _target_address(address: TargetAddress) -> str:
    named = isinstance(address, UnixAddress | HandoffAddress)
    return str(address) if named else f"tcp://{address}"


def _present(**values: object) -> dict[str, Any]:
    """Keep what is set, under the names that YAML uses."""
    return {name.replace("_", "-"): value for name, value in values.items() if value}


def _duration(seconds: float) -> int | str:
    milliseconds = round(seconds * 1000)
    for unit, size in UNITS.items():
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return milliseconds
