"""Attacks that other packages add."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from attacks import registry
from attacks.errors import AttackError

SOURCE = """
class Shuffle:
    name, norms, needs_eps, targeted = "acme_shuffle", frozenset({"l0"}), False, False
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install the attack; a line more says what it reads."""

    def install(line: str) -> None:
        (tmp_path / "acme_attacks.py").write_text(SOURCE + line)
        about = tmp_path / "acme_attacks-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-attacks\nVersion: 1\n")
        (about / "entry_points.txt").write_text("[vedette.attacks]\nacme_shuffle = acme_attacks:Shuffle\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "acme_attacks", raising=False)

    return install


def test_an_attack_of_another_package_is_found_by_its_name(installed: Callable[[str], None]) -> None:
    installed("    access = 'leaves'\n")
    assert "acme_shuffle" in registry.names()
    assert registry.kind("acme_shuffle").access == "leaves"


@pytest.mark.parametrize(("line", "said"), [("    access = 'leafs'\n", "'leafs'"), ("", "None")])
def test_an_attack_that_does_not_say_what_it_reads_is_refused(
    installed: Callable[[str], None], line: str, said: str
) -> None:
    installed(line)
    with pytest.raises(AttackError, match=f"acme_shuffle: access is {said}; there are labels, scores, gradients"):
        registry.kind("acme_shuffle")
