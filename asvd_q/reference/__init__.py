"""The recipe reference as a page of Markdown, from the schemas that check a recipe."""

from asvd_q.reference.page import reference_page

__all__ = ["reference_page"]
