"""What both ends of the wire agree on beyond messages: errors, names, settings, how to dial, how bytes are cut into chunks."""
