"""Attacks by name: those of Vedette, and those that entry points of the group ``vedette.attacks`` add."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any, get_args

from attacks.boundary import Boundary
from attacks.capgd import Capgd
from attacks.carlini_wagner import CarliniWagner
from attacks.contract import Access, Attack
from attacks.coordinate_search import CoordinateSearch
from attacks.cube import Cube
from attacks.deepfool import DeepFool
from attacks.errors import AttackError
from attacks.hop_skip_jump import HopSkipJump
from attacks.kept_apart import KeptApart
from attacks.leaf_search import LeafSearch
from attacks.leaf_tuple import LeafTuple
from attacks.nes import Nes
from attacks.opt import Opt
from attacks.pgd import Fgsm, Pgd, TransferPgd
from attacks.sign_opt import SignOpt
from attacks.simba import SimBA
from attacks.square import Square
from attacks.uniform_noise import UniformNoise
from attacks.zoo import Zoo

_OWN: dict[str, type[Any]] = {
    kind.name: kind
    for kind in (
        TransferPgd,
        Pgd,
        Fgsm,
        Capgd,
        CarliniWagner,
        DeepFool,
        LeafSearch,
        LeafTuple,
        HopSkipJump,
        Boundary,
        SignOpt,
        Opt,
        KeptApart,
        Nes,
        SimBA,
        CoordinateSearch,
        Square,
        Cube,
        Zoo,
        UniformNoise,
    )
}


def names() -> list[str]:
    """Every registered attack."""
    return sorted({*_OWN, *(point.name for point in entry_points(group="vedette.attacks"))})


def kind(name: str) -> type[Attack]:
    """The class of an attack; `AttackError` names those there are."""
    if name in _OWN:
        return _OWN[name]
    for point in entry_points(group="vedette.attacks"):
        if point.name == name:
            found: type[Attack] = point.load()
            access = getattr(found, "access", None)
            if access not in get_args(Access):
                raise AttackError(f"{name}: access is {access!r}; there are {', '.join(get_args(Access))}")
            return found
    raise AttackError(f"no attack is called {name!r}; there are {', '.join(names())}")
