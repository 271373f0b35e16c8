"""Tables of docs/compatibility.md, which tests try row by row."""

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"


def table(heading: str) -> list[tuple[str, ...]]:
    """The cells of the table under a heading, without backticks; first two columns are code."""
    section = PAGE.read_text("utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [tuple(cell.strip().strip("`") for cell in line.strip("|").split(" | ")) for line in lines[2:]]
