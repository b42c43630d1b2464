"""Where the bytes of a session move, and the deadlines of those who wait for them."""
