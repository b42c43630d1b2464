"""What the kernel can do is held against what the configuration wants of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from handfast import config
from handfast.errors import ConfigError
from handfast.observe.events import Level
from handfast.observe.log import Log
from handfast.process import kernel_tls
from handfast.process.kernel_tls import kernel_support, statistics
from handfast.tls.keys import SUITES
from handfast.transport.kernel import Support
from harness.instance import parse_line

ALL = frozenset(SUITES)
ONLY_12 = frozenset(code for code in SUITES if code > 0x1303)


def configured(mode: str, **tls: Any) -> config.Config:
    text = f"""
listeners:
  - listen: 127.0.0.1:443
    name: web
    kernel-tls: {mode}
    tls: {tls or {"versions": ["1.2", "1.3"]}}
    target: tcp://127.0.0.1:1
    certificates: [{{chain: chain.pem, key: key.pem}}]
"""
    return config.parse(text)


def ask(
    monkeypatch: pytest.MonkeyPatch, parsed: config.Config, found: Support
) -> tuple[Support, list[dict[str, str]]]:
    monkeypatch.setattr(kernel_tls, "probe", lambda: found)
    log = os.memfd_create("log")
    try:
        support = kernel_support(parsed, _log(log))
        lines = os.pread(log, 1 << 16, 0).decode().splitlines()
    finally:
        os.close(log)
    return support, [parse_line(line) for line in lines]


def _log(descriptor: int) -> Log:
    return Log(os.dup(descriptor), Level.INFO, process_type="master")


def test_a_kernel_that_nobody_asks_for_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_tls, "probe", lambda: pytest.fail("it was tried"))
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        log = Log(os.dup(nowhere.fileno()), Level.INFO, process_type="master")

        assert kernel_support(configured("off"), log) == Support()


def test_auto_takes_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Support(tx=ONLY_12, rx=frozenset())

    support, _ = ask(monkeypatch, configured("auto"), found)

    assert support == found


def test_on_takes_a_kernel_with_a_cipher_for_each_version(monkeypatch: pytest.MonkeyPatch) -> None:
    few = frozenset({0x1301, 0xC02B})

    support, _ = ask(monkeypatch, configured("on"), Support(tx=few, rx=ALL))

    assert support.tx == few


@pytest.mark.parametrize(
    ("found", "claim"),
    [
        (Support(missing="No such file or directory"), "modprobe tls"),
        (Support(tx=ONLY_12, rx=ALL), "no cipher of it for TLS 1.3; leave 1.3 out of `versions`"),
        (Support(tx=ALL, rx=ONLY_12), "no cipher of it for TLS 1.3"),
    ],
)
def test_on_refuses_a_kernel_without(
    monkeypatch: pytest.MonkeyPatch, found: Support, claim: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        ask(monkeypatch, configured("on"), found)

    assert "listener web: kernel-tls is on, but this kernel has no" in str(caught.value)
    assert claim in str(caught.value)


def test_on_looks_at_what_the_listener_negotiates(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = Support(tx=ALL - {0x1303}, rx=ALL)
    chacha = {"versions": ["1.3"], "ciphersuites": ["TLS_CHACHA20_POLY1305_SHA256"]}

    with pytest.raises(ConfigError, match=r"no cipher of it for TLS 1\.3"):
        ask(monkeypatch, configured("on", **chacha), lacking)
    assert ask(monkeypatch, configured("on"), lacking)[0] == lacking


def test_the_kernels_own_counters_are_read_and_anything_else_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "tls_stat"
    file.write_text("TlsCurrTxSw                     \t3\nTlsRxRekeyOk\t12\nnonsense\nTlsX -1\n")
    monkeypatch.setattr(kernel_tls, "_STATISTICS", file)
    assert statistics() == {"TlsCurrTxSw": 3, "TlsRxRekeyOk": 12}

    file.unlink()
    assert statistics() == {}
