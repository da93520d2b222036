"""What both ends of the wire agree on beyond messages: errors, names, settings, dialling, chunks, JSON, disks."""
