"""What is decided about a connection, sans-I/O: who may connect, and where a connection goes."""
