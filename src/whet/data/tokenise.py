"""Rows -> token ids and which of them are trained, many rows at a time.

The ids of a text are what its tokenizer says, nothing added and nothing searched for. A token is trained if its first
character is: the ranges of trained characters come with the text (`whet.data.templates.render`), and the tokenizer
says which characters each token stands for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.core.errors import DataError, Problem, RowError
from whet.core.types import Conversation, Document, Preference, Sample, Tokens
from whet.data.formats import make_format
from whet.data.formats.base import CONFIGURED
from whet.data.templates.regions import Span, merged
from whet.data.templates.render import Rendered, Renderer, TrainPolicy
from whet.data.templates.resolve import dataset_place, policy_of, renderer_for, shipped_template
from whet.data.templates.traced import Traced, concat

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A sample for supervised training.

    Attributes:
        input_ids: int32[T].
        supervised: bool[T]; whether the token is a target.
    """

    input_ids: Ids
    supervised: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.input_ids)

    def chunks(self, size: int) -> list[Encoded]:
        """The sample in pieces of at most ``size`` tokens; the last one may be shorter."""
        cuts = range(0, len(self), size)
        return [Encoded(self.input_ids[at : at + size], self.supervised[at : at + size]) for at in cuts]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPreference:
    """A prompt and two answers, int32 each; ``prompt_ids + chosen_ids`` are the ids of the whole first conversation."""

    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token or, where a character takes several, a group of them, as text; for looking at."""

    text: str
    ids: tuple[int, ...]
    supervised: bool


class TextEncoder:
    """Rendered texts -> ids and labels.

    Args:
        tokenizer: a fast tokenizer of transformers.
        control: tokens, beside those the tokenizer calls special, that only a template may write.

    Raises:
        DataError: the tokenizer does not tell which characters a token stands for.
    """

    def __init__(self, tokenizer: Any, control: Sequence[str] = ()) -> None:
        if not getattr(tokenizer, "is_fast", False):
            found = f"{type(tokenizer).__name__} does not say which characters a token stands for"
            raise DataError(Problem("", found, "use a fast tokenizer (one with a tokenizer.json)", "tokenizer_type"))
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._control_names = {i: t.content for i, t in added.items() if t.special or t.content in control}
        self._is_control = np.zeros(max(len(tokenizer), max(added, default=0) + 1), dtype=np.bool_)
        self._is_control[list(self._control_names)] = True

    def encode(self, texts: Sequence[Rendered]) -> list[tuple[Ids, Any] | RowError]:
        """Ids of each text with the tokenizer's own record of characters, or why the text is refused.

        A control token in what comes from a row is refused: as an id it would let a row speak for the template,
        and cut into pieces it would not be what ``apply_chat_template`` makes of the row.
        """
        if not texts:
            return []
        batch = self.tokenizer(
            [rendered.text for rendered in texts],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [
            self._checked(np.array(ids, dtype=np.int32), encoding, rendered)
            for ids, encoding, rendered in zip(batch["input_ids"], batch.encodings, texts, strict=True)
        ]

    def _checked(self, ids: Ids, encoding: Any, rendered: Rendered) -> tuple[Ids, Any] | RowError:
        begins = [span.begin for span in rendered.written]
        for at in np.flatnonzero(self._is_control[ids]).tolist():
            begin, end = encoding.token_to_chars(at)
            after = bisect_left(begins, end)
            if after and rendered.written[after - 1].end > begin:
                name = self._control_names[int(ids[at])]
                near = rendered.text[max(0, begin - 20) : end + 20]
                return RowError("special token in content", f"the row's own text contains '{name}': ...{near!r}...")
        return ids, encoding

    def supervised(self, num_tokens: int, encoding: Any, spans: Sequence[Span]) -> npt.NDArray[np.bool_]:
        """bool[T]: whether each token's first character lies in one of the spans."""
        flags = np.zeros(num_tokens, dtype=np.bool_)
        for span in spans:
            flags[first_token(encoding, span.begin, num_tokens) : first_token(encoding, span.end, num_tokens)] = True
        return flags


def first_token(encoding: Any, char: int, num_tokens: int) -> int:
    """Number of the first token whose first character is ``char`` or comes after it.

    Some tokenizers do not count the white space of a token among its characters; it belongs to the token all the
    same, so a token begins where the one before it ends.
    """
    if char == 0:
        return 0
    token = encoding.char_to_token(char)
    at = char
    while token is None:
        at += 1
        if at > char + 4096 or at >= _end(encoding, num_tokens):
            return _after(encoding, char, num_tokens)
        token = encoding.char_to_token(at)
    begin = encoding.token_to_chars(token)[0]
    if token and begin > (previous := encoding.token_to_chars(token - 1)[1]):
        begin = previous
    return int(token) if begin >= char else int(token) + 1


