"""Tables, pages and pictures from plain numbers. No torch."""
