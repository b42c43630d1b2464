"""Errors, by who has to act on them.

Everything that handfast raises on purpose is one of these; anything else is a bug. The text says
what happened and, where there is one, the remedy. It never holds a secret.
"""

from __future__ import annotations

from dataclasses import dataclass


class HandfastError(Exception):
    """What all of handfast's own errors have in common."""


class PeerError(HandfastError):
    """A TLS peer broke the protocol or was refused; the peer has to act.

    `alert` is the TLS AlertDescription (RFC 8446, section 6) to send to the peer, or None when
    nothing can or should be sent: it is gone, or it was the one that sent a fatal alert.
    """

    def __init__(self, reason: str, *, alert: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.alert = alert


class BackendError(HandfastError):
    """A target refused, failed or timed out; whoever runs the target has to act.

    `ours` is for want of something on this side: it says nothing about the target.
    """

    def __init__(self, reason: str, *, description: str = "", ours: bool = False) -> None:
        super().__init__(f"{reason}: {description}" if description else reason)
        self.reason = reason
        self.description = description
        self.ours = ours


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a configuration.

    `path` names the value as it is written in YAML (`listeners[0].target`), `line` counts from 1
    and is 0 when the mistake has no line of its own.
    """

    message: str
    path: str = ""
    line: int = 0

    def __str__(self) -> str:
        """Give `line N: path: message`, without the parts that are not known."""
        where = [f"line {self.line}"] if self.line else []
        return ": ".join([*where, *([self.path] if self.path else []), self.message])


class ConfigError(HandfastError):
    """The configuration, or a file that it names, is wrong; whoever wrote it has to act."""

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = tuple(p if isinstance(p, Problem) else Problem(p) for p in problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class HandfastBug(HandfastError):  # noqa: N818 - it is what it says
    """handfast broke a rule of its own; we have to act."""
