from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given
from hypothesis import strategies as st

from handfast.errors import PeerError
from handfast.tls.keys import SUITES
from handfast.tls.session import Direction, Peer, Role, Session
from handfast.transport.proxy_protocol import (
    Endpoint,
    Header,
    TlsFacts,
    build_v1,
    build_v2,
    parse,
    tls_facts,
)
from handfast.transport.proxy_protocol.build import MAX_SENT
from handfast.transport.proxy_protocol.parse import MAX_V1, MAX_V2
from harness.pki import issue

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
CLIENT = ("192.0.2.1", 50000)
LISTENER = ("198.51.100.2", 443)
CLIENT6 = ("2001:db8::1", 50000)
LISTENER6 = ("2001:db8::2", 443)
ADDRESSES4 = bytes((192, 0, 2, 1, 198, 51, 100, 2)) + struct.pack("!HH", 50000, 443)

ports = st.integers(0, 65535)
ipv4 = st.tuples(st.ip_addresses(v=4).map(str), ports)
ipv6 = st.tuples(
    st.binary(min_size=16, max_size=16)
    .map(lambda packed: socket.inet_ntop(socket.AF_INET6, packed))
    .filter(lambda ip: not ip.startswith("::ffff:")),
    ports,
)


def v2(family: int, body: bytes, command: int = 0x21) -> bytes:
    return SIGNATURE + bytes((command, family)) + len(body).to_bytes(2, "big") + body


def tlvs(data: bytes) -> dict[int, bytes]:
    """Take a block of TLVs apart."""
    found = {}
    while data:
        end = 3 + int.from_bytes(data[1:3], "big")
        found[data[0]] = data[3:end]
        data = data[end:]
    return found


def tls_part(header: bytes, addresses: int = 12) -> tuple[int, int, dict[int, bytes]]:
    """Give the flags, the result of the verification and the parts of a header's TLV on TLS."""
    value = tlvs(header[16 + addresses :])[0x20]
    return value[0], int.from_bytes(value[1:5], "big"), tlvs(value[5:])


@given(st.one_of(st.tuples(ipv4, ipv4), st.tuples(ipv6, ipv6)), st.binary(max_size=20))
def test_addresses_come_out_of_both_versions_as_they_went_in(
    ends: tuple[Endpoint, Endpoint], rest: bytes
) -> None:
    for header in (build_v1(*ends), build_v2(*ends)):
        assert parse(header + rest) == Header(*ends, len(header))


@given(st.one_of(st.tuples(ipv4, ipv4), st.tuples(ipv6, ipv6)), st.data())
def test_any_first_part_of_a_header_waits_for_the_rest(
    ends: tuple[Endpoint, Endpoint], data: st.DataObject
) -> None:
    header = data.draw(st.sampled_from((build_v1(*ends), build_v2(*ends, authority="a.example"))))

    assert parse(header[: data.draw(st.integers(0, len(header) - 1))]) is None


@given(st.binary(max_size=200), st.sampled_from((b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE)))
@example(b"\x16\x03\x01\x02\x00\x01", b"")
def test_any_bytes_are_a_header_or_too_few_or_a_peer_error(data: bytes, start: bytes) -> None:
    try:
        header = parse(start + data)
    except PeerError:
        return
    assert header is None or 0 < header.length <= len(start + data)


@given(st.binary(max_size=300), st.integers(0, 255), st.sampled_from((0x20, 0x21)))
def test_any_body_of_version_2_is_a_header_or_a_peer_error(
    body: bytes, family: int, command: int
) -> None:
    try:
        header = parse(v2(family, body, command))
    except PeerError:
        return
    assert header is not None
    assert header.length == 16 + len(body)