def _end(encoding: Any, num_tokens: int) -> int:
    return int(encoding.token_to_chars(num_tokens - 1)[1]) if num_tokens else 0


def _after(encoding: Any, char: int, num_tokens: int) -> int:
    """As `first_token`, by bisection over the tokens' ends; for a character that no token stands for."""
    low, high = 0, num_tokens
    while low < high:
        middle = (low + high) // 2
        if encoding.token_to_chars(middle)[1] <= char:
            low = middle + 1
        else:
            high = middle
    return low


class SampleEncoder:
    """Reads, renders and tokenises the rows of one dataset.

    Args:
        dataset: its options.
        config: the config it belongs to.
        tokenizer: a fast tokenizer of transformers.

    Attributes:
        cuts_long_rows: samples are raw text; one of more than ``sequence_len`` tokens is cut with `Encoded.chunks`.

    Raises:
        ConfigError, DataError: the format, the chat template or the tokenizer cannot be used.
    """

    def __init__(self, dataset: DatasetConfig, config: Config, tokenizer: Any) -> None:
        self._format = make_format(dataset, config)
        self.cuts_long_rows: bool = self._format.cuts_long_rows
        self._policy = policy_of(config, dataset)
        self._tokenizer = tokenizer
        self._renderer: Renderer | None = None
        if self._format.template is not None:
            where = config.where((*dataset_place(config, dataset), "conversation"))
            own = None if self._format.template == CONFIGURED else shipped_template(self._format.template, where)
            self._renderer = renderer_for(config, dataset, tokenizer, own)
        self._texts = TextEncoder(tokenizer, self._renderer.control if self._renderer else ())
        self._adds_bos = _adds_bos(tokenizer)

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[Encoded | EncodedPreference | RowError]:
        """What becomes of each row, in order; a row that cannot be used becomes the reason why."""
        samples = [self._prepared(row) for row in rows]
        self._check_one(samples)
        texts = [text for sample in samples if not isinstance(sample, RowError) for text in sample.texts]
        coded = iter(self._texts.encode(texts))
        return [
            sample if isinstance(sample, RowError) else self._finished(sample, [next(coded) for _ in sample.texts])
            for sample in samples
        ]

    def _check_one(self, samples: Sequence[_Prepared | RowError]) -> None:
        """One render of every batch is compared with transformers' own: training on another text must not happen."""
        for prepared in samples:
            if isinstance(prepared, _Prepared) and isinstance(prepared.sample, Conversation) and self._renderer:
                self._renderer.check(prepared.sample, prepared.texts[0])
                return

    def _prepared(self, row: Mapping[str, Any]) -> _Prepared | RowError:
        try:
            sample = self._format.read(row)
            return _Prepared(sample, self._rendered(sample))
        except RowError as error:
            return error

    def _rendered(self, sample: Sample) -> tuple[Rendered, ...]:
        if isinstance(sample, Tokens):
            self._refuse_unknown_tokens(sample)
            return ()
        if isinstance(sample, Document):
            return (rendered_document(sample),)
        assert self._renderer is not None, "a format that gives conversations says which template they need"
        if isinstance(sample, Conversation):
            self._refuse_untrained(sample)
            return (self._renderer.render(sample, self._policy),)
        answers = (sample.chosen, sample.rejected)
        conversations = [Conversation((*sample.prompt, *answer), sample.tools) for answer in answers]
        return tuple(self._renderer.render(conversation, _ANSWERS) for conversation in conversations)

    def _refuse_unknown_tokens(self, sample: Tokens) -> None:
        size = len(self._tokenizer)
        wrong = next((token for token in sample.input_ids if not 0 <= token < size), None)
        if wrong is not None:
            raise RowError("unknown token id", f"{wrong} is not below {size}, the size of the tokenizer's vocabulary")

    def _refuse_untrained(self, conversation: Conversation) -> None:
        turns = conversation.turns
        if not any(self._policy.trains(turn.role) if turn.train is None else turn.train for turn in turns):
            if any(detail.train for turn in turns for detail in turn.details):
                return
            wanted = " or ".join(sorted(self._policy.roles or ()))
            roles = ", ".join(dict.fromkeys(turn.role for turn in turns))
            raise RowError(f"no {wanted} turn", f"its turns are of: {roles}" if roles else "it has no turns")

    def _finished(
        self, sample: _Prepared, coded: list[tuple[Ids, Any] | RowError]
    ) -> Encoded | EncodedPreference | RowError:
        for result in coded:
            if isinstance(result, RowError):
                return result
        good = [result for result in coded if not isinstance(result, RowError)]
        if isinstance(sample.sample, Preference):
            return _preference(sample.sample, sample.texts, good)
        encoded = self._labelled(sample, good)
        if not encoded.supervised.any():
            return RowError("nothing to train", f"none of its {len(encoded)} tokens is trained")
        return encoded

    def _labelled(self, prepared: _Prepared, coded: list[tuple[Ids, Any]]) -> Encoded:
        sample = prepared.sample
        if isinstance(sample, Tokens):
            return Encoded(np.array(sample.input_ids, np.int32), np.array(sample.supervised, np.bool_))
        (ids, encoding), (rendered,) = coded[0], prepared.texts
        encoded = Encoded(ids, self._texts.supervised(len(ids), encoding, rendered.spans))
        return self._framed(sample, encoded) if isinstance(sample, Document) else encoded

    def _framed(self, document: Document, encoded: Encoded) -> Encoded:
        """With the tokens that a raw text gets at its ends: BOS as this tokenizer does it, EOS if it is not there."""
        ids, supervised = [encoded.input_ids], [encoded.supervised]
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        first, last = (ids[0][:1].tolist(), ids[0][-1:].tolist())
        if document.add_bos and self._adds_bos and first != [bos]:
            ids.insert(0, np.array([bos], np.int32))
            supervised.insert(0, np.zeros(1, np.bool_))
        if document.add_eos and eos is not None and last != [eos]:
            ids.append(np.array([eos], np.int32))
            supervised.append(np.array([bool(document.segments) and document.segments[-1].train]))
        return Encoded(np.concatenate(ids), np.concatenate(supervised))


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A sample and the texts to tokenise for it: none, one, or two for a preference."""

    sample: Sample
    texts: tuple[Rendered, ...]


#: The answers of a preference are what the assistant says, whatever a dataset trains.
_ANSWERS = TrainPolicy()


def rendered_document(document: Document) -> Rendered:
    """A raw text as one string, with the ranges of its trained segments.

    Traced segments are a row's own text in a prompt of ours: control tokens are refused in them.
    """
    spans = []
    at = 0
    for segment in document.segments:
        if segment.train:
            spans.append(Span(at, at + len(segment.text)))
        at += len(segment.text)
    text = concat([segment.text for segment in document.segments])
    runs = text.runs if isinstance(text, Traced) else ()
    return Rendered(str.__str__(text), merged(spans), merged(Span(run.begin, run.end) for run in runs))


def _preference(
    sample: Preference, texts: Sequence[Rendered], coded: Sequence[tuple[Ids, Any]]
) -> EncodedPreference | RowError:
    """Both conversations cut where the answer begins.

    The first token that differs between them belongs to the answer even where it begins in the prompt's last
    characters; a template that writes the prompt differently for each answer is refused.
    """
    first = len(sample.prompt)
    cut: list[tuple[Ids, int, int]] = []
    for rendered, (ids, encoding) in zip(texts, coded, strict=True):
        answer = [region for region in rendered.regions if region.message >= first]
        if not answer or answer[0].message != first:
            return RowError("no assistant turn", "the chat template does not write the answer")
        end = max(region.stop.end if region.stop else region.end for region in answer)
        begin_token = first_token(encoding, answer[0].begin, len(ids))
        cut.append((ids, begin_token, first_token(encoding, end, len(ids))))
    (chosen, chosen_begin, chosen_end), (rejected, rejected_begin, rejected_end) = cut
    if np.array_equal(chosen[:chosen_end], rejected[:rejected_end]):
        return RowError("answers are equal", "chosen and rejected are the same tokens, so nothing is to be preferred")
    begin = min(chosen_begin, rejected_begin)
    same = chosen[:begin] == rejected[:begin]
    shared = begin if same.all() else int(np.argmin(same))
    if shared < begin - 1:
        return RowError("prompts differ", "the chat template writes the prompt differently for the two answers")
    return EncodedPreference(chosen[:shared], chosen[shared:chosen_end], rejected[shared:rejected_end])


def _adds_bos(tokenizer: Any) -> bool:
    """Whether this tokenizer puts a BOS before a text by itself."""
    if tokenizer.bos_token_id is None:
        return False
    return bool(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])


def explain_tokens(encoded: Encoded, tokenizer: Any) -> list[TokenText]:
    """The sample as pieces of text with their labels, for a person to look at.

    Tokens that are parts of one character come together.
    """
    pieces: list[TokenText] = []
    group: list[int] = []
    labels = encoded.supervised.tolist()
    for at, token in enumerate(encoded.input_ids.tolist()):
        group.append(token)
        text = tokenizer.decode(group, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and len(group) < 8 and at + 1 < len(labels) and labels[at + 1] == labels[at]:
            continue
        pieces.append(TokenText(text, tuple(group), labels[at]))
        group = []
    return pieces
