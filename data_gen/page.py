"""One self-contained HTML page: no network, every text escaped, and no script but the one in this file.

A page is built from `Html` values; plain strings are escaped wherever they are put in, so the only way to make
markup is to call the functions of this file. The one script, which searches and filters, is a fixed text that the
page's policy admits by its hash; nothing else can run, and without it everything can still be read.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --bar: #4c78a8; --new: #2a7d4f33; --gone: #b3404033; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: break-word; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--soft); } td.number, th.number { text-align: right; } td.number { white-space: nowrap; }
td.prose { min-width: 14rem; }
.wide { overflow-x: auto; }
.dense { font-size: .8rem; } .dense th, .dense td { padding: .2rem .5rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .6rem; margin: .2rem 0; }
.note { border-left: .3rem solid var(--bar); padding: .2rem 1rem; background: var(--soft); }
.share { white-space: nowrap; }
.bar { display: inline-block; height: .8rem; background: var(--bar); vertical-align: middle; }
figure { margin: 1rem 0; background: white; } figure svg { max-width: 100%; height: auto; }
figcaption { font-size: .9rem; color: black; padding: .3rem .6rem; }
small { opacity: .8; }
[hidden] { display: none !important; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1rem; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem; padding: 0; list-style: none; }
.facts li { border: 1px solid var(--line); border-radius: .4rem; padding: .4rem .9rem; }
.facts b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.filters { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .6rem; align-items: center;
  padding: .6rem; background: Canvas; border-bottom: 1px solid var(--line); }
.filters input { flex: 1 1 14rem; } .filters input, .filters select { font: inherit; padding: .2rem .4rem; }
.item { border: 1px solid var(--line); border-radius: .4rem; padding: .2rem 1rem 1rem; margin: 1rem 0; }
.part { border-left: .2rem solid var(--line); padding-left: .8rem; margin: .8rem 0; }
.part.kept { border-color: #2a7d4f; } .part.dropped { border-color: #b34040; margin-left: min(2rem, 4%); }
.part.other { opacity: .4; }
.tag { display: inline-block; max-width: 100%; box-sizing: border-box; overflow-wrap: anywhere; margin: 0 .3rem .3rem 0;
  border: 1px solid var(--line); border-radius: 1rem; padding: 0 .6rem; }
ins { background: var(--new); text-decoration: none; border-bottom: 2px solid #2a7d4f; }
del { background: var(--gone); }
summary { cursor: pointer; }
"""

# Shows the items of which one part has everything that is chosen, and whose text holds all words that are looked for.
# It only ever reads text and attributes, and hides elements: it puts nothing into the page.
_SCRIPT = """
"use strict";
for (const list of document.querySelectorAll(".searchable")) {
  const bar = list.querySelector(".filters"), told = bar.querySelector("output");
  const search = bar.querySelector("input"), choices = [...bar.querySelectorAll("select")];
  const items = [...list.querySelectorAll(".item")].map((element) => (
    {element, text: element.textContent.toLowerCase(), parts: [...element.querySelectorAll(".part")]}));
  const apply = () => {
    const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
    const chosen = choices.filter((choice) => choice.value);
    let shown = 0;
    for (const {element, text, parts} of items) {
      const fits = (part) => chosen.every((choice) => part.getAttribute(choice.dataset.by) === choice.value);
      const fitting = parts.filter(fits);
      element.hidden = !(fitting.length || !chosen.length) || !words.every((word) => text.includes(word));
      for (const part of parts) part.classList.toggle("other", chosen.length > 0 && !fitting.includes(part));
      shown += !element.hidden;
    }
    told.textContent = shown + " of " + items.length;
  };
  bar.addEventListener("input", apply);
  bar.hidden = false;
  apply();
}
"""

SCRIPT_HASH = "sha256-" + base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
"""What the policy of a page admits to run: the SHA-256 of the script of this file."""


# A page may hold no control characters, and those that turn the direction of text would reach beyond their own text.
_MADE_VISIBLE = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
}


def _escaped(text: str) -> str:
    return html.escape(text.replace("\r\n", "\n").translate(_MADE_VISIBLE), quote=True)


@dataclass(frozen=True)
class Html:
    """Markup that is safe to put into a page as it stands."""

    markup: str


Content = Html | str | int | float


