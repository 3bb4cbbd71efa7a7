"""Recipes: how they are found, read, checked and written. No face."""
