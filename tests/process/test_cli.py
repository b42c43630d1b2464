"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import handfast
from harness.processes import Watched, run_handfast

if TYPE_CHECKING:
    from conftest import Certificates, Serve
    from harness.backends import Backend

HEAVY = ("OpenSSL", "cryptography", "yaml", "asyncio")


def configuration(chain: Path, key: Path, extra: str = "") -> str:
    return (
        "listeners:\n"
        "  - listen: 127.0.0.1:0\n"
        "    target: tcp://127.0.0.1:9\n"
        "    certificates:\n"
        f"      - chain: {chain}\n"
        f"        key: {key}\n"
        f"{extra}"
    )


@pytest.fixture
def file(tmp_path: Path, certificates: Certificates) -> Path:
    """A configuration in order."""
    path = tmp_path / "handfast.yaml"
    path.write_text(configuration(certificates.chain, certificates.key))
    return path


def check(file: Path, text: str | None = None, **environment: str) -> tuple[int, str, str]:
    """Give the exit code, standard output and standard error of `handfast check`."""
    if text is not None:
        file.write_text(text)
    done = run_handfast("check", "-c", str(file), environment=environment)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_a_good_configuration_is_ok(file: Path) -> None:
    code, output, errors = check(file)

    assert (code, errors) == (0, "")
    assert output.endswith(f"{file}: ok\n")
    assert "127.0.0.1:0 -> 127.0.0.1:9  CN=localhost, expires 20" in output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nworkers: -1\n", "line 1: nworkers: expected an integer"),
        ("\n\nloglevl: INFO\n", "line 3: loglevl: unknown key; did you mean `loglevel`?"),
        ("loglevel: LOUD\n", "line 1: loglevel: expected one of"),
        ("idle-timeout: soon\n", "line 1: idle-timeout: expected milliseconds"),
        ("nworkers: 1\nnworkers: 2\n", "line 2: nworkers:"),
        ("control: 5\n", "line 1: control: expected"),
    ],
)
def test_a_mistake_is_named_by_path_and_line(
    file: Path, certificates: Certificates, text: str, expected: str
) -> None:
    code, _, errors = check(file, text + configuration(certificates.chain, certificates.key))

    assert code == 2
    assert errors.startswith(f"handfast: {file}: {expected}"), errors


def test_every_mistake_is_named_not_only_the_first(file: Path) -> None:
    text = (
        "nworkers: many\n"
        "listeners:\n"
        "  - listen: nowhere\n"
        "    target: http://127.0.0.1\n"
        "    certificates:\n"
        "      - chain: c.pem\n"
    )

    code, _, errors = check(file, text)

    assert code == 2
    for place in ("line 1: nworkers", "line 3: listeners[0].listen",
                  "line 4: listeners[0].target",
                  "listeners[0].certificates[0].key"):  # fmt: skip
        assert place in errors, errors


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "listen"),
        (b"nworkers: 1\nlogfile: \xff\n", "line 2: byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"listeners: [\n", "line "),
        (b"a: &x 1\nb: *x\n", "line "),
    ],
)
def test_what_is_not_a_configuration_at_all_is_refused(
    file: Path, data: bytes, expected: str
) -> None:
    file.write_bytes(data)

    code, _, errors = check(file)

    assert code == 2
    assert f"handfast: {file}: " in errors
    assert expected in errors


def test_effective_prints_a_configuration_that_is_accepted_and_effective_already(
    file: Path,
) -> None:
    first = run_handfast("check", "-c", str(file), "--effective")
    file.write_text(first.stdout)
    second = run_handfast("check", "-c", str(file), "--effective")

    assert first.returncode == second.returncode == 0
    assert "idle-timeout:" in first.stdout
    assert second.stdout == first.stdout


def test_effective_shows_no_password(
    file: Path, tmp_path: Path, certificates: Certificates
) -> None:
    chain, key = certificates.server.write(tmp_path, "encrypted", "a secret of mine")
    file.write_text(configuration(chain, key, "        key-password: a secret of mine\n"))

    done = run_handfast("check", "-c", str(file), "--effective")

    assert done.returncode == 0, done.stderr
    assert "a secret of mine" not in done.stdout
    assert "key-password: '***'" in done.stdout


def test_a_key_of_another_certificate_is_refused(file: Path, certificates: Certificates) -> None:
    code, _, errors = check(file, configuration(certificates.chain, certificates.rsa_key))

    assert code == 2
    where = "line 6: listeners[0].certificates[0].key"
    assert f"{file}: {where}: {certificates.rsa_key}: the key does not match" in errors


@pytest.mark.parametrize("what", ["chain", "key"])
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    file: Path, tmp_path: Path, certificates: Certificates, what: str
) -> None:
    missing, directory = tmp_path / "missing.pem", tmp_path

    def with_file(path: Path) -> str:
        if what == "chain":
            return configuration(path, certificates.key)
        return configuration(certificates.chain, path)

    code, _, errors = check(file, with_file(missing))
    assert code == 2
    assert f"{missing}: cannot be read: No such file or directory" in errors

    code, _, errors = check(file, with_file(directory))
    assert code == 2
    assert f"{directory}: cannot be read: Is a directory" in errors


def test_a_missing_configuration_file_is_named(tmp_path: Path) -> None:
    code, _, errors = check(tmp_path / "none.yaml")

    assert code == 2
    assert errors == f"handfast: {tmp_path}/none.yaml: cannot be read: No such file or directory\n"


