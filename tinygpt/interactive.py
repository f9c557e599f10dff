"""``tinygpt generate MODEL --interactive``: type a beginning, watch it go on.

A line is the beginning of a text; an empty one goes on with the last text. Lines that begin with a
slash change how tokens are drawn:

    /t 0.8    temperature: below 1 likely tokens become likelier, 0 is greedy
    /k 40     draw from the 40 likeliest tokens; 0: from all
    /p 0.9    draw from the likeliest tokens that together have probability 0.9; 1: from all
    /s 1      seed: the same seed and the same beginning give the same text
    /n 200    length: at most 200 tokens
    /?        this list, and what is set now
    /q        leave; so does Ctrl-D. Ctrl-C stops the text

A line that begins with two slashes is a text that begins with one.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bpe.terminal import fitted, harmless, show
from tinygpt import UsageError
from tinygpt.model.sample import check, generate, prompt_ids, stop_at

if TYPE_CHECKING:
    from tinygpt.formats.checkpoint import Saved


@dataclass(frozen=True)
class Settings:
    """How tokens are drawn, and how many."""

    temperature: float
    top_k: int
    top_p: float
    seed: int
    length: int

    def __str__(self) -> str:
        return (
            f"/t {self.temperature:g}  /k {self.top_k}  /p {self.top_p:g}  /s {self.seed}  "
            f"/n {self.length}"
        )


COMMANDS = {"t": "temperature", "k": "top_k", "p": "top_p", "s": "seed", "n": "length"}


def changed(settings: Settings, line: str) -> Settings:
    """`settings` after a line such as ``/t 0.8``. Raises UsageError for what has no meaning."""
    name, _, value = line[1:].strip().partition(" ")
    if name not in COMMANDS:
        raise UsageError(
            f"/{name[:20]}: expected one of /t /k /p /s /n /? /q; /? says what they do"
        )
    field = COMMANDS[name]
    kind = type(getattr(settings, field))
    try:
        settings = replace(settings, **{field: kind(value.strip())})
    except ValueError:
        wanted = "a number" if kind is float else "a whole number"
        raise UsageError(f"/{name}: expected {wanted}, got {value.strip()[:40]!r}") from None
    check(settings.length, settings.temperature, settings.top_k, settings.top_p)
    return settings


def forget_interrupt() -> None:
    """Let the session end with its own status, after an interrupt that was caught.

    An interrupt that comes while a program text is executed, as when kernels are loaded, makes
    CPython end by SIGINT long afterwards, caught or not; executing another text undoes it.
    """
    exec("0")  # a constant: nothing that was read is executed


class Session:
    """A conversation with a model: its settings, and the text that an empty line goes on with."""

    def __init__(self, saved: Saved, settings: Settings, past_context: str, ignore_eot: bool):
        self.model, self.tokenizer = saved.model(), saved.tokenizer
        self.settings, self.past_context = settings, past_context
        self.stop = stop_at(self.tokenizer, ignore_eot)
        self.ids: list[int] = []  # of the last text
        self.turns = 0  # lines that went on with it

    def run(self) -> int:
        """Read lines to the end of standard input. Returns the exit status."""
        asking = sys.stdin.isatty()
        if asking:
            with contextlib.suppress(ImportError):  # not on Windows: no history there
                import readline  # noqa: F401  # `input` uses it
            tell(f"{self.settings}  (/? for help)")
        while True:
            try:
                line = input("> " if asking else "")
            except EOFError:
                if asking:
                    print()
                return 0
            except KeyboardInterrupt:  # of a line half typed
                forget_interrupt()
                print()
                continue
            if line.strip() in ("/q", "/quit"):
                return 0
            try:
                self.answer(line)
            except KeyboardInterrupt:
                forget_interrupt()
                print(flush=True)
            except ValueError as error:  # a character that the tokenizer cannot write
                tell(str(error))
            except UsageError as error:
                tell(str(error))

    def answer(self, line: str) -> None:
        """What a line asks for: a setting, or a text."""
        if line.startswith("/") and not line.startswith("//"):
            if line.strip() in ("/?", "/help"):
                tell(__doc__.partition("\n\n")[2].rstrip())
            else:
                self.settings = changed(self.settings, line)
            tell(str(self.settings))
            return
        if line or not self.ids:
            text = line.removeprefix("/") if line.startswith("//") else line
            self.ids, self.turns = prompt_ids(self.tokenizer, text), 0
            show(text, sys.stdout)
        else:
            self.turns += 1
        self.go_on()

    def go_on(self) -> None:
        """Write the text that follows `ids`; they grow with it, as far as it got."""
        s, decoder = self.settings, self.tokenizer.stream_decoder()
        tokens = generate(
            self.model,
            list(self.ids),
            max_new_tokens=s.length,
            temperature=s.temperature,
            top_k=s.top_k,
            top_p=s.top_p,
            seed=s.seed + self.turns,
            stop=self.stop,
            past_context=self.past_context,
            vocab_size=self.tokenizer.vocab_size,
        )
        for token in tokens:
            self.ids.append(token)
            show(decoder.feed(token), sys.stdout)
        show(decoder.flush() + "\n", sys.stdout)


def tell(text: str) -> None:
    """A message, beside the text: to standard error."""
    print(fitted(harmless(text, sys.stderr), sys.stderr), file=sys.stderr, flush=True)
