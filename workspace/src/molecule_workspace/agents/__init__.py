"""Message handlers: ``command`` runs a shell command for each message."""
