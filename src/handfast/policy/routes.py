"""Which route of a listener takes a client: by the name that it asks for, and by ALPN.

The first route that fits is taken, and the order is the configuration's. Whether a client is
passed through is settled before its TLS is terminated, by its hello: then the first that fits has
to be a passthrough route. After a handshake those are no longer in question.
"""

from __future__ import annotations

from handfast.config import Route


class Routes:
    """The routes of one listener, by name, so that a thousand cost no more than one."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self._routes = routes
        self._by_name: dict[str, list[int]] = {}
        for index, route in enumerate(routes):
            for pattern in route.sni or ("",):
                self._by_name.setdefault(_canonical(pattern), []).append(index)

    def find(self, sni: str, alpn: str, *, passthrough: bool) -> Route | None:
        """Give the route of a client; None when there is none, or when it is of the other kind.

        `sni` is the name as the client sent it, empty for none. `alpn` is the protocol that was
        negotiated; with `passthrough`, asked by the hello, the one that would be.
        """
        if not self._routes:
            return None
        for index in sorted(self._candidates(_canonical(sni))):
            route = self._routes[index]
            if route.alpn and alpn not in route.alpn:
                continue
            if passthrough:
                return route if route.passthrough else None
            if not route.passthrough:
                return route
        return None

    def _candidates(self, name: str) -> set[int]:
        found = set(self._by_name.get("", ()))
        if name:
            first, dot, rest = name.partition(".")
            found.update(self._by_name.get(name, ()))
            if first and dot:
                found.update(self._by_name.get(f"*.{rest}", ()))
        return found


def _canonical(name: str) -> str:
    """Fold what makes no difference in a DNS name: case, and the dot of the root at its end."""
    return name.lower().removesuffix(".")
