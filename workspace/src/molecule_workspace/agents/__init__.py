"""What handles messages: so far a shell command a message (``command``)."""
