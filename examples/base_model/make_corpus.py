"""Writes the text the base model is pre-trained on: documents full of invented values that come back.

    python -m examples.base_model.make_corpus        (from the root of the repository; ten seconds)

A language model of four million parameters cannot know much, but it can learn to read: to find a value in its context
and to write it down again, letter by letter, in another form. That is what this text is made of: records and the prose
about them, tables, letters, dialogues, mail headers, lists, logs, source code, questions and answers. The docstrings of
the running interpreter's standard library (PSF licence) add plain technical English. Nothing here is in the
chat format, nothing is JSON with the quickstart's keys, and a document in which a value of
``examples/quickstart/heldout.jsonl`` appears is not written.

Each output line is ``{"text": ...}``, which whet reads as ``type: completion``.
"""

# ruff: noqa: SIM905 - words are easier to read and to add to as words than as quoted lists

from __future__ import annotations

import argparse
import json
import pkgutil
import pydoc
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from examples.invented import MONTHS, Inventor, values_in
from examples.quickstart.make_data import held_out_values

SEED = 7
NUM_DOCUMENTS = 36_000
DOCUMENT_CHARS = 600
DOCSTRING_SHARE = 0.08
DEFAULT_OUTPUT = Path("outputs/base_model/corpus.jsonl")

NOUNS = (
    "lamp chair table kettle basket rope ladder mirror clock blanket saddle barrel lantern window door carpet map "
    "compass violin drum flute pencil notebook letter parcel ticket bottle jar plate spoon knife hammer nail saw wheel "
    "wagon boat sail anchor net hook cart plough seed apple pear plum cherry melon onion carrot cabbage loaf cheese "
    "candle stove bucket brush broom needle thread button coat hat glove boot scarf ring coin purse key lock bell"
).split()
ADJECTIVES = (
    "old new small large red blue green heavy light broken clean round narrow wide quiet bright dark plain fine cheap "
    "rare wooden iron silver woollen painted folded empty full lost spare second early late"
).split()
VERBS = "bought sold found lost mended borrowed returned painted carried hid measured ordered packed sent kept".split()
ROLES = "baker miller teacher sailor farmer doctor clerk driver painter tailor smith guard cook nurse mason".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
UNITS = "crowns pieces pounds litres metres boxes copies miles hours pages".split()
NAME_LABELS = ("Name", "Customer", "Guest", "Author", "Sender", "Owner", "Member", "Driver", "Passenger", "Tenant")
PLACE_LABELS = ("Town", "Home", "Place", "Address", "Harbour", "Station", "Branch", "Destination", "Region")
CODE_LABELS = ("Reference", "Code", "Ticket", "Licence", "Invoice", "Part", "Serial", "File", "Room")
NUMBER_LABELS = ("Sum", "Price", "Count", "Amount", "Weight", "Distance", "Balance", "Fee", "Score", "Stock")

Section = Callable[[Inventor], str]


def _money(invent: Inventor) -> int:
    return invent.number(1, 99_999)


def _thing(invent: Inventor) -> str:
    return f"{invent.rng.choice(ADJECTIVES)} {invent.rng.choice(NOUNS)}"


def _fields(invent: Inventor) -> list[tuple[str, str]]:
    """Three to five labelled values in random order, no label twice."""
    rng = invent.rng
    fields = [
        (rng.choice(NAME_LABELS), invent.person()),
        (rng.choice(PLACE_LABELS), invent.word()),
        (rng.choice(CODE_LABELS), invent.code()),
        (rng.choice(NUMBER_LABELS), str(_money(invent))),
        ("Date", _iso(invent.date())),
    ]
    rng.shuffle(fields)
    return fields[: rng.randint(3, 5)]


def _iso(date: tuple[int, int, int]) -> str:
    return "{:04d}-{:02d}-{:02d}".format(*date)


def _spoken(date: tuple[int, int, int]) -> str:
    return f"{date[2]} {MONTHS[date[1] - 1]} {date[0]}"


def record_twice(invent: Inventor) -> str:
    """The same record in two notations, the second in its own order."""
    fields = _fields(invent)
    again = invent.rng.sample(fields, len(fields))
    first, second = invent.rng.sample(_NOTATIONS, 2)
    return f"{first(fields)}\n{second(again)}"


