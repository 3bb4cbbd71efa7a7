"""Recordings of events: which there are, how they are read, and how they become frames."""
