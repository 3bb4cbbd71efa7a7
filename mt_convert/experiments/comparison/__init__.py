"""Several runs on one page: what they stored, and the page."""
