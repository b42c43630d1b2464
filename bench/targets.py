"""What handfast wants to cost at most, beside its peers or by itself, and whether it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.figures import SUBJECT, Results


@dataclass(frozen=True, slots=True)
class Target:
    """The most that a figure of handfast may be, of which lower is better.

    `most` is a ratio to `peer`, or in the figure's own unit without a peer. With `below`, `most`
    itself is too much.
    """

    scenario: str
    figure: str
    most: float
    peer: str = ""
    at: int | None = None
    below: bool = False

    @property
    def key(self) -> tuple[str, str, int | None]:
        """Whose row this is about."""
        return self.scenario, self.figure, self.at


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a target. `got` is in the target's terms; None when it was not measured."""

    target: Target
    got: float | None

    @property
    def met(self) -> bool | None:
        """Whether it is met; None when that was not measured."""
        if self.got is None:
            return None
        return self.got < self.target.most if self.target.below else self.got <= self.target.most

    @property
    def words(self) -> str:
        """Say it: "met", "missed by 12 %", "not measured"."""
        if self.got is None:
            return "not measured"
        if self.met:
            return "met"
        over = 100 * (self.got / self.target.most - 1)
        return f"missed by {over:.0f} %" if over >= 10 else f"missed by {over:.2g} %"


PEERS: Final = ("nginx", "hitch", "haproxy", "stunnel")

TARGETS: Final = (
    Target("new connection, ECDSA, full", "CPU", 0.85, "stunnel"),
    Target("new connection, ECDSA, full", "CPU", 1.35, "nginx"),
    Target("small request", "CPU", 1.2, "nginx"),
    Target("small request", "CPU", 0.7, "stunnel"),
    *(
        Target(scenario, "CPU", 0.6, "nginx", at=streams)
        for scenario in ("bulk download", "bulk upload")
        for streams in (1, 32)
    ),
    Target("idle connection", "memory", 6.0, at=3000),
    Target("idle connection", "memory", 1 / 6, "nginx", at=3000),
    *(Target("handshake flood", "p99", 1.0, peer, below=True) for peer in PEERS),
    Target("whole installation, two workers", "memory", 60.0),
)


def judge(results: Results) -> list[Verdict]:
    """Compare what was measured with every target."""
    return [Verdict(target, _got(results, target)) for target in TARGETS]


def _got(results: Results, target: Target) -> float | None:
    if target.peer:
        return results.ratio(target.key, target.peer)
    row = results.row(target.key, SUBJECT)
    return None if row is None else row.median
