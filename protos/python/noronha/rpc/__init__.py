"""What both ends of the wire agree on beyond messages: errors, names, settings, addresses, dialling, chunks, JSON."""
