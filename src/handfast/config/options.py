"""A Config from the options of the command line, checked by the same parsers as YAML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from handfast.config.dialects import COMMON, assemble
from handfast.config.document import Kind, Value
from handfast.config.listeners import listener
from handfast.config.schema import Config
from handfast.config.shape import Shape
from handfast.errors import ConfigError, Problem

_GIVE: Final = {
    "--listen": "an address such as 0.0.0.0:443",
    "--target": "where to forward to, such as tcp://127.0.0.1:80",
    "--cert": "a PEM file with the certificate chain, leaf first",
    "--key": "the PEM file of the private key",
}
_OPTIONS: Final = Shape(fields={"common": Shape(fields=COMMON).read, "listener": listener})


def from_options(  # noqa: PLR0913  one argument for each option of the command
    listen: str | None,
    target: str | None,
    cert: str | None,
    key: str | None,
    *,
    key_password_file: str | None = None,
    key_password_env: str | None = None,
    trusted_certs: Sequence[str] = (),
    logfile: str | None = None,
    loglevel: str | None = None,
    control: str | None = None,
    cores: int = 1,
) -> Config:
    """Make a Config with one listener; raises ConfigError that names the options at fault.

    `cert` is a chain, leaf first. `trusted_certs` makes client certificates required. File names
    stay relative to the working directory.
    """
    certificate = _mapping(
        chain=_required("--cert", cert),
        key=_required("--key", key),
        key_password_file=_text("--key-password-file", key_password_file),
        key_password_env=_text("--key-password-env", key_password_env),
    )
    entry = _mapping(
        listen=_required("--listen", listen),
        target=_required("--target", target),
        certificates=Value(kind=Kind.LIST, items=(certificate,)),
        client_auth=_client_auth(trusted_certs),
    )
    common = _mapping(
        logfile=_text("--logfile", logfile),
        loglevel=_text("--loglevel", loglevel),
        control=_text("--control", control),
    )
    given = {"--listen": listen, "--target": target, "--cert": cert, "--key": key}
    problems = [Problem(f"is missing; give {_GIVE[o]}", o) for o in given if given[o] is None]
    found: dict[str, Any] = {}
    try:
        found = _OPTIONS.read(_mapping(common=common, listener=entry))
    except ConfigError as error:
        problems.extend(error.problems)
    if problems:
        raise ConfigError(*problems)
    return assemble(found["common"], (found["listener"],), cores)


def _text(option: str, text: str | None) -> Value | None:
    return None if text is None else Value(kind=Kind.TEXT, path=option, text=text)


def _required(option: str, text: str | None) -> Value:
    """Take an option; a missing one stands as refused, its problem being reported once."""
    return _text(option, text) or Value(kind=Kind.BROKEN, path=option)


def _client_auth(files: Sequence[str]) -> Value | None:
    option = "--trusted-certs"
    items = tuple(Value(kind=Kind.TEXT, path=option, text=file) for file in files)
    if not items:
        return None
    mode = Value(kind=Kind.TEXT, text="require")
    return _mapping(mode=mode, trusted_certs=Value(kind=Kind.LIST, path=option, items=items))


def _mapping(**values: Value | None) -> Value:
    entries = {name.replace("_", "-"): value for name, value in values.items() if value is not None}
    return Value(kind=Kind.MAPPING, entries=entries)
