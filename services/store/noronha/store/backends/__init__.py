"""Backends of Store: kinds of storage, and the index of what they hold."""
