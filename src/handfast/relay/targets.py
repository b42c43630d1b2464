"""Which target gets a connection: balancing, limits, and health learnt from the connections.

A target that cannot be connected to is down: for one second, then for two, and so on up to thirty.
When the time is over, one connection tries it (half-open), and if that succeeds it is up. While
others are up it gets no other; when all are down, the one that failed longest ago is tried, so
that no client is refused without a try.

Every relay knows what it has seen itself. A limit of connections is therefore split: each relay
has `max(1, limit // relays)` of it. All together never pass the limit, unless it is smaller than
the number of relays: then it is one connection for each relay.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from itertools import chain
from typing import Final, TypeAlias

import msgspec

from handfast.config import Service, Target, TargetAddress, TargetTls
from handfast.errors import BackendError, HandfastError
from handfast.observe import events

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0

Identity: TypeAlias = tuple[TargetAddress, TargetTls | None]
_encoder: Final = msgspec.msgpack.Encoder()
_identities: Final[msgspec.msgpack.Decoder[Identity]] = msgspec.msgpack.Decoder(Identity)

Clock: TypeAlias = Callable[[], float]
Emit: TypeAlias = Callable[[events.Event], None]


class TargetState:
    """What a relay knows of one target: its health, and its own connections to it (`active`).

    From `Pool.pick` to `release` a connection is counted. In between comes `succeeded`, once the
    target has answered and, where it speaks TLS, has proved itself; or `failed`.
    """

    __slots__ = (
        "_clock",
        "_emit",
        "_failures",
        "_trial",
        "active",
        "address",
        "failed_at",
        "tls",
        "until",
    )

    def __init__(self, identity: Identity, clock: Clock, emit: Emit) -> None:
        self.address, self.tls = identity
        self.active = 0
        self.failed_at = 0.0
        self.until = 0.0  # when it may be tried again
        self._clock = clock
        self._emit = emit
        self._failures = 0  # times in a row that its pause was over and it failed again
        self._trial = False

    @property
    def up(self) -> bool:
        """Tell whether the last that was heard of it is good."""
        return not self._failures

    def ready(self) -> bool:
        """Tell whether a connection may go here: it is up, or it is time for a trial."""
        return not self._failures or (not self._trial and self._clock() >= self.until)

    def take(self) -> None:
        """Count a connection; where the target is down, it is the trial."""
        self.active += 1
        self._trial = self._failures > 0

    def release(self) -> None:
        """Count a connection no more, however it ended. Once for each `pick`."""
        self.active -= 1
        self._trial = False

    def succeeded(self) -> None:
        """Note that a connection is in order."""
        self._trial = False
        if self._failures:
            self._failures = 0
            self._emit(events.Target(state="up", address=str(self.address)))

    def failed(self, error: BackendError) -> None:
        """Note that a connection could not be made; `release` is still to come.

        Of many that fail together, only the first makes the pause longer.
        """
        now = self.failed_at = self._clock()
        if self._failures and now < self.until:
            return
        self._failures += 1
        self.until = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures - 1, 10))
        if self._failures == 1:
            self._emit(
                events.Target(
                    state="down",
                    address=str(self.address),
                    error_msg=error.reason,
                    error_desc=error.description,
                )
            )


class Pool:
    """The targets of one service, and whose turn it is."""

    def __init__(self, service: Service, members: tuple[tuple[TargetState, int], ...]) -> None:
        self.service = service
        self._members = members  # each with its share of connections; 0 is no limit
        self._turn = 0
        self._least = service.balance == "least-connections"

    def __len__(self) -> int:
        """Give the number of targets."""
        return len(self._members)

    def pick(self, tried: Collection[TargetState] = ()) -> TargetState | None:
        """Pick a target that is none of `tried` and take a connection to it, to be released.

        None when there is no such target below its limit.
        """
        best: TargetState | None = None
        is_ready = False
        for index in self._round():
            target, share = self._members[index]
            if (share and target.active >= share) or target in tried:
                continue
            if target.ready():
                if not is_ready or best is None or target.active < best.active:
                    best, is_ready, turn = target, True, index
                if not self._least:
                    break
            elif not is_ready and (best is None or target.failed_at < best.failed_at):
                best, turn = target, index
        if best is not None:
            self._turn = turn + 1
            best.take()
        return best

    def _round(self) -> Iterable[int]:
        """Give all indices, beginning with the one whose turn it is."""
        return chain(range(self._turn, len(self._members)), range(self._turn))


class Targets:
    """All targets of one relay, whatever services they belong to.

    A target is the same wherever its address and its TLS are the same: what is known of it
    survives a reload, and its connections are counted together.
    """

    def __init__(self, clock: Clock, emit: Emit) -> None:
        self._clock = clock
        self._emit = emit
        self._relays = 1
        self._known: dict[Identity, TargetState] = {}
        self._pools: dict[Service, Pool] = {}

    def configure(self, services: Iterable[Service], relays: int) -> None:
        """Go by these services from now on, sharing their limits with so many relays in all.

        Connections to targets that are gone may still be released.
        """
        self._relays = relays
        services = set(services)
        self._pools = {service: self._make(service) for service in services}
        wanted = {_identity(target) for service in services for target in service.targets}
        self._known = {
            identity: state
            for identity, state in self._known.items()
            if identity in wanted or state.active
        }

    def pool(self, service: Service) -> Pool:
        """Give the pool of one of the configured services, the same until the next `configure`."""
        return self._pools[service]

    def hold(self, identity: Identity) -> TargetState:
        """Count a connection that another relay had to a target, to be released.

        The target may be none of those that are configured.
        """
        state = self._known.get(identity)
        if state is None:
            state = self._known[identity] = TargetState(identity, self._clock, self._emit)
        state.active += 1
        return state

    def states(self) -> Iterable[TargetState]:
        """Give what is known of each target."""
        return self._known.values()

    def _make(self, service: Service) -> Pool:
        return Pool(service, tuple((self._state(t), self._share(t)) for t in service.targets))

    def _state(self, target: Target) -> TargetState:
        identity = _identity(target)
        if identity not in self._known:
            self._known[identity] = TargetState(identity, self._clock, self._emit)
        return self._known[identity]

    def _share(self, target: Target) -> int:
        limit = target.max_connections
        return max(1, limit // self._relays) if limit else 0


def encode_identity(address: TargetAddress, tls: TargetTls | None) -> bytes:
    """Encode what a target is known by, for another relay."""
    return _encoder.encode((address, tls))


def decode_identity(data: bytes) -> Identity:
    """Read what `encode_identity` wrote; raises HandfastError for anything else."""
    try:
        return _identities.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HandfastError(f"malformed target: {error}") from None


def _identity(target: Target) -> Identity:
    return target.address, target.tls
