"""Write docs/configuration.md from the options' own definitions: `python -m scripts.write_configuration_page`."""

from __future__ import annotations

from pathlib import Path

from distgnn.option_reference import markdown

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"

if __name__ == "__main__":
    PAGE.write_text(markdown(), encoding="utf-8")
