"""The parts of `soak_router.py`."""
