from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from conftest import Certificates
from handfast.config import Certificate, ClientAuth, Config, Listener, TcpAddress
from handfast.config.schema import Secret
from handfast.errors import ConfigError
from handfast.process.credentials import events, load_all, ordered
from harness.pki import DAY, NOW, Identity, issue


def config(certificate: Certificate, *more: Certificate, trusted: tuple[str, ...] = ()) -> Config:
    auth = ClientAuth(mode="require" if trusted else "none", trusted_certs=trusted)
    listeners = tuple(
        Listener(
            name=str(number),
            address=TcpAddress(host="127.0.0.1", port=0),
            certificates=(each,),
            client_auth=auth,
            target=TcpAddress(host="127.0.0.1", port=9),
        )
        for number, each in enumerate((certificate, *more))
    )
    return Config(nworkers=1, listeners=listeners)


def files(identity: Identity, directory: Path, password: str | None = None) -> Certificate:
    chain, key = identity.write(directory, "mine", password)
    return Certificate(chain=str(chain), key=str(key))


def test_a_chain_and_its_key_are_loaded(certificates: Certificates) -> None:
    certificate = Certificate(chain=str(certificates.chain), key=str(certificates.key))

    (loaded,) = load_all(config(certificate, trusted=(str(certificates.ca),)))

    assert loaded.credential.chain == certificates.server.chain
    assert loaded.trusted == (certificates.root.certificate,)
    assert [(each.cert_role, each.error_msg) for each in events(loaded, NOW)] == [
        ("leaf", ""), ("server_ca", ""), ("client_ca", ""),
    ]  # fmt: skip


def test_an_expired_certificate_still_serves_and_its_event_tells(tmp_path: Path) -> None:
    expired = issue("old.example", not_before=NOW - 9 * DAY, not_after=NOW - DAY)

    (loaded,) = load_all(config(files(expired, tmp_path)))

    assert events(loaded, NOW)[0].error_msg.startswith("expired on")


def test_ca_certificates_go_behind_the_leaf_whatever_their_order(
    certificates: Certificates,
) -> None:
    leaf, intermediate = certificates.server.chain
    root = certificates.root.certificate

    assert ordered((leaf,), (root, intermediate)) == (leaf, intermediate, root)
    assert ordered((leaf,), (intermediate, root)) == (leaf, intermediate, root)
    assert ordered((leaf,), ()) == (leaf,)


@pytest.mark.parametrize("source", ["inline", "file", "environment"])
def test_the_password_comes_from_where_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    certificate = files(issue("host"), tmp_path, "open sesame")
    (tmp_path / "password").write_text("open sesame\n")
    monkeypatch.setenv("KEY_PASSWORD", "open sesame")
    said = {
        "inline": {"key_password": Secret("open sesame")},
        "file": {"key_password_file": str(tmp_path / "password")},
        "environment": {"key_password_env": "KEY_PASSWORD"},
    }[source]

    assert load_all(config(msgspec.structs.replace(certificate, **said)))  # type: ignore[arg-type]  # one of three


def test_a_variable_that_is_not_set_is_named(tmp_path: Path) -> None:
    certificate = files(issue("host"), tmp_path, "open sesame")

    with pytest.raises(ConfigError, match="HANDFAST_NO_SUCH: this environment variable is not set"):
        load_all(config(msgspec.structs.replace(certificate, key_password_env="HANDFAST_NO_SUCH")))


def test_all_mistakes_of_all_listeners_are_told_at_once(
    tmp_path: Path, certificates: Certificates
) -> None:
    missing = Certificate(chain="/no/such/chain.pem", key=str(certificates.key))
    mismatch = Certificate(chain=str(certificates.chain), key=str(certificates.rsa_key))

    with pytest.raises(ConfigError) as caught:
        load_all(config(missing, mismatch, trusted=("/no/such/ca.pem",)))

    text = str(caught.value)
    assert "/no/such/chain.pem: cannot be read" in text
    assert text.count("/no/such/ca.pem: cannot be read") == 2
    assert f"{certificates.rsa_key}: the key does not match" in text
    assert {problem.path for problem in caught.value.problems} == {"listeners[0]", "listeners[1]"}
