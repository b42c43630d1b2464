from __future__ import annotations

import datetime
import stat
from pathlib import Path

import pytest

from handfast.errors import HandfastError
from handfast.process.development import prepare
from handfast.tls.certificates import Credential, check_chain, check_key, parse_chain, parse_key
from handfast.tls.openssl import OpenSSLEngine
from harness.pki import Identity, issue
from unit.tls.engines import Client, established


def load(directory: Path) -> Credential:
    files = prepare(directory)
    chain = parse_chain(files.chain.read_bytes(), "chain")
    key = parse_key(files.key.read_bytes(), None, "key")
    check_key(chain[0], key, "chain", "key")
    check_chain((*chain, *parse_chain(files.ca.read_bytes(), "ca")), "chain")
    return Credential(chain, key)


def test_a_client_that_trusts_the_ca_accepts_the_certificate(tmp_path: Path) -> None:
    credential = load(tmp_path)
    ca = parse_chain((tmp_path / "ca.pem").read_bytes(), "ca")[0]

    client = Client(trusted=Identity(ca, credential.key))

    established(OpenSSLEngine([credential]), client)

    assert (client.done, client.error) == (True, "")


def test_what_was_made_is_kept(tmp_path: Path) -> None:
    first = load(tmp_path)
    second = load(tmp_path)

    assert first.chain == second.chain


def test_keys_are_for_the_owner_alone(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "state"
    prepare(directory)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.glob("*-key.pem")}

    assert modes == {"ca-key.pem": 0o600, "localhost-key.pem": 0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_an_expiring_certificate_is_made_anew_by_the_same_ca(tmp_path: Path) -> None:
    files = prepare(tmp_path)
    ca = files.ca.read_bytes()
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2)
    files.chain.write_bytes(issue("localhost", not_after=soon).pem())

    credential = load(tmp_path)

    assert files.ca.read_bytes() == ca
    assert credential.chain[0].not_valid_after_utc > soon


def test_a_missing_key_is_made_anew_with_its_certificate(tmp_path: Path) -> None:
    first = load(tmp_path)
    prepare(tmp_path).key.unlink()

    assert load(tmp_path).chain != first.chain


def test_an_interrupted_write_does_not_stop_the_next(tmp_path: Path) -> None:
    tmp_path.joinpath("ca-key.new").write_bytes(b"half")
    tmp_path.joinpath("localhost-key.new").write_bytes(b"half")

    load(tmp_path)

    assert not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize("name", ["ca.pem", "localhost.pem"])
def test_a_damaged_file_names_its_directory_and_the_remedy(tmp_path: Path, name: str) -> None:
    prepare(tmp_path)
    (tmp_path / name).write_bytes(b"damaged")

    with pytest.raises(HandfastError, match="delete that directory"):
        prepare(tmp_path)


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)

    with pytest.raises(HandfastError, match="chmod 700"):
        prepare(tmp_path)
