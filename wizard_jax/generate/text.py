"""Tokens as text while they come: nothing is shown that a later token could take back."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from wizard_jax.tokenizer import Tokenizer

_UNFINISHED = "\ufffd"  # what bytes that are no whole character decode to
_CONTEXT = 6  # tokens of what stands before; enough for a character of four bytes and the space before a word


class TextStream:
    """The text of tokens that come bit by bit, up to the first of the stop strings.

    All that `push` and `finish` return, joined, is the text of all tokens, cut where the stop string begins that is
    whole first; of several that one token makes whole, where the first of them begins. A character whose bytes have
    not all come, and an end that a stop string may begin with, are held back.
    """

    def __init__(self, tokenizer: Tokenizer, *, context: Sequence[int] = (), stop: Iterable[str] = ()) -> None:
        """`context` is what the tokens go on from; without it the first word has no space before it."""
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids = list(context)[-_CONTEXT:]
        self._read = len(self._ids)
        self._since = 0
        self._held = ""
        self._length = 0
        self.stopped = False
        """Whether a stop string came: there is no more text."""
        self.offsets: list[int] = []
        """Of each token, how many characters came before it."""

    def push(self, tokens: Iterable[int]) -> str:
        """What can be shown now."""
        for token in tokens:
            if self.stopped:
                break
            self.offsets.append(self._length)
            self._ids.append(int(token))
            self._decode(until_whole=True)
        return self._shown()

    def finish(self) -> str:
        """What was held back; there are no more tokens."""
        if not self.stopped:
            self._decode(until_whole=False)
        shown = self._shown()
        rest, self._held = self._held, ""
        return shown + rest

    def _decode(self, *, until_whole: bool) -> None:
        before = self._tokenizer.decode(self._ids[self._since : self._read])
        now = self._tokenizer.decode(self._ids[self._since :])
        if until_whole and now.endswith(_UNFINISHED):
            return
        same = len(before) if now.startswith(before) else len(before.rstrip(_UNFINISHED))
        self._held += now[same:]
        self._length += len(now) - same
        if len(now) > same:  # else the next word would stand first, where its space is left out
            self._since = self._read
        self._read = len(self._ids)
        self._cut()

    def _cut(self) -> None:
        places = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if places:
            self._held = self._held[: min(places)]
            self.stopped = True

    def _shown(self) -> str:
        """Takes what can be shown from what is held."""
        longest = 0
        if not self.stopped:
            most = max(map(len, self._stop), default=1) - 1
            longest = max(
                (n for n in range(1, min(most, len(self._held)) + 1) if self._may_stop(self._held[-n:])), default=0
            )
        at = len(self._held) - longest
        shown, self._held = self._held[:at], self._held[at:]
        return shown

    def _may_stop(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stop)


@functools.lru_cache(maxsize=1 << 16)  # an answer may show twenty for each of its tokens
def token_text(tokenizer: Tokenizer, token: int) -> str:
    """What one token adds to a text; its piece where that is none, as of a control token or part of a character."""
    anchor = tokenizer.encode_continuation("a")[-1:]
    before = tokenizer.decode(anchor)
    added = tokenizer.decode([*anchor, token])[len(before) :]
    return tokenizer.piece(token) if not added or _UNFINISHED in added else added
