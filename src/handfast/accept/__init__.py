"""Acceptors: from a listening socket to a session that is handed over."""
