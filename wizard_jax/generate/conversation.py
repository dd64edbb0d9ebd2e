"""`wizard chat`: a conversation with one model, or the same one with two, side by side.

On a terminal answers appear as they come; otherwise lines come in and answers go out, so that it can be piped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from configs.errors import UserError
from configs.loader import load
from data_gen.records import Turn
from wizard_jax.generate.engine import Ask, Engine
from wizard_jax.generate.sampling import Sampling, SamplingError
from wizard_jax.generate.speaker import Speaker
from wizard_jax.generate.text import TextStream

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HELP = """/reset            forget what was said (the system turn stays)
/system TEXT      set the system turn and begin anew; without TEXT there is none
/set NAME=VALUE   such as /set temperature=0.7 max_new_tokens=512
/settings         what is set
/quit             as Ctrl-D"""
_STEPS = 4  # tokens between two looks at the screen


@dataclass
class Conversation:
    """What was said between somebody and one model."""

    speaker: Speaker
    engine: Engine
    turns: list[Turn] = field(default_factory=list)

    def begin(self, *, system: str) -> None:
        self.turns = [Turn("system", system)] if system else []

    def ask(self, text: str, *, sampling: Sampling) -> Ask:
        """Raises UserError: turns that the chat format can not write; SamplingError: no place is left."""
        prompt = self.speaker.prompt_of_turns([*self.turns, Turn("user", text)])
        room = self.engine.length - len(prompt)
        if room < 1:
            raise SamplingError(
                f"the conversation has {len(prompt)} tokens and there is room for {self.engine.length}: /reset begins "
                "anew, and --length gives more room"
            )
        most = min(sampling.max_new_tokens, room)
        asked = dataclasses.replace(sampling, max_new_tokens=most)
        return Ask(prompt=prompt, sampling=asked, place=len(self.turns), ends=self.speaker.ends)

    def answers(self, ask: Ask, text: str, *, stopped: Callable[[], bool]) -> Iterator[str]:
        """The answer bit by bit; what was said when `stopped` is kept."""
        stream, said, ended = TextStream(self.speaker.tokenizer), "", ""
        row = self.engine.admit(ask)
        try:
            while not ended and not stopped():
                new = self.engine.advance(_STEPS)[row]
                ended = new.ended
                shown = stream.push(new.tokens)
                said += shown
                yield shown
        finally:
            self.engine.release(row)
        rest = stream.finish()
        self.turns += [Turn("user", text), Turn("assistant", said + rest)]
        yield rest


@dataclass
class Session:
    """One or two conversations with the same questions."""

    conversations: Sequence[Conversation]
    sampling: Sampling
    system: str = ""

    def command(self, line: str) -> str:
        """Carries out a line that begins with a slash; what to say about it. Raises UserError: there is none such."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        match name:
            case "/reset" if not rest:
                self.begin()
                return "begun anew"
            case "/system":
                self.system = rest
                self.begin()
                return f"the system turn is now: {rest}" if rest else "there is no system turn now"
            case "/set" if rest:
                kept = {one.name: getattr(self.sampling, one.name) for one in dataclasses.fields(Sampling)}
                self.sampling = with_settings(kept, rest.split())
                return self._settings()
            case "/settings" if not rest:
                return self._settings()
            case "/help" if not rest:
                return HELP
        raise UserError(f"there is no {line!r}:\n{HELP}")

    def begin(self) -> None:
        for one in self.conversations:
            one.begin(system=self.system)

    def _settings(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(self.sampling).items())


def with_settings(kept: Mapping[str, object], settings: Sequence[str]) -> Sampling:
    """The sampling that `kept` says, with these `name=value` settings. Raises ConfigError or SamplingError."""
    given = {setting.partition("=")[0] for setting in settings}
    return load(Sampling, [], [*settings, *(f"{name}={value}" for name, value in kept.items() if name not in given)])


def chat(session: Session, *, lines: Iterator[str], say: Callable[[str], None]) -> None:
    """Answers each line until there are no more, or one is /quit."""
    session.begin()
    for raw in lines:
        line = raw.strip()
        if line in ("/quit", "/exit"):
            return
        if not line:
            continue
        try:
            if line.startswith("/"):
                say(session.command(line))
                continue
            asks = [one.ask(line, sampling=session.sampling) for one in session.conversations]
        except UserError as error:
            say(f"wizard: {error}")
            continue
        with _ctrl_c_stops() as stopped:
            answers = [
                one.answers(ask, line, stopped=stopped) for one, ask in zip(session.conversations, asks, strict=True)
            ]
            names = [one.speaker.name for one in session.conversations]
            if len(answers) > 1:
                _side_by_side(names, answers)
            else:
                _one_after_the_other(answers[0])


def _one_after_the_other(answer: Iterator[str]) -> None:
    for shown in answer:
        sys.stdout.write(harmless(shown))
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def _side_by_side(names: Sequence[str], answers: Sequence[Iterator[str]]) -> None:
    """In columns that grow on a terminal; otherwise one below the other, each after its name."""
    from rich.console import Console
    from rich.live import Live

    said = [""] * len(names)
    console = Console()
    # While they grow, their ends are shown: what is taller than the screen can not be drawn anew.
    live = Live(console=console, transient=True) if console.is_terminal else None
    with live or contextlib.nullcontext():
        left = dict(enumerate(answers))
        while left:
            for index, answer in list(left.items()):
                shown = next(answer, None)
                if shown is None:
                    del left[index]
                else:
                    said[index] += harmless(shown)
            if live is not None:
                live.update(columns(names, said, console=console, lines=max(1, console.height - 6)))
    if live is not None:
        console.print(columns(names, said, console=console))
        return
    for name, text in zip(names, said, strict=True):
        print(f"{name}: {text}", flush=True)


def columns(names: Sequence[str], said: Sequence[str], *, console: Console, lines: int | None = None) -> Table:
    """What each said under its name, with no character left out; `lines`: so many of the last ones alone."""
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True)
    for name in names:
        table.add_column(Text(harmless(name), overflow="fold"), ratio=1, overflow="fold")
    width = max(2, (console.width - 1) // len(names) - 3)  # borders and a space on both sides
    wrapped = [Text(text).wrap(console, width, overflow="fold") for text in said]
    table.add_row(*(Text("\n").join(part[-lines:] if lines else part) for part in wrapped))
    return table


def harmless(text: str) -> str:
    """Without what a terminal would obey: control characters but newline and tab become U+FFFD."""
    return "".join(one if one in "\n\t" or unicodedata.category(one) != "Cc" else "\ufffd" for one in text)


@contextlib.contextmanager
def _ctrl_c_stops() -> Iterator[Callable[[], bool]]:
    """Meanwhile Ctrl-C stops the answer, and not the program: it sets what the returned function tells."""
    told = False

    def tell(*_: object) -> None:
        nonlocal told
        told = True

    before = signal.signal(signal.SIGINT, tell)
    try:
        yield lambda: told
    finally:
        signal.signal(signal.SIGINT, before)


def typed_lines(prompt: str = "> ") -> Iterator[str]:
    """Lines of the terminal, after a prompt and with editing, or of what is piped; Ctrl-C or Ctrl-D ends them."""
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if not is_terminal:
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() edits and remembers lines by it
    while True:
        try:
            yield input(prompt)
        except (EOFError, KeyboardInterrupt):
            print()
            return
