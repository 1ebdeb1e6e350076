"""What other packages must know to load and quantize our checkpoints; one module for each.

Importing such a module registers our architectures there. Nothing else here imports them.
"""
