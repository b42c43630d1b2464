"""The configurations that are shown in the documentation are right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from handfast import config
from handfast.config.dialects import FULL

ROOT = Path(__file__).parents[3]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SHOWN = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL), 1
    )
    if not block.startswith("- alert:")
]


def whole(shown: dict[str, Any]) -> dict[str, Any]:
    """Complete what is shown alone: keys of the top level, or else of a listener."""
    if "listeners" in shown:
        return shown
    listener = {"listen": "127.0.0.1:0", "certificates": [{"chain": "chain.pem", "key": "key.pem"}]}
    if set(shown) <= set(FULL.fields):
        return {**shown, "listeners": [{**listener, "target": "tcp://127.0.0.1:1"}]}
    routes_by = {"alpn": ["h2"]} if "routes" in shown else {}
    target = {} if "targets" in shown else {"target": "tcp://127.0.0.1:1"}
    return {"listeners": [{**listener, **routes_by, **target, **shown}]}


@pytest.mark.parametrize("shown", SHOWN)
def test_what_is_shown_can_be_used(shown: str) -> None:
    text = yaml.safe_dump(whole(yaml.safe_load(shown)), sort_keys=False)

    parsed = config.parse(text, base="/etc/handfast", cores=2)

    assert parsed.listeners
