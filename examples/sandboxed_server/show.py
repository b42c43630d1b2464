"""The show: who comes on when, and what is to be seen at its end."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

import admin
import client
import middle
from handfast.config import Isolation
from handfast.process import development, isolation
from handfast.tls.certificates import parse_key
from line import Ready, Recorded, Said, Sent, Tried, Try
from memory import disguise
from reach import MEANT
from scene import PATIENCE, Scene
from stage import Stage

THE_THREE: Final = ("admin", "acceptor", "server")


class Play(Struct, frozen=True):
    """What has been seen. `missing` is what this system cannot confine by."""

    clear: bool
    secret: str
    arrived: bool
    overheard: bool
    pids: dict[str, int]
    users: dict[str, int]
    said: list[tuple[str, str]]
    reached: dict[str, dict[str, bool]]
    refusals: dict[str, dict[str, str]]
    recording: dict[str, bytes]
    missing: tuple[str, ...]

    def surprises(self) -> list[tuple[str, str]]:
        """Give the attempts, and whose, that did not come out as they are meant to."""
        return [
            (attempt, name)
            for attempt, by in self.reached.items()
            for name, reached in by.items()
            if reached != (name in MEANT.get(attempt, ()))
        ]

    def succeeded(self) -> bool:
        """Tell whether all was as it is meant to be, as far as this system can confine."""
        unfenced = any(each.startswith("seccomp") for each in self.missing)
        odd = [each for each in self.surprises() if not unfenced or not self._is_let_through(each)]
        return self.arrived and self.overheard == self.clear and not odd

    def _is_let_through(self, surprise: tuple[str, str]) -> bool:
        attempt, name = surprise
        return attempt not in MEANT and self.reached[attempt][name]


@contextmanager
def _scene(*, clear: bool, port: int = 0) -> Iterator[Scene]:
    """Set up: a directory with a certificate, and an empty one to be root of."""
    with tempfile.TemporaryDirectory(prefix="handfast-demonstration-") as name:
        directory = Path(name)
        (directory / "empty").mkdir(mode=0o755)
        files = development.files_in(directory / "certificate")
        wanted = Isolation(chroot=str(directory / "empty") if os.geteuid() == 0 else "")
        yield Scene(files, isolation.prepare(wanted), clear, port)


def _open(stage: Stage, scene: Scene) -> int:
    """Bring the three processes of the server on; give the port."""
    directory = scene.files.key.parent
    stage.prepare("certificate", lambda: development.prepare(directory))
    stage.enter(THE_THREE, lambda *lines: admin.main(scene, *lines))
    stage.wait_for(Said, *THE_THREE)  # once they are confined
    return stage.wait_for(Ready, "admin")[0].port


def play(*, clear: bool) -> Play:
    """Play all of it; raises HandfastError when somebody fails."""
    with _scene(clear=clear) as scene, Stage(3 * PATIENCE) as stage:
        port = _open(stage, scene)
        stage.enter(("middle",), lambda line: middle.main(line, port))
        between = stage.wait_for(Ready, "middle")[0].port
        stage.enter(("client",), lambda line: client.main(scene, line, between))
        sent = stage.wait_for(Sent, "client")[0]
        # Nobody is forked from here on: the key and the secret are known to this process now.
        tried = _try_everything(stage, scene, port, sent.secret)
        stage.dismiss("client")
        recorded = stage.wait_for(Recorded, "middle")[0]
        stage.dismiss("middle", *THE_THREE)
        stage.empty()
        return _seen(stage, scene, sent, recorded, tried)


def _try_everything(stage: Stage, scene: Scene, port: int, secret: bytes) -> dict[str, Tried]:
    needles = {
        "key": tuple(map(disguise, _forms_of_key(scene.files.key))),
        "secret": (disguise(secret),),
    }
    for name in THE_THREE:
        other = stage.pids["server" if name == "admin" else "admin"]
        stage.order(name, Try(str(scene.files.key), port, other, needles))
    return dict(zip(THE_THREE, stage.wait_for(Tried, *THE_THREE), strict=True))


def _forms_of_key(file: Path) -> Iterator[bytes]:
    """Give how a private key lies in memory: as a number, either end first, and as PEM."""
    pem = file.read_bytes()
    numbers = parse_key(pem, None, file.name).private_numbers()
    value: int = numbers.private_value  # type: ignore[union-attr]  # it is ECDSA's
    yield from (value.to_bytes(32, "big"), value.to_bytes(32, "little"))
    yield from pem.splitlines()[1:3]


def _seen(
    stage: Stage, scene: Scene, sent: Sent, recorded: Recorded, tried: dict[str, Tried]
) -> Play:
    attempts = tried[THE_THREE[0]].outcomes
    return Play(
        clear=scene.clear,
        secret=sent.secret.decode(),
        arrived=sent.arrived,
        overheard=sent.secret in recorded.to_server + recorded.to_client,
        pids=stage.pids,
        users={name: each.uid for name, each in tried.items()},
        said=stage.said(),
        reached={a: {n: each.outcomes[a].reached for n, each in tried.items()} for a in attempts},
        refusals={a: {n: each.outcomes[a].refusal for n, each in tried.items()} for a in attempts},
        recording={"to_server": recorded.to_server, "to_client": recorded.to_client},
        missing=scene.identity.missing,
    )


def serve(*, clear: bool, port: int) -> None:
    """Have the three processes serve whoever connects, until a signal comes."""
    with _scene(clear=clear, port=port) as scene, Stage(PATIENCE) as stage:
        port = _open(stage, scene)
        how = f"nc localhost {port}" if clear else (
            f"openssl s_client -quiet -connect localhost:{port} -CAfile {scene.files.ca}"
        )  # fmt: skip
        print(f"Say something to it, from another terminal:\n  {how}", flush=True)
        told = 0
        while True:
            for name, report in stage.heard[told:]:
                if isinstance(report.message, Said):
                    print(f"{name} {report.pid}: {report.message.text}", flush=True)
            told = len(stage.heard)
            stage.hear()


def as_json(seen: Play) -> dict[str, object]:
    """Give all of it for programs; bytes are in base64."""
    recording = {name: base64.b64encode(data).decode() for name, data in seen.recording.items()}
    fields = {name: getattr(seen, name) for name in seen.__struct_fields__}
    return {**fields, "recording": recording, "succeeded": seen.succeeded()}
