#!/usr/bin/env python3
"""Follow the Dockerfile without Docker, and run what comes out of it as a container would be run.

    sudo packaging/run_steps.py [--etc DIRECTORY] [--seconds N]

Each stage is an overlay over this machine's own file system, which stands in for the base image, so
what is checked are the steps and the way the image is run, not the packages of the base image. RUN
runs by chroot in it, COPY copies from the context, minus what .dockerignore leaves out, or from
another stage. Then ENTRYPOINT and CMD run as process 1 of a PID namespace, as USER, without
capabilities, until HEALTHCHECK is content; STOPSIGNAL ends it. DIRECTORY becomes /etc/handfast.

Prints JSON: what the image says of itself, what the last health check printed, and the exit code.
Needs root, Linux with overlayfs, and unshare and setpriv of util-linux. Leaves nothing behind.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONTEXT = HERE.parent
_IN_NAMESPACE = "RUN_STEPS_IN_NAMESPACE"


def parse(text: str) -> list[tuple[str, str]]:
    """Give the instructions of a Dockerfile with their arguments, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    found = []
    for line in joined.splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            found.append((name.upper(), " ".join(rest.split())))
    return found


class Ignored:
    """What .dockerignore leaves out of the context; the last pattern that fits decides."""

    def __init__(self, text: str) -> None:
        lines = (line.strip() for line in text.splitlines())
        self._patterns = [line for line in lines if line and not line.startswith("#")]

    def __call__(self, path: str) -> bool:
        """Tell whether a path, relative to the context, is left out."""
        out = False
        parts = path.split("/")
        above = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
        for pattern in self._patterns:
            bare = pattern.removeprefix("!")
            anywhere = bare.startswith("**/")
            names = parts if anywhere else above
            if any(fnmatch.fnmatchcase(each, bare.removeprefix("**/")) for each in names):
                out = not pattern.startswith("!")
        return out


class Stage:
    """A file system that grows by the steps of one stage, and what it says of the image."""

    def __init__(self, directory: Path) -> None:
        upper, work, self.root = (directory / name for name in ("upper", "work", "root"))
        for each in (upper, work, self.root):
            each.mkdir(parents=True)
        layers = f"lowerdir=/,upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, self.root], check=True)
        for name in ("proc", "dev"):
            subprocess.run(["mount", "--rbind", f"/{name}", self.root / name], check=True)
        for name in ("tmp", "run"):  # empty, as in an image
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", self.root / name], check=True)
        self.environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
        self.directory = Path("/")
        self.image: dict[str, str] = {}
        _stand_in_for_python(self.root)

    def run(self, command: str) -> None:
        """RUN: by a shell. The package client's own settings come from outside."""
        settings = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
        subprocess.run(
            [
                "chroot",
                self.root,
                "/bin/sh",
                "-c",
                f"cd {shlex.quote(str(self.directory))}; {command}",
            ],
            check=True,
            env=settings | self.environment,
            stdout=sys.stderr,
        )

    def copy(self, arguments: str, stages: dict[str, Stage], ignored: Ignored) -> None:
        """COPY: from the context, or from another stage."""
        words = shlex.split(arguments)
        source = CONTEXT
        if words[0].startswith("--from="):
            source = stages[words.pop(0).removeprefix("--from=")].root
        *given, last = words
        target = _below(self.root, self.directory / last)
        for name in given:
            below = _below(source, Path(name))
            into = target / below.name if last.endswith("/") and below.is_file() else target
            _copy(below, into, source, ignored if source == CONTEXT else Ignored(""))

    def follow(self, name: str, rest: str) -> None:
        """Do what any other instruction says."""
        match name:
            case "ENV":
                for word in shlex.split(rest):
                    key, _, value = word.partition("=")
                    path = self.environment["PATH"]
                    self.environment[key] = value.replace("$PATH", path)
            case "WORKDIR":
                self.directory /= rest
                _below(self.root, self.directory).mkdir(parents=True, exist_ok=True)
            case "USER" | "EXPOSE" | "STOPSIGNAL" | "ENTRYPOINT" | "CMD" | "HEALTHCHECK":
                self.image[name] = rest
            case _:
                sys.exit(f"this script does not know {name}; teach it, or do without")


def _below(root: Path, path: Path) -> Path:
    return root / str(path).lstrip("/")


def _stand_in_for_python(root: Path) -> None:
    """Make `python` this one, wherever it is, for any user: the base image has it."""
    prefix = Path(sys.base_prefix)
    for each in (prefix, *prefix.parents):
        at = _below(root, each)
        at.chmod(at.stat().st_mode | 0o111 | (0o444 if each == prefix else 0))
    # Not a link: a virtual environment would look for the library beside that.
    command = root / "usr/local/bin/python"
    command.unlink(missing_ok=True)
    command.write_text(f'#!/bin/sh\nexec {prefix}/bin/python3 "$@"\n')
    command.chmod(0o755)


