"""Notice that files have changed, once they have come to rest.

By looking once a second rather than by inotify. What people watch here is replaced in every way
there is: Kubernetes swaps a symbolic link two directories up, certbot re-points links, editors
rename, network file systems and overlays tell nothing at all. An inotify watch is on an inode, so
it would have to follow every directory and link on the way, and be set anew after each change,
with a gap. Looking is a stat(2) per file and second, which follows links as opening does, and a
certificate that is used a second late harms nobody.

A change is a difference in device, inode, size, or the times of modification and of status; a file
that comes or goes is one as well. It is told when one look finds the same as the one before, so
that a certificate and its key that are written one after the other make one reload.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from handfast.config import Certificate, Config
from handfast.transport.loop import Loop, Timer

LOOK_SECONDS: Final = 1.0

_Look: TypeAlias = tuple[int, int, int, int, int] | None


class Watcher:
    """Calls `changed` when files have changed and then been left alone for a second."""

    def __init__(
        self, loop: Loop, changed: Callable[[], object], seconds: float = LOOK_SECONDS
    ) -> None:
        self._loop = loop
        self._changed = changed
        self._seconds = seconds
        self._seen: dict[str, _Look] = {}
        self._restless = False
        self._timer: Timer | None = None

    def watch(self, paths: Iterable[str]) -> None:
        """Watch these files from now on, and no others; call it before they are read.

        What was known of a file that was watched before is kept: no change falls in between.
        """
        self._seen = {
            path: self._seen[path] if path in self._seen else _look(path) for path in paths
        }
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look_again)

    def close(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_again(self) -> None:
        self._timer = self._loop.call_later(self._seconds, self._look_again)
        seen = {path: _look(path) for path in self._seen}
        moved, self._seen = seen != self._seen, seen
        at_rest, self._restless = self._restless and not moved, moved
        if at_rest:
            self._changed()


def _look(path: str) -> _Look:
    try:
        found = os.stat(path)  # noqa: PTH116 - text in, and once a second for each file
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def files_of(config: Config) -> tuple[str, ...]:
    """Give the files that a configuration names and that a reload reads, each once."""
    found: dict[str, None] = {}
    for listener in config.listeners:
        for certificate in listener.certificates:
            found |= dict.fromkeys(_files_of_certificate(certificate))
        auth = listener.client_auth
        found |= dict.fromkeys((*auth.trusted_certs, *auth.crls))
        services = [route.service for route in listener.routes]
        services += [listener.service] if listener.service is not None else []
        for service in services:
            for target in service.targets:
                if target.tls is not None:
                    found |= dict.fromkeys(target.tls.trusted_certs)
    return tuple(found)


def _files_of_certificate(certificate: Certificate) -> list[str]:
    named = (
        certificate.chain,
        certificate.cert,
        *certificate.cacerts,
        certificate.key,
        certificate.key_password_file,
    )
    return [path for path in named if path is not None]
