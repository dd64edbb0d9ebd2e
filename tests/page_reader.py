"""What a browser would make of a page: its tables, its text, and whatever would run or be fetched."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

ACTIVE = {"iframe", "frame", "object", "embed", "link", "base", "form", "applet", "foreignobject"}
FETCHED = {"href", "xlink:href", "src", "srcset", "action", "formaction", "data", "poster", "background", "ping"}


class PageReader(HTMLParser):
    """Reads a page. `dangers` should stay empty."""

    def __init__(self, page: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.dangers: list[str] = []
        self.policy = ""
        self.text = ""
        self.scripts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self._in_style = self._in_cell = self._in_script = False
        self.feed(page.read_text(encoding="utf-8"))
        self.close()
        if self._in_script:
            self.dangers.append("<script> without an end")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        if tag == "script":
            self._in_script = True
            self.scripts.append("")
            if attrs:
                self.dangers.append(f"<script> with {attrs}")
        if tag in ACTIVE:
            self.dangers.append(f"<{tag}>")
        given = {name: value or "" for name, value in attrs}
        if tag == "meta" and "http-equiv" in given:
            if given["http-equiv"] == "Content-Security-Policy" and not self.policy:
                self.policy = given["content"]
            else:
                self.dangers.append(f"<meta http-equiv={given['http-equiv']}>")
        for name, value in given.items():
            runs = name.startswith("on") or name == "srcdoc" or "javascript:" in value.lower()
            fetches = name in FETCHED and not value.startswith("#")
            if name.startswith("data-") or (tag, name) == ("option", "value"):
                continue  # only ever compared
            if runs or fetches or ("://" in value and not name.startswith("xmlns")):
                self.dangers.append(f"{tag} {name}={value}")
            elif name == "style":
                self._look_at_style(value)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False
        if tag == "style":
            self._in_style = False
        if tag == "script" and self._in_script:
            self._in_script = False
            digest = base64.b64encode(hashlib.sha256(self.scripts[-1].encode()).digest()).decode()
            if f"script-src 'sha256-{digest}';" not in self.policy:
                self.dangers.append(f"<script> that the policy does not admit: {self.scripts[-1]}")

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self._look_at_style(data)
            return
        if self._in_script:
            self.scripts[-1] += data
            return
        self.text += data
        if self._in_cell:
            self.tables[-1][-1][-1] += data

    def table(self, first_heading: str) -> list[dict[str, str]]:
        """The rows of the table whose first column is called so, by heading."""
        (found,) = self.tables_of(first_heading)
        return found

    def tables_of(self, first_heading: str) -> list[list[dict[str, str]]]:
        """All tables whose first column is called so, in the order of the page."""
        named = [table for table in self.tables if table[0][0] == first_heading]
        return [[dict(zip(table[0], row, strict=True)) for row in table[1:]] for table in named]

    def _look_at_style(self, style: str) -> None:
        self.dangers += re.findall(r"url\((?!#)[^)]*\)|@import|expression\(", style)
