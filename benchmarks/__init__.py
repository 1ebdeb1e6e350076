"""One script per claim. Each prints a table and, with --json, writes its numbers."""

from asvd_q.quiet import quiet_libraries

quiet_libraries()  # before torch and transformers are imported, or they will have spoken