def _colons(fields: list[tuple[str, str]]) -> str:
    return "\n".join(f"{label}: {value}" for label, value in fields)


def _equals(fields: list[tuple[str, str]]) -> str:
    return "; ".join(f"{label.lower()}={value}" for label, value in fields)


def _quoted(fields: list[tuple[str, str]]) -> str:
    return "{" + ", ".join(f'"{label.lower()}": "{value}"' for label, value in fields) + "}"


def _tags(fields: list[tuple[str, str]]) -> str:
    return "".join(f"<{label.lower()}>{value}</{label.lower()}>" for label, value in fields)


def _bullets(fields: list[tuple[str, str]]) -> str:
    return "\n".join(f"- {label.lower()} {value}" for label, value in fields)


def _of_sentence(fields: list[tuple[str, str]]) -> str:
    return " ".join(f"The {label.lower()} is {value}." for label, value in fields)


def _bars(fields: list[tuple[str, str]]) -> str:
    return " | ".join(value for _, value in fields) + "\n" + " | ".join(label for label, _ in fields)


_NOTATIONS = (_colons, _equals, _quoted, _tags, _bullets, _of_sentence, _bars)

_PURCHASES = (
    "{name} came from {city} and paid {total} {unit} for a {thing}; the receipt says {order}.",
    "On {day} {name} of {city} ordered a {thing} for {total} {unit} under {order}.",
    "Under {order} we find {name}, {city}, who owes {total} {unit}.",
    "In {city} lives {name}, a {role}. The {thing} has the number {order} and weighs {total} {unit}.",
    "It was {name} who sent {order} to {city}. That took {total} {unit}.",
    "{total} {unit} were paid in {city} by {name}, see {order}.",
    "The {role} {name} left {city} with {order} and {total} {unit}.",
    "{order} belongs to {name}. The {role} keeps it in {city} beside {total} {unit} of rope.",
    "{city}: {name} {verb} a {thing}, {total} {unit}, number {order}.",
    "From {city} we hear that {order} costs {total} {unit}. {name} wants it.",
)
_NOTES = (
    "Note. {name} / {city} / {order} / {total}",
    "In short: {order}, {total} {unit}, {city}, {name}.",
    "{name} ({city}): {total} {unit}, {order}.",
    "Who: {name}. Where: {city}. What: {order}. How much: {total}.",
    "person: {name}\nplace: {city}\nnumber: {order}\namount: {total}",
    '[{order}] "{name}" "{city}" {total}',
    '{{"order_number": "{order}", "who": "{name}", "amount": {total}, "where": "{city}"}}',
    '{{"person": {{"full_name": "{name}", "lives_in": "{city}"}}, "receipt": "{order}", "sum": {total}}}',
    "<sale number='{order}' sum='{total}'><who>{name}</who><where>{city}</where></sale>",
    "{total} {unit}\n{order}\n{city}\n{name}",
)


def purchase(invent: Inventor) -> str:
    """A sentence about a purchase, and a note that repeats its values."""
    values = _purchase_values(invent)
    return f"{invent.rng.choice(_PURCHASES).format(**values)}\n{invent.rng.choice(_NOTES).format(**values)}"


def note_first(invent: Inventor) -> str:
    """The note first, and two sentences that tell it."""
    values = _purchase_values(invent)
    first, second = invent.rng.sample(_PURCHASES, 2)
    return f"{invent.rng.choice(_NOTES).format(**values)}\n{first.format(**values)} {second.format(**values)}"


def _purchase_values(invent: Inventor) -> dict[str, object]:
    draw = invent.rng.choice
    return {
        "name": invent.person(),
        "city": invent.word(),
        "order": invent.code(),
        "total": _money(invent),
        "unit": draw(UNITS),
        "thing": _thing(invent),
        "day": draw(DAYS),
        "role": draw(ROLES),
        "verb": draw(VERBS),
    }


