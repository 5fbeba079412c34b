"""The papers' claims, measured: the theory of one step, and methods compared over seeds. See scripts/reproduce.py."""
