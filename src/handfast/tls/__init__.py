"""TLS without I/O: the session value, the record layer, and what a handshake engine is."""