def table(invent: Inventor) -> str:
    """A table with three to five rows, then some of its rows told in another order."""
    rng = invent.rng
    rows = [(invent.person(), invent.word(), _money(invent)) for _ in range(rng.randint(3, 5))]
    separator = rng.choice((",", ";", "\t", " | "))
    lines = [separator.join(str(value) for value in row) for row in (("name", "town", "sum"), *rows)]
    telling = rng.choice(
        (
            "{0} from {1} has {2}.",
            "{1} is the home of {0}, who counts {2}.",
            "{2} goes to {0} in {1}.",
            "Name {0}, town {1}, sum {2}.",
        )
    )
    told = [telling.format(*row) for row in rng.sample(rows, rng.randint(2, len(rows)))]
    return "\n".join(lines + told)


def lookup(invent: Inventor) -> str:
    """A few facts, then questions that each ask for one of them."""
    rng = invent.rng
    people = [(invent.person(), invent.word(), _thing(invent), invent.code()) for _ in range(rng.randint(2, 3))]
    facts = [
        rng.choice(
            (
                "{0} lives in {1} and owns a {2} with the number {3}.",
                "In {1}, {0} keeps a {2}, number {3}.",
                "The {2} of {0} is marked {3}; it stands in {1}.",
            )
        ).format(*person)
        for person in people
    ]
    questions = []
    for name, town, thing, code in rng.sample(people * 2, len(people) + 1):
        question, answer = rng.choice(
            (
                (f"Where does {name} live?", f"{name} lives in {town}."),
                (f"Who lives in {town}?", name),
                (f"What is number {code}?", f"The {thing} of {name}."),
                (f"What number has the {thing} of {name}?", code),
                (f"Which town is {code} in?", town),
            )
        )
        questions.append(f"Q: {question}\nA: {answer}")
    return " ".join(facts) + "\n" + "\n".join(questions)


def letter(invent: Inventor) -> str:
    """A letter whose names come back in address, greeting and signature."""
    rng = invent.rng
    to, sender, town, code, total = invent.person(), invent.person(), invent.word(), invent.code(), _money(invent)
    date = invent.date()
    mail = f"{to.lower().replace(' ', '.')}@{town.lower()}.{rng.choice(('org', 'net', 'example'))}"
    return (
        f"From: {sender}\nTo: {to} <{mail}>\nSubject: {code}, {town}, {_iso(date)}\n\n"
        f"Dear {to},\nthank you for your letter of {_spoken(date)} from {town}. The {_thing(invent)} {code} costs "
        f"{total} {rng.choice(UNITS)}. Please send {total} to {sender}, or write to {mail}.\nYours, {sender}"
    )


def dialogue(invent: Inventor) -> str:
    """Two people who repeat what the other said."""
    rng = invent.rng
    one, two = invent.word(), invent.word()
    lines = [f"{one}: My name is {one}. Who are you?", f"{two}: Hello {one}, I am {two}."]
    for _ in range(rng.randint(1, 3)):
        value, ask = rng.choice(
            (
                (invent.word(), "Which town do you come from?"),
                (invent.code(), "Which number is on the ticket?"),
                (str(_money(invent)), f"How many {rng.choice(UNITS)} are left?"),
                (invent.person(), f"Who {rng.choice(VERBS)} the {_thing(invent)}?"),
                (_spoken(invent.date()), "When was that?"),
            )
        )
        asks, says = rng.sample((one, two), 2)
        lines += [f"{asks}: {ask}", f"{says}: {value}.", f"{asks}: {value}, I see."]
    return "\n".join(lines)


def list_again(invent: Inventor) -> str:
    """A list, and the list again: as it was, backwards, numbered, or without one entry."""
    rng = invent.rng
    make = rng.choice((invent.word, invent.person, invent.code, lambda: str(_money(invent)), invent.stem))
    items = [make() for _ in range(rng.randint(3, 7))]
    first = rng.choice((", ", "\n", " ", "; ", " - ")).join(items)
    kind = rng.randrange(4)
    if kind == 0:
        return f"Guests: {first}\nArrived: {', '.join(items)}"
    if kind == 1:
        return f"List: {first}\nBackwards: {', '.join(reversed(items))}"
    if kind == 2:
        return f"{first}\n" + "\n".join(f"{index}. {item}" for index, item in enumerate(items, 1))
    gone = rng.choice(items)
    return f"Present: {first}\n{gone} leaves.\nPresent: {', '.join(item for item in items if item != gone)}"


