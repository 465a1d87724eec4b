"""Lava processes of our own, and nothing else: Lava's compiler executes every file beside a process class."""
