"""Fixtures for faults: a recorded handfast in front of a backend that echoes."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.clients import trusting
from harness.load import warm_up
from harness.recorded import Recorded, configuration

if TYPE_CHECKING:
    from conftest import Certificates
    from harness.backends import Backend

Begin = Callable[..., Recorded]


@pytest.fixture
def context(certificates: Certificates) -> ssl.SSLContext:
    """What clients trust."""
    return trusting(certificates.ca)


@pytest.fixture
def begin(tmp_path: Path, certificates: Certificates, backend: Backend) -> Iterator[Begin]:
    """Start handfast in front of the echoing backend: `begin(nworkers=..., extra=...)`.

    `wrapper` is Recorded's.
    """
    with ExitStack() as stack:

        def start(*, wrapper: tuple[str, ...] = (), **options: object) -> Recorded:
            yaml = configuration(backend.target, certificates.chain, certificates.key, **options)  # type: ignore[arg-type]  # they are configuration's
            running = stack.enter_context(Recorded(tmp_path, yaml, wrapper=wrapper))
            warm_up(running.port(), trusting(certificates.ca))
            return running

        yield start
