"""An application of the Django project whose tasks log with structlog."""