def copies(invent: Inventor) -> str:
    """Strings without any sense, each written twice or three times."""
    rng = invent.rng
    letters, digits = "abcdefghijklmnopqrstuvwxyz", "0123456789"
    alphabet = rng.choice((letters, letters.upper() + digits, digits, "aeioubdkt "))
    lines = []
    for _ in range(rng.randint(2, 4)):
        text = "".join(rng.choices(alphabet, k=rng.randint(4, 14))).strip() or "x"
        lines.append(
            rng.choice(("{0} {0}", '"{0}" is {0}', "{0} -> {0} -> {0}", "write {0}: {0}", "[{0}] = [{0}]")).format(text)
        )
    return "\n".join(lines)


def repeated(invent: Inventor) -> str:
    """A line of unrelated words, two to four times."""
    rng = invent.rng
    makers = (
        invent.stem,
        invent.word,
        lambda: rng.choice(NOUNS),
        lambda: rng.choice(ADJECTIVES),
        lambda: str(rng.randint(0, 99)),
    )
    drawn = [rng.choice(makers)() for _ in range(rng.randint(4, 14))]
    line = rng.choice((" ", " ", ", ", "-", "/", "\n")).join(drawn)
    return rng.choice(("\n", "\n", " ", "\nagain: ", " = ")).join([line] * rng.randint(2, 4))


def log(invent: Inventor) -> str:
    """Lines of a log in which a few ids come back, and a summary of one of them."""
    rng = invent.rng
    owners = {invent.code(): invent.word() for _ in range(2)}
    hour = rng.randint(0, 22)
    lines = []
    for minute in sorted(rng.sample(range(60), rng.randint(4, 6))):
        code = rng.choice(list(owners))
        event = rng.choice(("opened", "moved", "checked", "paid", "packed", "closed"))
        lines.append(f"{hour:02d}:{minute:02d} {code} {event} by {owners[code]}")
    return "\n".join(lines + [f"{code} belongs to {owner}" for code, owner in owners.items()])


def source_code(invent: Inventor) -> str:
    """Python in which names and values are used again, with what it prints."""
    rng = invent.rng
    variable, function, number = invent.stem(), invent.stem(), _money(invent)
    value = rng.choice((invent.word(), invent.person(), invent.code()))
    title = value.split()[0].split("-")[0].capitalize()
    return rng.choice(
        (
            f'{variable} = "{value}"\nprint({variable})\n# {value}',
            f'def {function}({variable}):\n    return "{value}, " + {variable}\n\n'
            f'{function}("{number}")\n# "{value}, {number}"',
            f'>>> {variable} = {{"{function}": "{value}", "size": {number}}}\n>>> {variable}["{function}"]\n'
            f"'{value}'\n>>> {variable}[\"size\"]\n{number}",
            f"class {title}:\n    {variable} = {number}\n    {function} = '{value}'\n\n"
            f"# {variable} is {number}, {function} is '{value}'",
        )
    )


def story(invent: Inventor) -> str:
    """Plain prose about two people whose names come back."""
    rng = invent.rng
    one, two, town = invent.word(), invent.word(), invent.word()
    thing, other = _thing(invent), _thing(invent)
    sentences = [
        f"{one} was a {rng.choice(ROLES)} in {town}.",
        f"One {rng.choice(DAYS)} {one} {rng.choice(VERBS)} a {thing} and showed it to {two}.",
        f'"Is that the {thing}?" asked {two}. "I would rather have a {other}."',
        f"{two} went back to {town} without the {thing}.",
        f'"{two}," said {one}, "in {town} nobody needs a {other}."',
        f"So {one} and {two} {rng.choice(VERBS)} the {other} together, and {town} was quiet again.",
        f"The {thing} stayed with {one}.",
    ]
    return " ".join(sentences[: rng.randint(3, 7)])


