"""One worker process: a fresh event loop on its main thread, and tasks on it."""
