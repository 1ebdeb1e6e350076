"""The best model that fits: form, rank and width of codes for every layer, under one budget.

counting.py   what a format stores of a layer, and what it cannot hold
offers.py     the forms that a layer may take, without running anything
evidence.py   what the dense model feeds a layer, and how the loss reacts to its outputs
trials.py     real candidates of one layer: quantized, and their loss predicted
timing.py     what they take of a decoded token's time on this machine
contest.py    which candidates are worth a trial, and which trials are worth offering
sweep.py      all layers, block by block; what is known is kept
choice.py     the forms of all layers that meet a target
hybrid.py     the forms that a choice hangs on, measured
explicit.py   a choice as an explicit recipe
measured.py   the next bound to solve for, where the loss is measured
front.py      all budgets at once, beside plain quantization
solving.py    from a recipe to its choice
"""
