"""The demo: three methods from one checkpoint, measured on the same held-out questions, in one report."""
