"""Output formats of asvd-q: one folder each, found through the entry points `asvd_q.exporters`."""
