"""One script per claim. Each prints a table and, with --json, writes its numbers."""

from asvd_q.process import settle_process

settle_process()  # before torch and transformers are imported, or they will have spoken
