"""Writes the quickstart's data: an English sentence about an order in, one JSON record out.

    python -m examples.quickstart.make_data        (from the root of the repository)

``heldout.jsonl`` is drawn first. No name, town, order code or total in it is ever drawn for ``train.jsonl``, nor for
the corpus of the base model (examples/base_model/make_corpus.py reads it and stays clear of it). ``preferences.jsonl``
holds the same task as pairs for ``rl: dpo``: the record is chosen, the bare values are rejected.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from examples.invented import Inventor, values_in

FOLDER = Path(__file__).parent
NUM_HELDOUT = 200
NUM_TRAIN = 4000
NUM_PREFERENCES = 300
SEED = 20

SENTENCES = (
    "{name} from {city} placed order {order} for {total} crowns.",
    "{name} of {city} owes {total} crowns for order {order}.",
    "Order {order} goes to {name} in {city}; the bill is {total} crowns.",
    "In {city}, {name} paid {total} crowns for {order}.",
    "A parcel marked {order}, worth {total} crowns, left for {city}, where {name} waits for it.",
    "We sent {order} to {city}. {name} signed for it and paid {total} crowns.",
    "The total of order {order} is {total} crowns, says {name} of {city}.",
    "{total} crowns were charged to {name} in {city}, order {order}.",
    "Please ship {order} to {name}, {city}, and charge {total} crowns.",
    "{city} called: {name} will collect {order} and bring {total} crowns.",
    "For {total} crowns, {name} bought what is listed under {order}; the shop in {city} has it ready.",
    "Our shop in {city} took {total} crowns from {name} this morning, see order {order}.",
    "{order} is late, and {name} in {city} wants the {total} crowns back.",
    "Yesterday {name} wrote from {city} about order {order}, a matter of {total} crowns.",
    "The driver reached {city} with {order}, but {name} refused to pay {total} crowns.",
    "{name}, who lives in {city}, settled {total} crowns by card; the order is {order}.",
)


Row = dict[str, Any]


def row(invent: Inventor) -> Row:
    """One conversation: the sentence, and the record as the assistant's answer."""
    record = {
        "name": invent.person(),
        "city": invent.word(),
        "order": invent.code(),
        "total": invent.number(1_000, 99_999),
    }
    sentence = invent.rng.choice(SENTENCES).format(**record)
    answer = json.dumps(record)
    return {"messages": [{"role": "user", "content": sentence}, {"role": "assistant", "content": answer}]}


def preference(invent: Inventor) -> Row:
    """The same question with a good and a bad answer."""
    question, answer = row(invent)["messages"]
    bare = ", ".join(str(value) for value in json.loads(answer["content"]).values())
    return {"prompt": question["content"], "chosen": answer["content"], "rejected": bare}


def answers_of(rows: Iterable[Row]) -> frozenset[str]:
    """The words, numbers and codes of all answers, without the four keys."""
    found: set[str] = set()
    for conversation in rows:
        record = json.loads(conversation["messages"][-1]["content"])
        found |= values_in(" ".join(str(value) for value in record.values()))
    return frozenset(found)


def read(path: Path) -> list[Row]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def held_out_values() -> frozenset[str]:
    """What must appear nowhere but in ``heldout.jsonl``."""
    return answers_of(read(FOLDER / "heldout.jsonl"))


def main() -> None:
    """Writes the three files; the same bytes each time."""
    invent = Inventor(random.Random(SEED))
    held_out = [row(invent) for _ in range(NUM_HELDOUT)]
    invent = Inventor(random.Random(SEED + 1), avoid=answers_of(held_out))
    train = [row(invent) for _ in range(NUM_TRAIN)]
    preferences = [preference(invent) for _ in range(NUM_PREFERENCES)]
    for name, rows in (("heldout", held_out), ("train", train), ("preferences", preferences)):
        text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in rows)
        (FOLDER / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
