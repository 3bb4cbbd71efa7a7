"""A network as nodes of whole numbers: what every target is written from."""
