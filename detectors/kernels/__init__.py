"""Compiled kernels and exact products: the only room for either.

Every kernel works on a row at a time in a fixed order of operations, or on integers, or takes sums that are exact in
any order, so a row's result does not depend, to the bit, on what else is in the batch.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

#: How the name of a cache directory of ours starts.
CACHE_PREFIX = "numba-"
#: Libraries of linear algebra that read the number of their threads from these variables when they are loaded.
BLAS_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


def source_digest(root: Path) -> str:
    """16 hex digits over every source file under `root` that kernels may call: `detectors` and `streams/events`."""
    digest = hashlib.blake2b(digest_size=8)
    for folder in (root / "detectors", root / "streams" / "events"):
        for source in sorted(folder.rglob("*.py")):
            content = source.read_bytes()
            digest.update(f"{source.relative_to(root).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def kernel_cache() -> Path:
    """Point numba at a cache that is keyed by the sources that kernels are made of.

    Numba's own key misses a change of a function in another file, so the directory's name holds `source_digest`. It
    lies in ``<sys.prefix>/var/vedette``, or in the user's cache where that is read-only; under NUMBA_CACHE_DIR where
    the user has set it. Importing `detectors.kernels` calls it, before any module of ours imports numba.

    Returns
    -------
    Path
        The directory, also left in NUMBA_CACHE_DIR, so that child processes share it.
    """
    name = CACHE_PREFIX + source_digest(Path(__file__).resolve().parents[2])
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        parent = Path(chosen)
        if parent.name.startswith(CACHE_PREFIX):
            parent = parent.parent
    else:
        parent = Path(sys.prefix) / "var" / "vedette"
        if not _writable(parent):
            parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vedette"
    cache = parent / name
    os.environ["NUMBA_CACHE_DIR"] = str(cache)
    if "numba" in sys.modules:
        from numba import config

        config.CACHE_DIR = str(cache)
    return cache


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def limit_blas_threads() -> None:
    """Let linear algebra run on the calling thread alone, in this process and its children.

    Products of a few hundred rows gain nothing from more threads, and workers share their machine by processes.
    """
    for variable in BLAS_THREAD_VARIABLES:
        os.environ[variable] = "1"
    import numpy  # noqa: F401  (the library must be loaded to be limited)
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=1, user_api="blas")


def warm_up() -> None:
    """Compile every kernel of this room, or load it from the cache, by running each on a few rows."""
    from detectors.kernels import feedback, lines, margins, rows, siphash

    siphash.warm_up()
    rows.warm_up()
    margins.warm_up()
    feedback.warm_up()
    lines.warm_up()


kernel_cache()
