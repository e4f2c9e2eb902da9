"""One typed function a command; nothing else parses arguments."""
