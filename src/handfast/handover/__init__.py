"""The one message that carries a socket and its session between processes of handfast."""
