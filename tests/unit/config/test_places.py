from __future__ import annotations

import pytest

from handfast.config import locate
from handfast.errors import Problem

TEXT = """\
listeners:
  - listen: 127.0.0.1:8443
    target: tcp://127.0.0.1:80
    certificates:
      - chain: chain.pem
        key: /etc/key.pem
        key-password-env: SESAME
"""


@pytest.mark.parametrize(
    ("about", "path", "line"),
    [
        ("/srv/chain.pem", "listeners[0].certificates[0].chain", 5),
        ("/etc/key.pem", "listeners[0].certificates[0].key", 6),
        ("SESAME", "listeners[0].certificates[0].key-password-env", 7),
        ("/srv/chain.pem, /etc/key.pem", "listeners[0].certificates[0].chain", 5),
    ],
)
def test_a_mistake_inside_a_file_points_at_the_line_that_names_it(
    about: str, path: str, line: int
) -> None:
    found = locate(Problem(f"{about}: is wrong"), TEXT, base="/srv")

    assert found == Problem(f"{about}: is wrong", path, line)


@pytest.mark.parametrize(
    "problem",
    [
        Problem("the certificate of CN=x is refused: too weak", "listeners[0]"),
        Problem("listeners[0]: the certificate of CN=x is refused: too weak"),
    ],
)
def test_a_mistake_about_a_value_points_at_its_line(problem: Problem) -> None:
    found = locate(problem, TEXT, base="/srv")

    assert found == Problem("the certificate of CN=x is refused: too weak", "listeners[0]", 2)


def test_a_mistake_about_nothing_that_is_there_stays_as_it_is() -> None:
    problem = Problem("cannot be changed", "nworkers")

    assert locate(problem, TEXT, base="/srv") == problem
