"""Relays: from a session that was handed over to bytes that flow between client and target."""
