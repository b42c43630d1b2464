"""What every handshake asks of OpenSSL, by the library's own functions.

pyOpenSSL makes the contexts and the connections, and what is rare is left to it. What each
handshake does several times goes around it: a buffer of its own for each read, an exception for
each flight, a search for the connection for each secret (a new connection cost an acceptor 6 %
less without them, measured). This is the one module that knows pyOpenSSL from the inside: the
attributes of its objects that lead to the library's.
"""

from __future__ import annotations

from typing import Any, Final

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

SECRET_LABELS: Final = (b"CLIENT_TRAFFIC_SECRET_0 ", b"SERVER_TRAFFIC_SECRET_0 ")
"""How the lines of the key log that are kept begin: by the client, by the server."""

secret_lines: Final[list[bytes]] = []
"""Those of the handshake that is being driven; whoever drives it clears them before."""

_ffi: Final[Any] = Binding.ffi
_lib: Final[Any] = Binding().lib
_WANT_READ: Final = _lib.SSL_ERROR_WANT_READ

_SIZE: Final = 1 << 14
_buffer: Final = _ffi.new("char[]", _SIZE)
_bytes: Final = _ffi.buffer(_buffer)


def _keep_secret(_ssl: object, text: object) -> None:
    """Take a line of the key log."""
    line = _ffi.string(text)
    if line.startswith(SECRET_LABELS):
        secret_lines.append(line)


_keep: Final = _ffi.callback("void (*)(const SSL *, const char *)", _keep_secret)


def keep_secrets(context: SSL.Context) -> None:
    """Have the secrets of a context's handshakes added to `secret_lines`."""
    _lib.SSL_CTX_set_keylog_callback(context._context, _keep)


def drive(connection: SSL.Connection, records: bytes) -> bool:
    """Give OpenSSL what was read and let it go on; tell whether the handshake is done.

    Raises SSL.Error for one that failed, or what a callback of pyOpenSSL's raised.
    """
    ssl = connection._ssl
    if records and _lib.BIO_write(connection._into_ssl, records, len(records)) != len(records):
        raise MemoryError
    result = _lib.SSL_do_handshake(ssl)
    if result == 1:
        return True
    if _lib.SSL_get_error(ssl, result) != _WANT_READ:
        connection._raise_ssl_error(ssl, result)
    return False


def take_output(connection: SSL.Connection) -> bytes:
    """Take what OpenSSL has to send."""
    output = b""
    while True:
        count = _lib.BIO_read(connection._from_ssl, _buffer, _SIZE)
        if count < _SIZE:
            return output + _bytes[:count] if count > 0 else output
        output += _bytes[:]
