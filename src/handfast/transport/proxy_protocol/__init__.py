"""The PROXY protocol, sans-I/O: the header by which one proxy tells the next who its client is.

Source: the PROXY protocol, versions 1 and 2, by HAProxy (proxy-protocol.txt). A header comes
before every other byte of a connection, TLS included. Anyone could write one, so that it is read
only from networks that the operator listed, and there it has to be present.

IPv4 addresses in IPv6 form (RFC 4291, section 2.5.5.2) are read as IPv4, and written in IPv6 form
where only the other address of a header is IPv6.
"""

from handfast.transport.proxy_protocol.build import TlsFacts, build_v1, build_v2, tls_facts
from handfast.transport.proxy_protocol.parse import Header, parse
from handfast.transport.proxy_protocol.wire import Endpoint

__all__ = ["Endpoint", "Header", "TlsFacts", "build_v1", "build_v2", "parse", "tls_facts"]
