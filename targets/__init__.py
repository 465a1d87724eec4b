"""Engines: one package or file each."""
