"""Studies: one recipe at many settings, each compressed and evaluated, in one table and a plot."""
