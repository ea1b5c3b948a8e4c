"""Engines that serve a checkpoint: a file or folder each, behind the interface of :mod:`moecap.engines.base`."""
