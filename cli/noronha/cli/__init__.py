"""The command ``nha``: parses, calls the client, shows."""
