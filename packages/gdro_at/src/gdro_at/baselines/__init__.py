"""The fairness baselines that GDRO-AT is compared with, each in its official and its corrected form.

The rules are pure functions; the methods put them into the loop. The definitions decide what the corrected form is, the
arrays of the official implementation what the official one is.
"""

from gdro_at.baselines.bat import BAT
from gdro_at.baselines.cfa import CFA
from gdro_at.baselines.cgd import CGD
from gdro_at.baselines.dafa import DAFA
from gdro_at.baselines.dfr import DFR
from gdro_at.baselines.fat import FAT
from gdro_at.baselines.udr import UDR
from gdro_at.baselines.wat import WAT

__all__ = ["BAT", "CFA", "CGD", "DAFA", "DFR", "FAT", "UDR", "WAT"]
