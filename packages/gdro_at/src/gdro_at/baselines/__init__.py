"""The fairness baselines that GDRO-AT is compared with, each in its official and its corrected form.

The rules are pure functions; the methods put them into the loop. The definitions decide what the corrected form is, the
arrays of the official implementation what the official one is.
"""

from gdro_at.baselines.cfa import Cfa
from gdro_at.baselines.dafa import Dafa
from gdro_at.baselines.fat import Fat
from gdro_at.baselines.wat import Wat

__all__ = ["Cfa", "Dafa", "Fat", "Wat"]
