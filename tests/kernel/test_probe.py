"""What the kernel of the guest can do is found out by doing it."""

from __future__ import annotations

from handfast.tls.keys import SUITES
from handfast.transport.kernel import Support


def test_every_suite_works_in_both_directions(support: Support) -> None:
    assert support.tx == support.rx == set(SUITES)