def render(content: Content) -> str:
    """Markup of a piece of content; anything that is not `Html` is escaped."""
    return content.markup if isinstance(content, Html) else _escaped(str(content))


def element(tag: str, *parts: Content, css: str = "", data: Mapping[str, str | int] | None = None) -> Html:
    """One element; `data` becomes its data-* attributes."""
    given = {"class": css} if css else {}
    given |= {f"data-{name}": str(value) for name, value in (data or {}).items()}
    attributes = "".join(f' {name}="{_escaped(value)}"' for name, value in given.items())
    return Html(f"<{tag}{attributes}>{''.join(render(part) for part in parts)}</{tag}>")


def join(*parts: Content) -> Html:
    """Pieces one after another."""
    return Html("".join(render(part) for part in parts))


def table(head: Sequence[Content], rows: Iterable[Sequence[Content]], *, css: str = "") -> Html:
    """A table; columns of which every cell is a number, text that starts like one, or empty, stand on the right."""
    rows = list(rows)
    columns = [[row[column] for row in rows if row[column] != ""] for column in range(len(head))]
    styles = [_style(cells) for cells in columns]

    def line(tag: str, cells: Sequence[Content]) -> Html:
        return element("tr", *(element(tag, cell, css=css) for cell, css in zip(cells, styles, strict=True)))

    return element("div", element("table", line("th", head), *(line("td", row) for row in rows)), css=f"wide {css}")


_SENTENCE = 40
"""Characters from which on a cell is prose, whose column keeps a width at which it can be read."""


def _style(cells: Sequence[Content]) -> str:
    if cells and all(map(_numeric, cells)):
        return "number"
    return "prose" if any(isinstance(cell, str) and len(cell) > _SENTENCE for cell in cells) else ""


def _numeric(content: Content) -> bool:
    return not isinstance(content, Html) and str(content).lstrip("+-$")[:1].isdigit()


def facts(named: Mapping[str, Content]) -> Html:
    """Large figures side by side, each over what it counts."""
    return element("ul", *(element("li", element("b", value), name) for name, value in named.items()), css="facts")


def bar(share: float) -> Html:
    """A horizontal bar for a share between 0 and 1, with its percentage."""
    width = round(min(max(share, 0.0), 1.0) * 10, 2)
    return Html(f'<span class="share"><span class="bar" style="width:{width}rem"></span> {share:.1%}</span>')


def folded(summary: Content, *parts: Content) -> Html:
    """Parts that unfold at a click on the summary; without any script."""
    return element("details", element("summary", summary), *parts)


def figure(svg: str, caption: str) -> Html:
    """An SVG drawing made by this project, with a caption. The drawing is put in as it is."""
    return Html(f"<figure>{svg}<figcaption>{_escaped(caption)}</figcaption></figure>")


def searchable(items: Iterable[Html], *, filters: Mapping[str, Iterable[str]]) -> Html:
    """Items under a line to search their text and to filter them by; both appear only where the script runs.

    An item is an element of the class "item". `filters` names attributes, as in data={"verdict": "kept"}, of the
    elements of the class "part" in it, and the values to choose from.
    """
    choices = [_choice(render(name), [render(value) for value in values]) for name, values in filters.items()]
    search = Html('<input type="search" placeholder="words to find" aria-label="words to find">')
    filters_bar = Html(
        f'<div class="filters" hidden>{render(search)}{"".join(map(render, choices))}<output></output></div>'
    )
    return element("div", filters_bar, *items, css="searchable")


def _choice(name: str, values: Iterable[str]) -> Html:
    options = "".join(f'<option value="{value}">{value}</option>' for value in values)
    return Html(
        f'<select aria-label="{name}" data-by="data-{name}"><option value="">any {name}</option>{options}</select>'
    )


def page(title: str, *parts: Content) -> str:
    """The whole document; it carries the script only where something in it is searchable."""
    body = "\n".join(render(part) for part in (element("h1", title), *parts))
    # Text can not be mistaken for this attribute: its quotes are escaped.
    scripted = '<div class="searchable">' in body
    admitted = f"; script-src '{SCRIPT_HASH}'" if scripted else ""
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:{admitted}; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"{f'<script>{_SCRIPT}</script>' if scripted else ''}</body>\n</html>\n"
    )
