"""The recipe reference as a page of Markdown, from the schemas that check a recipe."""

from asvd_q.schema_page.page import recipe_page

__all__ = ["recipe_page"]