@given(st.integers(16, 16 + 60), st.integers(0, 7))
def test_a_bit_that_changed_behind_the_head_is_noticed(place: int, bit: int) -> None:
    header = bytearray(build_v2(CLIENT, LISTENER, authority="a" * 40))
    header[place] ^= 1 << bit

    try:
        parsed = parse(bytes(header))
    except PeerError:
        return
    # The one flip that hides is of the checksum's own type: then it is another TLV.
    assert parsed is not None
    assert place == 16 + 12


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"PROXX", b"proxy TCP4", b"\r\n\r\n\0\r\nQUIT\r"],
)
def test_another_protocol_is_refused_at_its_first_different_byte(data: bytes) -> None:
    with pytest.raises(PeerError, match="no PROXY header"):
        parse(data)


@pytest.mark.parametrize(
    "line",
    [
        "PROXY TCP4 192.0.2.01 198.51.100.2 1 2",
        "PROXY TCP4 192.0.2 198.51.100.2 1 2",
        "PROXY TCP4 192.0.2.256 198.51.100.2 1 2",
        "PROXY TCP4 192.0.2.1 2001:db8::1 1 2",
        "PROXY TCP4 2001:db8::1 2001:db8::2 1 2",
        "PROXY TCP6 192.0.2.1 198.51.100.2 1 2",
        "PROXY TCP6 2001:db8:::1 2001:db8::2 1 2",
        "PROXY TCP6 2001:db8::12345 2001:db8::2 1 2",
        "PROXY TCP6 fe80::1%eth0 2001:db8::2 1 2",
        "PROXY TCP4 192.0.2.1 198.51.100.2 01 2",
        "PROXY TCP4 192.0.2.1 198.51.100.2 -1 2",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1 65536",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1 2 ",
        "PROXY TCP4  192.0.2.1 198.51.100.2 1 2",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r",
        "PROXY UDP4 192.0.2.1 198.51.100.2 1 2",
        "PROXY TCP4",
        "PROXY UNKNOWNS",
    ],
)
def test_a_line_that_breaks_the_grammar_is_refused(line: str) -> None:
    with pytest.raises(PeerError):
        parse(line.encode() + b"\r\n")


@pytest.mark.parametrize("line", [b"PROXY UNKNOWN", b"PROXY UNKNOWN ffff::1 \xff rubbish"])
def test_unknown_leaves_the_addresses_of_the_connection(line: bytes) -> None:
    assert parse(line + b"\r\n\x16") == Header(None, None, len(line) + 2)


def test_the_longest_line_is_read_and_a_longer_one_is_not_waited_for() -> None:
    longest = b"PROXY UNKNOWN ".ljust(MAX_V1 - 2, b"f")

    assert parse(longest + b"\r\n") == Header(None, None, MAX_V1)
    assert parse(longest + b"\r") is None
    with pytest.raises(PeerError, match="without CRLF"):
        parse(longest + b"f\r\n")


