"""Engines behind HTTP: servers that are started from a command of the catalogue, and endpoints that others run."""
