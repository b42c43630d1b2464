"""TLS alerts (RFC 8446, section 6; RFC 5246, section 7.2)."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Alert(IntEnum):
    """AlertDescription. The names are those of the IANA registry."""

    CLOSE_NOTIFY = 0
    UNEXPECTED_MESSAGE = 10
    BAD_RECORD_MAC = 20
    RECORD_OVERFLOW = 22
    HANDSHAKE_FAILURE = 40
    BAD_CERTIFICATE = 42
    UNSUPPORTED_CERTIFICATE = 43
    CERTIFICATE_REVOKED = 44
    CERTIFICATE_EXPIRED = 45
    CERTIFICATE_UNKNOWN = 46
    ILLEGAL_PARAMETER = 47
    UNKNOWN_CA = 48
    ACCESS_DENIED = 49
    DECODE_ERROR = 50
    DECRYPT_ERROR = 51
    PROTOCOL_VERSION = 70
    INSUFFICIENT_SECURITY = 71
    INTERNAL_ERROR = 80
    INAPPROPRIATE_FALLBACK = 86
    USER_CANCELED = 90
    NO_RENEGOTIATION = 100
    MISSING_EXTENSION = 109
    UNSUPPORTED_EXTENSION = 110
    UNRECOGNIZED_NAME = 112
    BAD_CERTIFICATE_STATUS_RESPONSE = 113
    UNKNOWN_PSK_IDENTITY = 115
    CERTIFICATE_REQUIRED = 116
    NO_APPLICATION_PROTOCOL = 120


WARNING: Final = 1
FATAL: Final = 2

# In TLS 1.3 the level byte means nothing, but these two are sent as warnings (section 6.1).
_WARNINGS: Final = {Alert.CLOSE_NOTIFY, Alert.USER_CANCELED, Alert.NO_RENEGOTIATION}


def alert_name(code: int) -> str:
    """Give the registry's name of an alert in lower case, or its number when it has none."""
    try:
        return Alert(code).name.lower()
    except ValueError:
        return str(code)


def alert_body(alert: int) -> bytes:
    """Encode the two bytes of an alert, its level chosen by what it says."""
    return bytes((WARNING if alert in _WARNINGS else FATAL, alert))


def plaintext_alert(alert: int) -> bytes:
    """Encode a whole record with an alert, for a connection that has no keys yet."""
    return b"\x15\x03\x03\x00\x02" + alert_body(alert)
