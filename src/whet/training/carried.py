"""What a run remembers beside transformers' files, so that a resumed run goes on as if it had not stopped.

A part of the run with a memory of its own (the guard's bad steps, the patience of early stopping, the figures of steps
that are not logged yet) is `Carried`. A checkpoint holds the memories of all of them, and of every rank, in
``whet-progress.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from whet.core.errors import ArtefactError, Problem
from whet.training.callbacks.saving import SaveBeside

FILE = "whet-progress.json"
_FORMAT = 1


class Carried:
    """A part of a run that a checkpoint must bring back.

    Attributes:
        carried_as: its entry in the file.
    """

    carried_as: str

    def carried(self) -> Any:
        """What it remembers now, on this rank, in JSON's values."""
        raise NotImplementedError

    def carry_on(self, value: Any) -> None:
        """Remember what `carried` was when the checkpoint was made."""
        raise NotImplementedError

    def shared_out(self, of_ranks: Sequence[Any], num_ranks: int) -> list[Any]:
        """What each of another number of ranks goes on from; by default what the first one remembered."""
        return [of_ranks[0]] * num_ranks


class Memory(SaveBeside):
    """Takes the memories of a run's parts for each checkpoint, and gives them back.

    Args:
        parts: each with an entry of its own.
        rank, world_size: of this process.
    """

    def __init__(self, parts: Iterable[Carried], rank: int = 0, world_size: int = 1) -> None:
        super().__init__(self._take, self._restore)
        self._parts = {part.carried_as: part for part in parts}
        self._rank, self._world_size = rank, world_size

    def _take(self) -> Callable[[Path], None]:
        """The memories now, as a function that writes them into a checkpoint's folder. All ranks take part."""
        own = {name: part.carried() for name, part in self._parts.items()}
        of_ranks: list[Any] = [own]
        if self._world_size > 1:
            of_ranks = [None] * self._world_size
            torch.distributed.all_gather_object(of_ranks, own)
        text = json.dumps({"format": _FORMAT, "ranks": of_ranks}) + "\n"

        def write(checkpoint: Path) -> None:
            (checkpoint / FILE).write_text(text, encoding="utf-8")

        return write

    def _restore(self, checkpoint: Path) -> None:
        """Give the parts what a checkpoint holds; a part that it does not know begins anew.

        Raises:
            ArtefactError: the file is damaged, or a part cannot go on from it.
        """
        ranks = read(checkpoint)
        for name, part in self._parts.items():
            known = [rank[name] for rank in ranks if name in rank]
            if not known:
                continue
            mine = known if len(known) == self._world_size else part.shared_out(known, self._world_size)
            part.carry_on(mine[self._rank])


def read(checkpoint: Path) -> list[dict[str, Any]]:
    """The memories of each rank in a checkpoint; empty where it has none (it is not whet's, or of an older version).

    Raises:
        ArtefactError: the file is damaged.
    """
    path = checkpoint / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ranks: list[dict[str, Any]] = content["ranks"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        found, fix = f"{FILE} cannot be read ({error})", "resume from another checkpoint"
        raise ArtefactError(Problem(str(path), found, fix)) from error
    return ranks
