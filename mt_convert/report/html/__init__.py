"""Pages for a browser: one file each, drawn by our own functions, from plain numbers. No torch."""
