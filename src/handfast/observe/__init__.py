"""What handfast tells its operator: events, the log they go to, and counters."""
