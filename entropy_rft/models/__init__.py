"""Where the name of a model leads."""
