"""Record what `whet train` looks like in a terminal, from a real run, as docs/terminal.svg.

    python docs/make_picture.py                    # examples/quickstart.yaml
    python docs/make_picture.py my.yaml --at 0.5   # another run, taken when half of its steps are done
    python docs/make_picture.py --at end           # taken when the run has ended

The run goes in a tmux window of 120 x 30; what stands there is captured with its colours and drawn by Rich.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

REPOSITORY = Path(__file__).resolve().parent.parent
PICTURE = REPOSITORY / "docs" / "terminal.svg"
COLUMNS, ROWS = 120, 30
END = "-- the run has ended --"
_STEP = re.compile(r"step (\d+)/(\d+)")

THEME = TerminalTheme(
    (22, 27, 34),
    (201, 209, 217),
    [(72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34), (88, 166, 255), (188, 140, 255), (57, 197, 207),
     (177, 186, 196)],
    [(110, 118, 129), (255, 161, 152), (86, 211, 100), (227, 179, 65), (121, 192, 255), (210, 168, 255),
     (86, 212, 221), (240, 246, 252)],
)  # fmt: skip


class Terminal:
    """A tmux server of our own with one window. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._tmux = ["tmux", "-L", f"whet-picture-{Path(sys.argv[0]).stem}", "-f", "/dev/null"]
        self._folder = folder

    def __enter__(self) -> Terminal:
        size = ["-x", str(COLUMNS), "-y", str(ROWS)]
        shell = ["env", "PS1=$ ", "bash", "--norc", "--noprofile"]
        self._run("new-session", "-d", *size, "-s", "picture", "-c", str(self._folder), *shell)
        return self

    def __exit__(self, *_: object) -> None:
        self._run("kill-server")

    def type(self, line: str) -> None:
        """Type a line and press Enter."""
        self._run("send-keys", "-t", "picture", "-l", line)
        self._run("send-keys", "-t", "picture", "Enter")

    def screen(self, *, colours: bool = False) -> str:
        """What the window shows."""
        return self._run("capture-pane", "-p", *(["-e"] if colours else []), "-t", "picture")

    def _run(self, *words: str) -> str:
        done = subprocess.run([*self._tmux, *words], check=True, capture_output=True, text=True)
        return done.stdout


def record(config: str, folder: Path, share: float, seconds: float) -> str:
    """Run `whet train` and return the screen, with its colours, once this share of the steps is done (inf: at the end).

    Raises:
        RuntimeError: the run ended, or took longer than ``seconds``, before it got there.
    """
    with Terminal(folder) as terminal:
        terminal.type(f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; clear")
        terminal.type(f"whet train {shlex.quote(config)}; echo '{END[:2]}''{END[2:]}'")
        last = time.monotonic() + seconds
        while time.monotonic() < last:
            text = terminal.screen()
            if progress(text) >= share:
                return tidied(terminal.screen(colours=True))
            if END in text and share == math.inf:
                return tidied(terminal.screen(colours=True))
            if END in text:
                raise RuntimeError(f"the run ended before the picture was taken:\n{text}")
            time.sleep(0.1)
        raise RuntimeError(f"the run was not so far after {seconds:g} s:\n{text}")


def progress(text: str) -> float:
    """Share of the steps that the last "step 3/12" on the screen tells of; 0 without one.

    >>> progress("step 1/12 ...\\nstep 3/12 ━━━")
    0.25
    """
    steps = _STEP.findall(text)
    return int(steps[-1][0]) / int(steps[-1][1]) if steps else 0.0


def tidied(screen: str) -> str:
    """Without the marker behind the command and at the end, and without the empty lines below."""
    return re.sub(r"; echo '--'.*", "", screen).partition(END)[0].rstrip()


def as_svg(screen: str, title: str) -> str:
    """A screen with ANSI colours as SVG; the same screen gives the same bytes."""
    lines = Text.from_ansi(screen)
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    console.print(lines, no_wrap=True, overflow="crop")
    svg = console.export_svg(title=title, theme=THEME, unique_id="whet")
    # The page that shows it decides what is fetched: no font from the network, the reader's own monospace one.
    return re.sub(r"\s*@font-face \{.*?\n    \}", "", svg, flags=re.DOTALL)


def _share(word: str) -> float:
    return math.inf if word == "end" else float(word)


def main(argv: Sequence[str] | None = None) -> None:
    """Record, convert, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="examples/quickstart.yaml")
    parser.add_argument("--at", type=_share, default=0.75, help="share of the steps that is done, 0 to 1, or 'end'")
    parser.add_argument("--folder", type=Path, default=REPOSITORY, help="where the run is started")
    parser.add_argument("--output", type=Path, default=PICTURE)
    parser.add_argument("--seconds", type=float, default=600.0, help="give up after this long")
    options = parser.parse_args(argv)
    screen = record(options.config, options.folder, options.at, options.seconds)
    options.output.write_text(as_svg(screen, f"whet train {options.config}"), encoding="utf-8")
    sys.stdout.write(f"{options.output}\n")


if __name__ == "__main__":
    main()
