from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handfast.observe import events
from handfast.observe.events import Auth, CertLoaded, Event, Level, Proxy, Stopped, SystemFault
from handfast.observe.logfmt import LINE_MAX, VALUE_MAX, Stamp, Writer, text
from harness.logfmt import parse

NASTY = 'a "quoted" \\ value\nwith=lines\r\t\x00\x1b[31m\x7f\x85\u2028\u2029é🦊'
# Text as it can arrive: any character, but surrogates only as PEP 383 makes them.
ARRIVED = st.text(st.characters(exclude_categories=["Cs"]), max_size=400) | st.binary(
    max_size=400
).map(text)
EVENTS = [kind for kind in vars(events).values() if isinstance(kind, type)]
KINDS = [kind for kind in EVENTS if issubclass(kind, Event) and kind is not Event]


def writer(worker_id: str = "") -> Writer:
    """Make the writer of a worker, or of the supervisor."""
    return Writer(process_type="worker" if worker_id else "master", pid=42, worker_id=worker_id)


def writer_of(kind: type[Event]) -> Writer:
    """Make the writer with the longest head for an event: only the supervisor tells of workers."""
    return writer("" if kind is events.Worker else "acceptor-1000")


def read(event: Event) -> dict[str, str]:
    return parse(writer().line(event, 0.0))


def handshake(**fields: Any) -> Auth:
    return Auth(subevent="handshake", outcome="denied", **fields)


def filled(kind: type[Event], filler: str) -> Event:
    """Make an event in which everything that can be text is `filler`, and the rest is large."""
    fields = {
        field.name: filler if "str" in str(field.type) or "Literal" in str(field.type) else 2**62
        for field in msgspec.structs.fields(kind)
    }
    return kind(**fields)


def test_base_fields_come_first_and_in_order() -> None:
    line = writer("acceptor-1").line(handshake(sni="example.com"), time.time())
    assert list(parse(line)) == [
        *("timestamp", "service", "process_type", "worker_id", "pid", "level", "event"),
        *("subevent", "outcome", "sni"),
    ]


def test_an_event_without_fields_is_its_base() -> None:
    assert (
        writer()
        .line(Stopped(), 0.0)
        .endswith(b" service=handfast process_type=master pid=42 level=INFO event=stopped\n")
    )


def test_absent_and_empty_fields_are_left_out_and_zero_is_kept() -> None:
    fields = read(Proxy(subevent="client_disconnect", client_ip="", bytes_in=0, sni="a b"))
    assert "client_ip" not in fields
    assert "bytes_out" not in fields
    assert fields["bytes_in"] == "0"


@pytest.mark.parametrize("duration", [1.5, 0.0, 1e16, 1e-7, 12345678.9, 5e-324])
def test_every_way_of_writing_spells_numbers_alike(duration: float) -> None:
    ways = [
        read(handshake(sni=sni, resumed=False, client_port=443, duration_ms=duration))
        for sni in ("plain.example", "needs quotes", "needs\nescapes")
    ]
    assert {(each["resumed"], each["client_port"]) for each in ways} == {("false", "443")}
    assert len({each["duration_ms"] for each in ways}) == 1
    assert float(ways[0]["duration_ms"]) == duration


@pytest.mark.parametrize("address", ["::", "::1", ":", "fe80::1%eth0", "2001:db8::"])
def test_an_address_with_colons_is_written_bare(address: str) -> None:
    line = writer().line(handshake(client_ip=address, client_port=1), 0.0)
    assert f" client_ip={address} client_port=1\n".encode() in line


@pytest.mark.parametrize(
    "sent",
    [NASTY, "{}", "a,b", "null", '"', "\\", "=", " ", '":"', '","', "true", "\udcff", ":", "::,a:"],
)
@pytest.mark.parametrize("beside", ["h2", ":", ": ,", '{"a":"b c"}', "::1", "\0"])
def test_a_nasty_value_is_read_back(sent: str, beside: str) -> None:
    fields = read(handshake(client_ip=beside, sni=sent, alpn=beside))
    assert (fields["client_ip"], fields["sni"], fields["alpn"]) == (beside, sent, beside)


def test_bytes_that_are_not_utf8_are_read_back() -> None:
    sent = b"\xff\xfe\x00caf\xc3\xa9"
    assert read(handshake(sni=text(sent)))["sni"].encode("utf-8", "surrogateescape") == sent


def test_a_line_is_ascii() -> None:
    assert writer().line(handshake(sni=NASTY), 0.0).isascii()


