"""Training: the configuration, the trainer, recipes and the run directory."""
