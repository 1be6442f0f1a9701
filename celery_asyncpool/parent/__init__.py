"""The worker's main process: starts, feeds, watches and ends worker processes."""
