"""The documentation is complete where completeness can be checked, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streams import config, errors
from streams.cli import vedette

HOME = Path(__file__).resolve().parents[2]
DOCS = HOME / "docs"
PAGES = [HOME / "README.md", *sorted(DOCS.glob("*.md"))]
_ROW = re.compile(r"^\| `(\w+)` \| ([^|]*) \|", re.MULTILINE)
SECTIONS: dict[str, type[Any]] = {
    "[[models]]": config.ModelSettings,
    "[models.objectives]": config.ObjectiveSettings,
    "[models.escalation]": config.EscalationSettings,
    "[[probes.schedules]]": config.ScheduleSettings,
    "[[notify.destinations]]": config.DestinationSettings,
    "[[notify.routes]]": config.RouteSettings,
    "[[notify.inhibitions]]": config.InhibitionSettings,
    "[threats.NAME]": config.ThreatSettings,
    **{
        f"[{field.name}]": field.type
        for field in msgspec.structs.fields(config.Settings)
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
    },
}


def rows(section: str) -> dict[str, str]:
    """Documented settings of a section with their defaults."""
    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    _, _, rest = text.partition(f"\n## `{section}`\n")
    assert rest, f"docs/settings.md has no section {section}"
    return dict(_ROW.findall(rest.partition("\n## ")[0]))


def spelled(default: Any) -> str:
    """A default as the documentation writes it."""
    if default is msgspec.NODEFAULT:
        return "required"
    if default is None:
        return "none"
    if isinstance(default, msgspec.Struct):
        return "none"
    if default in ((), {}) and not isinstance(default, str):
        return "none"
    if isinstance(default, tuple):
        return ", ".join(map(spelled, default))
    if isinstance(default, bool):
        return str(default).lower()
    if default == "":
        return "none"
    return (
        f"`{default}`" if isinstance(default, str) else f"{default:g}" if isinstance(default, float) else str(default)
    )


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_is_documented_with_its_default(section: str) -> None:
    fields = {
        field.name: "none" if field.default_factory is dict else spelled(field.default)
        for field in msgspec.structs.fields(SECTIONS[section])
    }
    assert rows(section) == fields


def test_every_section_and_nothing_else_is_documented() -> None:
    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## `(.*)`$", text, re.MULTILINE)) == set(SECTIONS)
    for field in msgspec.structs.fields(config.Settings):
        assert f"`{field.name}`" in text.partition("\n## `")[0]


def test_every_exit_code_is_documented() -> None:
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.VedetteError)]
    for kind in kinds:
        if kind is not errors.VedetteError:
            assert kind.__name__ in text, f"docs/operations.md says nothing of {kind.__name__} ({kind.exit_code})"
            assert re.search(rf"^\| [\d, ]*\b{kind.exit_code}\b", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_index_names_every_page() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in sorted(DOCS.glob("*.md")):
        assert page.name == "index.md" or f"({page.name})" in index


def test_readme_names_every_command_and_its_two_targets_exist() -> None:
    text = (HOME / "README.md").read_text(encoding="utf-8")
    for name in vedette.commands:
        assert f"vedette {name}" in text
    makefile = (HOME / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert f"make {target}" in text
        assert f"\n{target}:" in makefile
