"""Engines that serve a checkpoint: one file each, behind the small interface of :mod:`moecap.engines.base`."""
