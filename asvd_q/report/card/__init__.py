"""The model card of an artefact: `README.md` with the hub's header, from a run's record.

It says nothing that changes between two runs of one recipe: no time, no place.
"""

from asvd_q.report.card.text import CARD_FILE, card_text

__all__ = ["CARD_FILE", "card_text"]
