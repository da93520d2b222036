"""Backends of Builder, one module for each scheme of ``builder.backend``."""
