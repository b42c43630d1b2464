"""handfast: a TLS front door in which a TLS session is a value."""

__version__ = "0.1.0"
