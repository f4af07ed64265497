"""Placeholder docstring: say what lives here."""
