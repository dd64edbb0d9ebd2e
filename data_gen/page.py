"""One self-contained HTML page: no script, no network, and every text escaped.

A page is built from `Html` values; plain strings are escaped wherever they are put in, so the only way to make
markup is to call the functions of this file.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --bar: #4c78a8; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--soft); } td.number, th.number { text-align: right; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .6rem; margin: .2rem 0; }
.note { border-left: .3rem solid var(--bar); padding: .2rem 1rem; background: var(--soft); }
.bar { display: inline-block; height: .8rem; background: var(--bar); vertical-align: middle; }
figure { margin: 1rem 0; background: white; } figure svg { max-width: 100%; height: auto; }
figcaption { font-size: .9rem; color: black; padding: .3rem .6rem; }
small { opacity: .8; }
"""


@dataclass(frozen=True)
class Html:
    """Markup that is safe to put into a page as it stands."""

    markup: str


Content = Html | str | int | float


def render(content: Content) -> str:
    """Markup of a piece of content; anything that is not `Html` is escaped."""
    return content.markup if isinstance(content, Html) else html.escape(str(content), quote=True)


def element(tag: str, *parts: Content, css: str = "") -> Html:
    attribute = f' class="{html.escape(css, quote=True)}"' if css else ""
    return Html(f"<{tag}{attribute}>{''.join(render(part) for part in parts)}</{tag}>")


def table(head: Sequence[Content], rows: Iterable[Sequence[Content]]) -> Html:
    """A table; cells that hold a number, or text that starts like one, stand on the right."""

    def cell(tag: str, content: Content) -> Html:
        text = "" if isinstance(content, Html) else str(content)
        numeric = isinstance(content, int | float) or text[:1].isdigit()
        return element(tag, content, css="number" if numeric else "")

    lines = [element("tr", *(element("th", content) for content in head))]
    lines += [element("tr", *(cell("td", content) for content in row)) for row in rows]
    return element("table", *lines)


def bar(share: float) -> Html:
    """A horizontal bar for a share between 0 and 1, with its percentage."""
    width = round(min(max(share, 0.0), 1.0) * 10, 2)
    return Html(f'<span class="bar" style="width:{width}rem"></span> {share:.1%}')


def figure(svg: str, caption: str) -> Html:
    """An SVG drawing made by this project, with a caption. The drawing is put in as it is."""
    return Html(f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>")


def page(title: str, *parts: Content) -> str:
    """The whole document."""
    body = "\n".join(render(part) for part in (element("h1", title), *parts))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
