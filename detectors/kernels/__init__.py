"""Compiled kernels and exact products: the only room for either.

Every kernel works on a row at a time in a fixed order of operations, or on integers, so a row's result does not depend,
to the bit, on what else is in the batch.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path


def kernel_cache() -> Path:
    """Point numba at a cache that is keyed by the sources of `detectors` and `streams.events`.

    Numba's own key misses a change of a function in another file, so the directory's name holds a digest of every source
    file that kernels may call. It lies in the environment (``sys.prefix``), or in the user's cache where that is read-only.
    NUMBA_CACHE_DIR, when set by the user, wins.
    """
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return Path(chosen)
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.blake2b(digest_size=8)
    for folder in (root, root.parent / "streams" / "events"):
        for source in sorted(folder.rglob("*.py")):
            digest.update(source.name.encode())
            digest.update(source.read_bytes())
    home = Path(sys.prefix) / "var" / "vedette"
    try:
        home.mkdir(parents=True, exist_ok=True)
        writable = os.access(home, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vedette"
    cache = home / f"kernels-{digest.hexdigest()}"
    os.environ["NUMBA_CACHE_DIR"] = str(cache)
    return cache


kernel_cache()
