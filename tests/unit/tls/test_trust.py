from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from handfast.tls.trust import Trust
from harness.pki import DAY, NOW, Identity, issue

ROOT = issue("root", ca=True)
MIDDLE = issue("middle", ROOT, ca=True)
SERVER = issue("server.example", MIDDLE)


def der(*identities: Identity) -> tuple[bytes, ...]:
    return tuple(each.certificate.public_bytes(Encoding.DER) for each in identities)


@pytest.mark.parametrize("anchor", [ROOT, MIDDLE, SERVER], ids=["root", "middle", "leaf"])
def test_what_is_trusted_is_trusted_as_it_stands(anchor: Identity) -> None:
    assert Trust(der(anchor)).problem(der(SERVER, MIDDLE)) == ""


def test_a_root_in_the_chain_and_another_order_do_no_harm() -> None:
    assert Trust(der(ROOT)).problem(der(SERVER, ROOT, MIDDLE)) == ""


def test_a_self_signed_leaf_can_be_trusted_and_is_not_by_itself() -> None:
    alone = issue("alone.example")

    assert Trust(der(alone)).problem(der(alone)) == ""
    assert Trust(der(ROOT)).problem(der(alone)).startswith("its certificate is not trusted: ")


@pytest.mark.parametrize(
    ("chain", "reason"),
    [
        (der(SERVER), "unable to get local issuer certificate"),
        (der(issue("server.example", issue("root", ca=True))), "not trusted"),
        (der(issue("old.example", MIDDLE, not_after=NOW - DAY / 2), MIDDLE), "expired"),
        (der(issue("soon.example", MIDDLE, not_before=NOW + DAY), MIDDLE), "not yet valid"),
        (der(issue("low.example", SERVER), SERVER, MIDDLE), "not trusted"),
        (der(issue("a client", MIDDLE, client=True), MIDDLE), "is not for servers"),
        ((), "showed no certificate"),
        ((b"garbage",), "cannot be read"),
        ((*der(SERVER), b"garbage"), "cannot be read"),
    ],
    ids=["missing link", "other root", "expired", "early", "issued by a leaf", "client's", "none",
         "garbage", "garbage behind"],
)  # fmt: skip
def test_a_chain_that_is_not_trusted_is_refused_with_its_reason(
    chain: tuple[bytes, ...], reason: str
) -> None:
    assert reason in Trust(der(ROOT)).problem(chain)


def test_without_anchors_nobody_is_trusted() -> None:
    assert Trust(()).problem(der(SERVER, MIDDLE, ROOT))


@settings(max_examples=300)
@given(data=st.data())
def test_a_certificate_that_was_changed_is_never_trusted(data: st.DataObject) -> None:
    leaf = bytearray(der(SERVER)[0])
    place = data.draw(st.integers(0, len(leaf) - 1))
    leaf[place] ^= data.draw(st.integers(1, 255))

    assert Trust(der(ROOT)).problem((bytes(leaf), *der(MIDDLE)))