@pytest.mark.parametrize("letter", ["a", " ", "🦊", "\x00"])
def test_a_long_value_is_cut_and_says_by_how_much(letter: str) -> None:
    fields = read(handshake(sni=letter * 10_000))
    assert fields["sni"] == letter * VALUE_MAX + "…+9744"
    assert fields["truncated"] == str(VALUE_MAX)


def test_a_forged_mark_is_told_from_a_real_one() -> None:
    assert "truncated" not in read(handshake(sni="short…+9744"))


@pytest.mark.parametrize("size", [VALUE_MAX - 1, VALUE_MAX])
def test_a_value_at_the_limit_is_whole(size: int) -> None:
    fields = read(handshake(sni="a" * size))
    assert fields["sni"] == "a" * size
    assert "truncated" not in fields


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("letter", ["a", "🦊", "\x00"])
def test_the_worst_line_of_every_event_fits(kind: type[Event], letter: str) -> None:
    line = writer_of(kind).line(filled(kind, letter * 5000), time.time())
    assert len(line) <= LINE_MAX
    assert parse(line)["event"] == kind.NAME


def test_many_long_values_are_all_cut_to_the_limit_that_is_named() -> None:
    fields = read(filled(Auth, "é" * 300))
    limit = int(fields["truncated"])
    assert limit < VALUE_MAX
    assert fields["sni"] == "é" * limit + f"…+{300 - limit}"


@given(ARRIVED, ARRIVED, st.none() | st.integers(), st.none() | st.floats())
def test_any_fields_are_read_back(
    sni: str, alpn: str, port: int | None, duration: float | None
) -> None:
    event = handshake(sni=sni, alpn=alpn, client_port=port, duration_ms=duration)
    fields = read(event)
    limit = int(fields.get("truncated", VALUE_MAX))
    for name, sent in (("sni", sni), ("alpn", alpn)):
        kept = sent if len(sent) <= limit else f"{sent[:limit]}…+{len(sent) - limit}"
        assert fields.get(name, "") == kept
    assert fields.get("client_port") == (None if port is None else str(port))
    assert repr(float(fields.get("duration_ms", "0"))) == repr(
        0.0 if duration is None else duration
    )


@given(st.text(st.characters(), max_size=2000), st.sampled_from(KINDS))
def test_no_input_yields_two_lines(sent: str, kind: type[Event]) -> None:
    line = writer_of(kind).line(filled(kind, sent), 0.0)
    assert line.count(b"\n") == 1
    assert len(line) <= LINE_MAX
    assert parse(line)["event"] == kind.NAME


@pytest.mark.parametrize(
    ("zone", "stamp"),
    [
        ("UTC0", b"timestamp=2025-12-13T12:33:11.250+00:00"),
        ("AEDT-11", b"timestamp=2025-12-13T23:33:11.250+11:00"),
        ("NST3:30", b"timestamp=2025-12-13T09:03:11.250-03:30"),
    ],
)
def test_a_timestamp_has_milliseconds_and_the_local_offset(
    zone: str, stamp: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert Stamp().at(1765629191.25) == stamp
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_clock_that_goes_back_is_followed() -> None:
    stamp = Stamp()
    first = stamp.at(1000.5)
    stamp.at(2000.0)
    assert stamp.at(1000.5) == first


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (SystemFault("no"), Level.ERROR),
        (SystemFault("no", fatal=True), Level.FATAL),
        (events.Worker("spawned", "relay-1", 7), Level.INFO),
        (events.Worker("dead", "relay-1", 7, "signal 11"), Level.ERROR),
        (Proxy(subevent="server_connect"), Level.INFO),
        (Proxy(subevent="server_connect", error_msg="refused"), Level.WARN),
        (Proxy(subevent="client_disconnect", error_msg="reset"), Level.INFO),
        (handshake(), Level.INFO),
        (Auth(subevent="handshake", outcome="failed"), Level.INFO),
    ],
)
def test_what_a_peer_can_cause_is_info_and_a_fault_is_more(event: Event, level: Level) -> None:
    assert event.level is level
    assert read(event)["level"] == level.name


def test_an_expired_certificate_is_a_warning() -> None:
    fields: dict[str, Any] = dict.fromkeys(CertLoaded.__struct_fields__, "x")
    assert CertLoaded(**fields).level is Level.WARN
    assert CertLoaded(**fields | {"error_msg": ""}).level is Level.INFO
