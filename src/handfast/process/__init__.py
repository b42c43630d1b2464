"""Processes: who is forked from whom, with which descriptors, and what they say to each other."""
