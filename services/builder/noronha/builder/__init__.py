"""Builder: turns a project's source into something runnable, and records it as a build."""

from noronha.builder.service import mount

__all__ = ["mount"]