def _copy(path: Path, target: Path, base: Path, ignored: Ignored) -> None:
    if ignored(str(path.relative_to(base))):
        return
    if path.is_dir() and not path.is_symlink():
        target.mkdir(parents=True, exist_ok=True)
        for each in path.iterdir():
            _copy(each, target / each.name, base, ignored)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target, follow_symlinks=False)


def build(directory: Path) -> Stage:
    """Follow the whole Dockerfile; give the last stage."""
    ignored = Ignored((HERE / "Dockerfile.dockerignore").read_text())
    stages: dict[str, Stage] = {}
    stage = None
    for name, rest in parse((HERE / "Dockerfile").read_text()):
        sys.stderr.write(f"{name} {rest}\n")
        if name == "ARG":
            continue
        if name == "FROM":
            stage = Stage(directory / str(len(stages)))
            stages[rest.partition(" AS ")[2] or str(len(stages))] = stage
        elif stage is None:
            sys.exit(f"{name} before the first FROM")
        elif name == "RUN":
            stage.run(rest)
        elif name == "COPY":
            stage.copy(rest, stages, ignored)
        else:
            stage.follow(name, rest)
    if stage is None:
        sys.exit("a Dockerfile without FROM")
    return stage


class Container:
    """The image, running."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._user = stage.image["USER"].replace(":", " ").split()
        command = json.loads(stage.image["ENTRYPOINT"]) + json.loads(stage.image["CMD"])
        self.process = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", *self._inside(command)],
            env=stage.environment,
            stdout=sys.stderr,
        )

    def _inside(self, command: list[str]) -> list[str]:
        uid, gid = self._user
        return [
            *("chroot", str(self._stage.root)),
            *("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"),
            *("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--", *command),
        ]

    def health(self) -> tuple[bool, object]:
        """Do what HEALTHCHECK says, once, with --json; tell whether all is well, and why not."""
        command = json.loads(self._stage.image["HEALTHCHECK"].partition("CMD ")[2])
        done = subprocess.run(
            self._inside([*command, "--json"]),
            env=self._stage.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return False, done.stderr
        status = json.loads(done.stdout)
        return status["state"] == "serving", status

    def first(self) -> int:
        """Give the pid, out here, of what is process 1 in there."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return int(children.split()[0])


def run(stage: Stage, etc: Path, seconds: float) -> dict[str, object]:
    """Start, wait until healthy, stop; give what was seen."""
    mount = stage.root / "etc/handfast"
    mount.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", "-o", "ro", etc, mount], check=True)
    container = Container(stage)
    deadline = time.monotonic() + seconds
    healthy, status = container.health()
    while not healthy and container.process.poll() is None and time.monotonic() < deadline:
        healthy, status = container.health()
    seen: dict[str, object] = {"image": stage.image, "healthy": healthy, "status": status}
    if container.process.poll() is None:
        first = container.first()
        credentials = Path(f"/proc/{first}/status").read_text()
        seen["pids"] = re.findall(r"NSpid:\s+\d+\s+(\d+)", credentials)
        seen["uids"] = re.findall(r"Uid:\s+(\d+)\s+(\d+)", credentials)
        os.kill(first, getattr(signal, stage.image["STOPSIGNAL"]))
    try:
        seen["exit"] = container.process.wait(timeout=max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        container.process.kill()  # and with it whatever is inside
        container.process.wait()
        seen["exit"] = "it did not stop"
    return seen


def main() -> int:
    """Go to a mount namespace of our own first: what is mounted there goes when this ends."""
    parser = argparse.ArgumentParser(description="Follow the Dockerfile without Docker.")
    parser.add_argument("--etc", type=Path, default=HERE / "compose" / "etc")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="to become healthy, and to stop"
    )
    options = parser.parse_args()
    if os.environ.pop(_IN_NAMESPACE, None) is None:
        unshare = ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv]
        os.environ[_IN_NAMESPACE] = "1"
        return subprocess.run(unshare, check=False).returncode
    with tempfile.TemporaryDirectory(prefix="handfast-image-") as directory:
        # Not on the file system that is below the overlays.
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory], check=True)
        try:
            json.dump(
                run(build(Path(directory)), options.etc, options.seconds), sys.stdout, indent=2
            )
        finally:
            subprocess.run(["umount", "--recursive", "--lazy", directory], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
