"""The built-in search spaces, one module each; plugins add theirs by the entry-point group ``latbench.spaces``."""
