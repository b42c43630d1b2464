"""`watch: true`: what changes on disk is taken up by itself, in every way that files change."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from features.world import World, auth_of, greeting, seen
from harness.clients import connect, echoes
from harness.front import write
from harness.instance import wait_for
from harness.pki import Identity, issue, revocation_list

if TYPE_CHECKING:
    from conftest import Certificates
    from features.conftest import Shown, Start, Targets


def test_a_configuration_that_is_renamed_into_place_is_taken_up_by_itself(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.says("old")}, watch=True)

    front.listener["target"] = targets.says("new")
    front.save()

    assert front.wait("reload")["outcome"] == "ok"
    assert greeting(front, context) == "new"


@pytest.mark.parametrize("how", ["rename", "in place"])
def test_a_renewed_certificate_is_taken_up_by_itself(
    start: Start, targets: Targets, certificates: Certificates, shown: Shown,
    context: ssl.SSLContext, how: str,
) -> None:  # fmt: skip
    files = shown(certificates.server)
    front = start({"target": targets.echo(), "certificates": [files]}, watch=True)
    fresh = issue("localhost", certificates.intermediate)

    for path, data in ((files["chain"], fresh.chain_pem()), (files["key"], fresh.key_pem())):
        if how == "rename":
            new = Path(f"{path}.new")
            new.write_bytes(data)
            new.replace(path)
        else:
            Path(path).write_bytes(data)

    assert front.wait("reload")["outcome"] == "ok"
    assert seen(front, context) == fresh.certificate.public_bytes(Encoding.DER)
    assert len(front.events("reload")) == 1  # one for both files


def test_a_secret_of_kubernetes_is_taken_up_when_its_link_is_swapped(
    start: Start, targets: Targets, certificates: Certificates, tmp_path: Path,
    context: ssl.SSLContext,
) -> None:  # fmt: skip
    # As the kubelet does: files are links into ..data, which is a link to a directory.
    mount = tmp_path / "secret"
    mount.mkdir()

    def put(identity: Identity, stamp: str) -> None:
        directory = mount / f"..{stamp}"
        directory.mkdir()
        (directory / "tls.crt").write_bytes(identity.chain_pem())
        (directory / "tls.key").write_bytes(identity.key_pem())
        (mount / "..data_tmp").symlink_to(directory.name)
        os.rename(mount / "..data_tmp", mount / "..data")  # noqa: PTH104 - the system call

    put(certificates.server, "2026_01")
    for name in ("tls.crt", "tls.key"):
        (mount / name).symlink_to(f"..data/{name}")
    files = {"chain": str(mount / "tls.crt"), "key": str(mount / "tls.key")}
    front = start({"target": targets.echo(), "certificates": [files]}, watch=True)

    fresh = issue("localhost", certificates.intermediate)
    put(fresh, "2026_02")

    assert front.wait("reload")["outcome"] == "ok"
    assert seen(front, context) == fresh.certificate.public_bytes(Encoding.DER)


def test_a_new_crl_ends_whom_it_revokes_by_itself(
    start: Start, targets: Targets, world: World
) -> None:
    crl = world.file("list.pem", revocation_list(world.root))
    auth = auth_of(world, crls=[crl])
    front = start({"target": targets.echo(), "client_auth": auth}, watch=True)
    with connect(front.port(), world.shows(world.bob)) as bob:
        assert echoes(bob)

        world.file("list.pem", revocation_list(world.root, world.bob))

        with pytest.raises(ssl.SSLError, match=r"(?i)revoked"):
            bob.recv(1)


def test_a_mistake_while_watching_is_refused_and_the_mended_file_taken_up(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.says("old")}, watch=True)
    front.config.write_text("listeners: [")
    assert front.wait("reload")["outcome"] == "refused"
    assert greeting(front, context) == "old"

    front.listener["target"] = targets.says("new")
    write(front.config, front.settings)

    front.wait("reload", outcome="ok")
    assert greeting(front, context) == "new"


def test_watching_ends_and_begins_with_a_reload(
    start: Start, targets: Targets, context: ssl.SSLContext
) -> None:
    front = start({"target": targets.says("old")})
    front.settings["watch"] = True
    assert front.reload().returncode == 0

    front.listener["target"] = targets.says("new")
    front.save()

    wait_for(lambda: greeting(front, context) == "new", "the change is noticed")
