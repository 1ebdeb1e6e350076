"""One script per claim. Each prints a table and, with --json, writes its numbers."""
