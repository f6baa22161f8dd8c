"""The project's documents: where they are, and their text as it reads, whatever the lengths of
their lines."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = (*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *sorted((ROOT / "docs").glob("*.md")))


def in_one_line(text: str) -> str:
    """Sentences without the line breaks that a paragraph happens to have."""
    return " ".join(text.split())


def prose(name: str) -> str:
    """A document of docs/, in one line."""
    return in_one_line((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8"))
