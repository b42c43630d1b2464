"""Whether the kernel can do what the configuration wants of it: asked once for each generation.

That is before privileges are given up, for the kernel loads its module for those who have them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from handfast.config import Config, Listener
from handfast.errors import ConfigError, Problem
from handfast.observe.events import KernelTls
from handfast.observe.log import Log
from handfast.tls.keys import SUITES, TLS12, TLS13, Suite
from handfast.transport.kernel import Support
from handfast.transport.probe import probe

_STATISTICS: Final = Path("/proc/net/tls_stat")
_COUNTER: Final = re.compile(r"^(Tls\w{1,60})\s+(\d{1,19})$", re.MULTILINE)
_VERSIONS: Final = {"1.2": TLS12, "1.3": TLS13}
_VERSION_NAMES: Final = {number: name for name, number in _VERSIONS.items()}


def kernel_support(config: Config, log: Log) -> Support:
    """Find out what the kernel can do, and log it; nothing, where no listener wants any of it.

    Raises ConfigError where a listener has `kernel-tls: on` and the kernel cannot at all.
    """
    if all(each.kernel_tls.mode == "off" for each in config.listeners):
        return Support()
    support = probe()
    log.emit(_event(support))
    problems = [
        Problem(f"listener {each.name}: kernel-tls is on, but {lack}, or set it to auto")
        for each in config.listeners
        if each.kernel_tls.mode == "on" and (lack := _lack(each, support))
    ]
    if problems:
        raise ConfigError(*problems)
    return support


def statistics() -> dict[str, int]:
    """Read what the kernel's TLS has counted in this network namespace; nothing without it."""
    try:
        text = _STATISTICS.read_text()
    except OSError:
        return {}
    return {name: int(count) for name, count in _COUNTER.findall(text)}


def _event(support: Support) -> KernelTls:
    if support.missing:
        return KernelTls(error_msg="this kernel has no TLS", error_desc=support.missing)
    return KernelTls(tx=_names(support.tx), rx=_names(support.rx), rekey=support.rekey)


def _names(codes: frozenset[int]) -> str:
    """Name the ciphers by version, `1.3-AES_128_GCM`: the kernel knows no more of a suite."""
    found = [SUITES[code] for code in sorted(codes)]
    names = {f"{_VERSION_NAMES[suite.version]}-{_cipher(suite)}": None for suite in found}
    return ":".join(names)


def _cipher(suite: Suite) -> str:
    """Give the cipher of TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256: what is before the hash."""
    return suite.name.removeprefix("TLS_").rpartition("WITH_")[2].rpartition("_")[0]


def _lack(listener: Listener, support: Support) -> str:
    """Say what the kernel lacks for a listener; empty when a suite of each version works."""
    if support.missing:
        return f"this kernel has no TLS ({support.missing}); load its module (modprobe tls)"
    wanted = [
        suite
        for suite in SUITES.values()
        if not listener.tls.ciphersuites or suite.name in listener.tls.ciphersuites
    ]
    both = support.tx & support.rx
    for name in listener.tls.versions:
        if not any(each.version == _VERSIONS[name] and each.code in both for each in wanted):
            return f"this kernel has no cipher of it for TLS {name}; leave {name} out of `versions`"
    return ""
