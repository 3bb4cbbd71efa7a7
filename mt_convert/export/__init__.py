"""The converted network in other formats."""