def test_a_bare_line_feed_does_not_end_a_line() -> None:
    with pytest.raises(PeerError, match="without CRLF"):
        parse(b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n")


def test_a_local_connection_keeps_its_addresses_whatever_its_block_says() -> None:
    header = v2(0xFF, b"anything", command=0x20)

    assert parse(header + b"hello") == Header(None, None, len(header))


@pytest.mark.parametrize(
    ("family", "size"), [(0x00, 5), (0x10, 2), (0x01, 0), (0x12, 12), (0x22, 36), (0x31, 216)]
)
def test_families_without_tcp_addresses_keep_those_of_the_connection(
    family: int, size: int
) -> None:
    assert parse(v2(family, bytes(size))) == Header(None, None, 16 + size)


@pytest.mark.parametrize("family", [0x13, 0x41, 0x40, 0xF1])
def test_a_family_that_is_not_assigned_is_refused(family: int) -> None:
    with pytest.raises(PeerError, match="unknown family"):
        parse(v2(family, bytes(300)))


@pytest.mark.parametrize("command", [0x22, 0x2F, 0x11, 0x01, 0x31])
def test_a_version_or_command_that_is_not_assigned_is_refused(command: int) -> None:
    with pytest.raises(PeerError, match="version and command"):
        parse(v2(0x11, ADDRESSES4, command))


@pytest.mark.parametrize(("family", "size"), [(0x11, 11), (0x21, 35), (0x31, 215)])
def test_a_header_without_room_for_its_addresses_is_refused(family: int, size: int) -> None:
    with pytest.raises(PeerError, match="too short"):
        parse(v2(family, bytes(size)))


def test_a_header_over_the_limit_is_refused_before_it_came() -> None:
    with pytest.raises(PeerError, match="exceeds"):
        parse(v2(0x11, bytes(MAX_V2 - 15))[:16])


@pytest.mark.parametrize("tail", [b"\x04", b"\x04\0", b"\x04\0\x01", b"\x04\0\0\x04\0\x02x"])
def test_a_truncated_tlv_is_refused(tail: bytes) -> None:
    with pytest.raises(PeerError, match="truncated TLV"):
        parse(v2(0x11, ADDRESSES4 + tail))


@pytest.mark.parametrize("value", [b"", b"\0\0\0", b"\0\0\0\0", b"\0\0\0\0\0"])
def test_a_wrong_checksum_is_refused_of_any_length(value: bytes) -> None:
    with pytest.raises(PeerError, match="checksum"):
        parse(v2(0x11, ADDRESSES4 + b"\x03" + len(value).to_bytes(2, "big") + value))


def test_unknown_tlvs_and_no_checksum_are_fine() -> None:
    header = v2(0x11, ADDRESSES4 + b"\xe0\0\x03abc\x04\0\0")

    assert parse(header) == Header(CLIENT, LISTENER, len(header))


def test_an_ipv4_address_in_ipv6_form_is_read_as_ipv4() -> None:
    mapped = ipaddress.ip_address("::ffff:192.0.2.1").packed
    header = v2(0x21, mapped + mapped + struct.pack("!HH", 1, 2))
    line = b"PROXY TCP6 ::ffff:192.0.2.1 ::FFFF:C000:0201 1 2\r\n"

    ends = ("192.0.2.1", 1), ("192.0.2.1", 2)
    assert parse(header) == Header(*ends, len(header))
    assert parse(line) == Header(*ends, len(line))


def test_two_families_meet_in_ipv6() -> None:
    assert build_v1(CLIENT, LISTENER6) == (b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 50000 443\r\n")
    assert parse(build_v2(CLIENT, LISTENER6)) == Header(CLIENT, LISTENER6, 16 + 36 + 7)


def test_an_ipv4_client_of_a_listener_for_both_families_is_written_as_ipv4() -> None:
    assert build_v1(("::ffff:192.0.2.1", 50000), LISTENER) == build_v1(CLIENT, LISTENER)


def test_the_interface_of_a_link_local_address_is_not_sent() -> None:
    assert build_v1(("fe80::1%eth0", 1), ("fe80::2%3", 2)) == b"PROXY TCP6 fe80::1 fe80::2 1 2\r\n"


def test_a_client_without_an_address_is_unknown_and_its_tls_is_told_all_the_same() -> None:
    header = build_v2(None, LISTENER, authority="a.example", tls=TlsFacts(version="TLSv1.3"))

    assert build_v1(None, LISTENER) == b"PROXY UNKNOWN\r\n"
    assert header[12:14] == b"\x20\x00"
    assert parse(header) == Header(None, None, len(header))
    assert tlvs(header[16:])[0x02] == b"a.example"
    assert tls_part(header, addresses=0)[2] == {0x21: b"TLSv1.3"}


def test_a_client_without_a_certificate_is_not_verified() -> None:
    header = build_v2(CLIENT, LISTENER, alpn="h2", tls=TlsFacts(version="TLSv1.2", group="x25519"))

    flags, verify, parts = tls_part(header)
    assert (flags, verify != 0) == (0x01, True)
    assert parts == {0x21: b"TLSv1.2", 0x26: b"x25519"}
    assert tlvs(header[28:])[0x01] == b"h2"


def test_every_fact_has_its_tlv() -> None:
    facts = TlsFacts(
        version="TLSv1.3",
        cipher="TLS_AES_128_GCM_SHA256",
        group="X25519MLKEM768",
        key_algorithm="EC256",
        signature_algorithm="ecdsa-with-SHA256",
        signature_scheme="ecdsa_secp256r1_sha256",
        client_certificate=b"DER",
        common_name="Zoë",
    )

    assert tls_part(build_v2(CLIENT, LISTENER, tls=facts)) == (
        0x07,
        0,
        {
            0x21: b"TLSv1.3",
            0x22: "Zoë".encode(),
            0x23: b"TLS_AES_128_GCM_SHA256",
            0x24: b"ecdsa-with-SHA256",
            0x25: b"EC256",
            0x26: b"X25519MLKEM768",
            0x27: b"ecdsa_secp256r1_sha256",
            0x28: b"DER",
        },
    )


def test_a_certificate_of_an_earlier_connection_is_of_the_session_only() -> None:
    facts = TlsFacts(version="TLSv1.3", client_certificate=b"DER", resumed=True)

    assert tls_part(build_v2(CLIENT, LISTENER, tls=facts))[0] == 0x01 | 0x04


@pytest.mark.parametrize("spare", [0, 1])
def test_a_certificate_is_left_out_where_the_header_would_be_too_long(spare: int) -> None:
    without = len(build_v2(CLIENT, LISTENER, tls=TlsFacts(version="TLSv1.3")))
    certificate = bytes(MAX_SENT - without - 3 + 1 - spare)
    header = build_v2(
        CLIENT, LISTENER, tls=TlsFacts(version="TLSv1.3", client_certificate=certificate)
    )

    assert (0x28 in tls_part(header)[2]) == bool(spare)
    assert len(header) == (MAX_SENT if spare else without)


@given(st.lists(st.text(max_size=600), min_size=7, max_size=7), st.integers(0, 100_000))
def test_no_text_or_certificate_makes_a_header_that_is_too_long(
    texts: list[str], size: int
) -> None:
    alpn, authority, cipher, group, key, signature, name = texts
    facts = TlsFacts(
        version="TLSv1.3",
        cipher=cipher,
        group=group,
        key_algorithm=key,
        signature_algorithm=signature,
        client_certificate=bytes(size),
        common_name=name,
    )
    header = build_v2(CLIENT6, LISTENER6, alpn=alpn, authority=authority, tls=facts)

    assert len(header) <= MAX_SENT
    assert parse(header) == Header(CLIENT6, LISTENER6, len(header))


def test_a_text_that_is_no_unicode_does_not_end_the_connection() -> None:
    header = build_v2(CLIENT, LISTENER, authority="a\udcffb")

    assert tlvs(header[28:])[0x02] == b"a?b"


@pytest.mark.parametrize(
    ("code", "version", "name"),
    [
        (0x1302, b"TLSv1.3", b"TLS_AES_256_GCM_SHA384"),
        (0xC02F, b"TLSv1.2", b"ECDHE-RSA-AES128-GCM-SHA256"),
        (0xCCA9, b"TLSv1.2", b"ECDHE-ECDSA-CHACHA20-POLY1305"),
    ],
)
def test_the_facts_of_a_session_name_its_suite_and_client(
    code: int, version: bytes, name: bytes
) -> None:
    client_der = issue("a client", client=True).certificate.public_bytes(Encoding.DER)
    secret = Direction(bytearray(SUITES[code].hash_length))
    peer = Peer(group="x25519", certificates=(client_der,), key_algorithm="EC256")

    facts = tls_facts(Session(Role.SERVER, code, secret, secret, peer))

    parts = tls_part(build_v2(CLIENT, LISTENER, tls=facts))[2]
    assert (parts[0x21], parts[0x23], parts[0x22]) == (version, name, b"a client")
    assert (parts[0x25], parts[0x26], parts[0x28]) == (b"EC256", b"x25519", client_der)


def test_a_certificate_that_cannot_be_read_has_no_common_name() -> None:
    secret = Direction(bytearray(32))
    session = Session(Role.SERVER, 0x1301, secret, secret, Peer(certificates=(b"not DER",)))

    assert not tls_facts(session).common_name