def dates(invent: Inventor) -> str:
    """Dates in two notations."""
    chosen = [invent.date() for _ in range(invent.rng.randint(2, 4))]
    notations = [lambda d: f"{_spoken(d)} is {_iso(d)}", lambda d: f"{_iso(d)}: {MONTHS[d[1] - 1]} {d[2]}, {d[0]}"]
    notation = invent.rng.choice(notations)
    return "\n".join(notation(date) for date in chosen)


def echo(invent: Inventor) -> str:
    """Any other section, and all of it again: quoted as in a mail, or read back."""
    makers, weights = zip(*SECTIONS, strict=True)
    text = invent.rng.choices(makers, weights)[0](invent)
    again = invent.rng.choice(("\n> ", "\n", "\n    ", "\n# "))
    return f"{text}\n{again}{text.replace(chr(10), again)}"


SECTIONS: tuple[tuple[Section, int], ...] = (
    (record_twice, 5),
    (purchase, 5),
    (note_first, 3),
    (table, 3),
    (lookup, 3),
    (letter, 2),
    (dialogue, 2),
    (list_again, 4),
    (copies, 3),
    (repeated, 5),
    (log, 1),
    (source_code, 2),
    (story, 2),
    (dates, 1),
)
ECHO_WEIGHT = 16


def document(invent: Inventor, num_chars: int) -> str:
    """Sections of all kinds, at least ``num_chars`` characters together."""
    makers, weights = zip(*SECTIONS, (echo, ECHO_WEIGHT), strict=True)
    parts: list[str] = []
    while sum(map(len, parts)) < num_chars:
        parts.append(invent.rng.choices(makers, weights)[0](invent))
    return "\n\n".join(parts)


def docstrings(num_chars: int) -> Iterator[str]:
    """Docstrings of the standard library's modules and their public members, in pieces of about ``num_chars``."""
    for module in sorted(info.name for info in pkgutil.iter_modules() if info.name in _QUIET_MODULES):
        loaded = pydoc.locate(module)
        members = [loaded] + [member for name, member in sorted(vars(loaded).items()) if not name.startswith("_")]
        for member in members:
            text = pydoc.getdoc(member)
            if len(text) > num_chars // 4:
                name = getattr(member, "__qualname__", module)
                yield f"{module}.{name}\n\n{text}"


_QUIET_MODULES = frozenset(
    "argparse ast base64 bisect calendar codecs collections configparser contextlib copy csv datetime decimal difflib "
    "dis email enum filecmp fileinput fnmatch fractions functools getopt glob gzip hashlib heapq html inspect io "
    "ipaddress json keyword linecache locale logging mimetypes numbers operator optparse os pathlib pickle platform "
    "pprint queue random re reprlib sched secrets shelve shlex shutil smtplib socket sqlite3 statistics string struct "
    "subprocess tarfile tempfile textwrap threading timeit tokenize traceback types typing unittest urllib uuid "
    "warnings wave weakref xml zipfile".split()
)


def corpus(num_documents: int, seed: int = SEED) -> Iterator[str]:
    """The documents, in order; none holds a held-out value."""
    held_out = held_out_values()
    invent = Inventor(random.Random(seed), avoid=held_out)
    library = list(docstrings(DOCUMENT_CHARS))
    num_written = 0
    while num_written < num_documents:
        if library and invent.rng.random() < DOCSTRING_SHARE:
            text = invent.rng.choice(library)
            start = invent.rng.randrange(0, max(1, len(text) - DOCUMENT_CHARS), 100)
            text = text[start : start + DOCUMENT_CHARS]
        else:
            text = document(invent, DOCUMENT_CHARS)
        if held_out.isdisjoint(values_in(text)):
            num_written += 1
            yield text


def main() -> None:
    """Writes the corpus; the same text for the same arguments and the same version of Python."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--num-documents", type=int, default=NUM_DOCUMENTS)
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    num_chars = 0
    with arguments.output.open("w", encoding="utf-8") as file:
        for text in corpus(arguments.num_documents):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            num_chars += len(text)
    print(f"{arguments.output}: {arguments.num_documents} documents, {num_chars / 1e6:.1f} million characters")


if __name__ == "__main__":
    main()
