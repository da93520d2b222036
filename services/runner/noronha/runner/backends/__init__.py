"""Backends of Runner, one module for each scheme of ``runner.backend``."""
