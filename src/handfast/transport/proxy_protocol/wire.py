"""The numbers of the PROXY protocol that its reader and its writer share."""

from __future__ import annotations

import struct
from typing import Final, TypeAlias

Endpoint: TypeAlias = tuple[str, int]
"""An IP address and a TCP port."""

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
HEAD: Final = struct.Struct("!12sBBH")
"""Of version 2: signature, version and command, family and protocol, bytes that follow."""
LOCAL: Final = 0x20
PROXY: Final = 0x21
UNSPEC: Final = 0x00
TCP4: Final = 0x11
TCP6: Final = 0x21
CRC32C: Final = 0x03
"""The type of the TLV with the checksum of the whole header, counted with zeros in its place."""
MAPPED: Final = bytes(10) + b"\xff\xff"
"""What an IPv6 address begins with that stands for an IPv4 one."""