def test_an_encrypted_key_takes_its_password_inline_from_a_file_or_from_the_environment(
    file: Path, tmp_path: Path, certificates: Certificates
) -> None:
    chain, key = certificates.server.write(tmp_path, "encrypted", "sesame")
    (tmp_path / "password").write_text("sesame\n")
    sources = ("key-password: sesame", "key-password-file: password", "key-password-env: SESAME")

    for source in sources:
        text = configuration(chain, key, f"        {source}\n")
        code, _, errors = check(file, text, SESAME="sesame")
        assert code == 0, errors


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", "the key is encrypted; give its password"),
        ("key-password: simsalabim", "the password is wrong or the file damaged"),
        ("key-password-env: SESAME", "SESAME: this environment variable is not set"),
        ("key-password-file: nowhere", "cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_or_missing_password_is_refused_and_not_shown(
    file: Path, tmp_path: Path, certificates: Certificates, source: str, expected: str
) -> None:
    chain, key = certificates.server.write(tmp_path, "encrypted", "sesame")

    code, _, errors = check(file, configuration(chain, key, f"        {source}\n"))

    assert code == 2
    assert expected in errors
    assert "simsalabim" not in errors


def test_a_chain_out_of_order_is_refused_with_the_place(
    file: Path, tmp_path: Path, certificates: Certificates
) -> None:
    chain = tmp_path / "chain.pem"
    chain.write_bytes(certificates.server.pem() + certificates.root.pem())

    code, _, errors = check(file, configuration(chain, certificates.key))

    assert code == 2
    assert "certificate 1 (CN=localhost) was not issued by certificate 2 (CN=test root)" in errors
    assert "put the leaf first" in errors


def test_a_key_file_without_a_key_is_refused(
    file: Path, tmp_path: Path, certificates: Certificates
) -> None:
    key = tmp_path / "key.pem"
    key.write_text("no key at all\n")

    code, _, errors = check(file, configuration(certificates.chain, key))

    assert code == 2
    assert "the private key cannot be read; is it a PEM key?" in errors


def test_serve_refuses_what_check_refuses_with_the_same_words(
    file: Path, certificates: Certificates
) -> None:
    text = configuration(certificates.chain, certificates.rsa_key)
    file.write_text(f"control: {file.parent}/c.sock\n{text}")

    done = run_handfast("serve", "-c", str(file))

    assert done.returncode == 2
    assert "the key does not match the first certificate" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (file.parent / "c.sock").exists()


def test_version_is_that_of_the_package() -> None:
    for arguments in (("version",), ("--version",)):
        done = run_handfast(*arguments)
        assert (done.returncode, done.stdout) == (0, f"handfast {handfast.__version__}\n")


def test_help_needs_no_heavy_import() -> None:
    program = (
        "import sys\n"
        "import handfast.cli\n"
        "handfast.cli._parser().format_help()\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True
    )

    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "COMMAND"),
        (("sirve",), "invalid choice: 'sirve'"),
        (("serve", "--confi", "x"), "unrecognized arguments"),
        (("status", "extra"), "unrecognized arguments: extra"),
        (("check",), "check needs a file"),
        (("serve", "-c", "x.yaml", "--listen", ":1"), "either -c FILE, or --listen"),
        (("serve", "--target", "tcp://127.0.0.1:9"), "--cert"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_why(arguments: tuple[str, ...], expected: str) -> None:
    done = run_handfast(*arguments)

    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_every_command_and_ends_with_0() -> None:
    done = run_handfast("--help")

    assert done.returncode == 0
    for command in ("serve", "check", "status", "stop", "version"):
        assert f"    {command} " in done.stdout


def test_status_shows_processes_and_counters_to_people_and_programs(
    serve: Serve, backend: Backend
) -> None:
    running = serve(backend.target, nworkers=1)

    text = running.command("status")
    status = json.loads(running.command("status", "--json").stdout)

    assert text.returncode == 0
    assert f"pid {running.process.pid}, serving" in text.stdout
    assert f"127.0.0.1:{running.port()} -> " in text.stdout
    names = [each["name"] for each in status["processes"]]
    assert names == ["supervisor", "template", "acceptor-1", "relay-1"]
    assert all(f"  {name} " in text.stdout for name in names)
    assert (status["state"], status["pid"]) == ("serving", running.process.pid)
    assert status["config"] == str(running.config)
    assert status["totals"]["accepted"] == 0


def test_stop_waits_for_the_end_and_ends_with_0(serve: Serve, backend: Backend) -> None:
    running = serve(backend.target, nworkers=1)
    watched = Watched(*running.pids().values())

    done = running.command("stop")

    assert (done.returncode, done.stderr) == (0, "")
    watched.wait(1)
    assert running.process.wait(1) == 0


@pytest.mark.parametrize("command", ["status", "stop"])
def test_a_command_to_nobody_fails_and_says_so(file: Path, command: str) -> None:
    done = run_handfast(command, "-c", str(file))

    assert done.returncode == 1
    assert done.stderr.startswith("handfast: no handfast is running with this configuration")


def test_a_second_instance_of_a_configuration_is_refused_and_the_first_goes_on(
    serve: Serve, backend: Backend
) -> None:
    running = serve(backend.target, nworkers=1)

    second = run_handfast("serve", "-c", str(running.config))

    assert second.returncode == 1
    assert "handfast is running with this configuration already" in second.stderr
    assert "handfast stop" in second.stderr
    assert running.status()["state"] == "serving"
