"""A Config as YAML in the full dialect, with every default written out."""

from __future__ import annotations

from typing import Any

import yaml

from handfast.config.scalars import UNITS
from handfast.config.schema import Certificate, Config, Listener, UnixAddress


def effective(config: Config) -> str:
    """Write a configuration after defaults.

    `parse` gives an equal Config back from it, with no `base`: file names are written as they
    were resolved. An inline password is the exception, being shown as ***; passwords from a file
    or an environment variable are only named, so they come back.
    """
    timeouts = config.timeouts
    document = {
        "nworkers": config.nworkers,
        "logfile": config.logfile or "-",
        "loglevel": config.loglevel,
        **_present(control=config.control),
        "handshake-timeout": _duration(timeouts.handshake),
        "connect-timeout": _duration(timeouts.connect),
        "idle-timeout": _duration(timeouts.idle),
        "half-closed-timeout": _duration(timeouts.half_closed),
        "drain-timeout": _duration(timeouts.drain),
        "listeners": [_listener(listener) for listener in config.listeners],
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _listener(listener: Listener) -> dict[str, Any]:
    target = str(listener.target)
    auth = listener.client_auth
    return {
        "name": listener.name,
        "listen": str(listener.address),
        "target": target if isinstance(listener.target, UnixAddress) else f"tcp://{target}",
        "certificates": [_certificate(certificate) for certificate in listener.certificates],
        "client-auth": {"mode": auth.mode, **_present(trusted_certs=list(auth.trusted_certs))},
        "alpn": list(listener.alpn),
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


def _present(**values: object) -> dict[str, Any]:
    """Keep what is set, under the names that YAML uses."""
    return {name.replace("_", "-"): value for name, value in values.items() if value}


def _duration(seconds: float) -> int | str:
    milliseconds = round(seconds * 1000)
    for unit, size in UNITS.items():
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return milliseconds
