"""The page of one rater: a single file that asks for nothing from any network and runs no script but its own.

Texts travel as JSON in which no character has a meaning to HTML, and the script puts them in as text; the policy admits
that one script and style by their hashes, no connection, and nowhere the making of elements out of strings.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from wizard_jax.evaluate.people.questions import ASKED, CONFIDENCES, GRADES, VERDICTS
from wizard_jax.evaluate.people.sheets import Shown

_FOLDER = Path(__file__).parent


def rater_page(sheet: Sequence[Shown], *, export: str, rater: str, aspects: Sequence[str]) -> str:
    """The whole document."""
    told = {
        "export": export,
        "rater": rater,
        "aspects": list(aspects),
        "grades": GRADES,
        "confidences": CONFIDENCES,
        "forms": {form: {"asked": ASKED[form], "verdicts": [*said.items()]} for form, said in VERDICTS.items()},
        "lines": [public_line(shown) for shown in sheet],
    }
    style, script = _file("rater.css"), _file("rater.js")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    parts = {"policy": policy, "title": html.escape(f"Ratings: {rater}"), "style": style, "script": script}
    parts["sheet"] = inert_json(told)
    # In one pass: what looks like a slot in a text is none.
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: parts[slot[1]], _file("rater.html"))


def public_line(shown: Shown) -> dict[str, Any]:
    """What a rater sees of a question, and nothing else of it."""
    question = shown.question
    return {
        "id": shown.id,
        "form": question.form,
        "turns": list(question.turns),
        "sides": [list(side.texts) for side in question.sides],
    }


def inert_json(value: Any) -> str:
    """JSON in ASCII, in which the characters that HTML goes by are written by their numbers."""
    text = json.dumps(value)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@cache
def _file(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
