"""Accuracy on tasks through lm-eval, for every Runner.

lm-eval is an extra: only `running`, `loading` and `model` import it, and only when they are used.
"""
