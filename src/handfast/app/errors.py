"""What goes wrong with a session, for an application."""

from __future__ import annotations

from handfast.errors import HandfastError


class SessionError(HandfastError, ConnectionError):
    """The session is at its end, and not in order: the client broke the protocol, or just left.

    What was read until then may be a part of what the client meant to say.
    """
