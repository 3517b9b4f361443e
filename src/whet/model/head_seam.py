"""Taking over a model's output head for the length of one forward.

The loss has to be computed where the hidden states meet the head: inside the model's own forward, so that the wrappers
around it (DistributedDataParallel, FSDP, autocast, torch.compile, PEFT) see one forward with all parameters in it. So,
while the model runs, its head answers with the loss in place of logits: `forward` of that one module instance is
replaced, there being no public seam between hidden states and logits, and put back after.

What the model does to its logits after the head (soft-capping, scaling) is not read from a list of families: the head
is made to answer with known numbers once, and what becomes of them tells (`probe`). A model of which that cannot be
told computes its logits itself (`whet.model.loss`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn.functional import linear

from whet.model.head_loss import HeadWeights, head_loss
from whet.model.head_packages import PACKAGE_HEADS
from whet.model.loss_terms import LogitForm, LossPlan

PROBE_TOKENS = 4
FAILURES_OF_PROBE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a forward may raise that does not expect to be asked like this; then the model is taken as it is."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a model's own logits are used, in words that follow "because"."""

    reason: str


@dataclass(frozen=True, slots=True)
class LoraHead:
    """A LoRA on the head: `reduce` gives [N, K] from hidden states, `expand` is the other half's weight [V, K]."""

    reduce: Callable[[torch.Tensor], torch.Tensor]
    expand: torch.Tensor


@dataclass(frozen=True, slots=True)
class HeadParts:
    """What an output layer computes with."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    lora: LoraHead | None = None

    def weights_for(self, hidden_NH: torch.Tensor) -> HeadWeights:
        """The head for these hidden states."""
        if self.lora is None:
            return HeadWeights(self.weight, self.bias)
        return HeadWeights(self.weight, self.bias, self.lora.reduce(hidden_NH), self.lora.expand)


class HeadSeam:
    """A model's head, and what its forward does after it."""

    def __init__(self, head: torch.nn.Module, form: LogitForm) -> None:
        self.head, self.form = head, form
        self._job: tuple[torch.Tensor, torch.Tensor, LossPlan] | None = None
        self._result: tuple[torch.Tensor, torch.Tensor] | None = None
        self._answer: Callable[[torch.Tensor], torch.Tensor] = self._loss_in_place_of_logits
        self._is_for_compiled = False

    def loss(
        self, forward: Callable[[], Any], positions_N: torch.Tensor, targets_N: torch.Tensor, plan: LossPlan
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Run a forward with the head taken over.

        Args:
            positions_N: where predictions are made, as indices into the flattened tokens.

        Returns:
            What `head_loss` returns, and the model's output, whose logits mean nothing.
        """
        self._prepare_for_compiled()
        self._job, self._result = (positions_N, targets_N, plan), None
        try:
            with answering(self.head, self._answer):
                output = forward()
            result: tuple[torch.Tensor, torch.Tensor] | None = self._result
            assert result is not None, "the forward went past the head"
            return *result, output
        finally:
            self._job = self._result = None

    def _prepare_for_compiled(self) -> None:
        """Keep torch.compile out of the loss, by one object for all calls, for it compiles anew for each new one.

        Its package takes a second to import, so a run that compiles nothing is spared it.
        """
        if not self._is_for_compiled and "torch._dynamo" in sys.modules:
            disable: Callable[[Any], Callable[[torch.Tensor], torch.Tensor]] = torch.compiler.disable
            self._answer, self._is_for_compiled = disable(self._loss_in_place_of_logits), True

    def _loss_in_place_of_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        assert self._job is not None
        positions_N, targets_N, plan = self._job
        parts = read_head(self.head)
        assert isinstance(parts, HeadParts)
        hidden_NH = hidden.flatten(0, -2).index_select(0, positions_N)
        head = parts.weights_for(hidden_NH)
        if plan.head in PACKAGE_HEADS and len(targets_N):
            per_token = PACKAGE_HEADS[plan.head](hidden_NH, head, targets_N, self.form)
            self._result = per_token.sum(), per_token.detach()
        else:
            rows = -(-len(targets_N) // plan.num_chunks) if plan.num_chunks else None
            self._result = head_loss(hidden_NH, head, targets_N, self.form, plan.terms, chunk_rows=rows)
        # Joined to the graph: DistributedDataParallel finds the parameters of a step by what the model returns.
        return self._result[0].expand(*hidden.shape[:-1], 1)


@contextmanager
def answering(head: torch.nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Let a module instance compute something else."""
    head.forward = forward
    try:
        yield
    finally:
        del head.forward


_SEAMS: WeakKeyDictionary[torch.nn.Module, HeadSeam | Refusal] = WeakKeyDictionary()


def seam_of(model: torch.nn.Module) -> HeadSeam | Refusal:
    """The seam of a transformers model, probed once for each output layer it has had.

    Args:
        model: without wrappers (`whet.model.loss.innermost`).
    """
    known = _SEAMS.get(model)
    head = output_layer(model)
    if known is None or (isinstance(known, HeadSeam) and known.head is not head):
        known = _SEAMS[model] = probe(model)
    return known


def output_layer(model: torch.nn.Module) -> torch.nn.Module | None:
    """The module that makes logits; None where the model names none."""
    named: Callable[[], Any] | None = getattr(model, "get_output_embeddings", None)
    try:
        head = named() if named is not None else None
    except (AttributeError, NotImplementedError):
        return None
    return head if isinstance(head, torch.nn.Module) else None


def read_head(head: torch.nn.Module) -> HeadParts | Refusal:
    """The numbers of an output layer: a linear layer, alone or under PEFT's LoRA or full copy (`modules_to_save`)."""
    kind = type(head)
    if kind.__module__.startswith("peft."):
        return _read_peft(head)
    if kind.forward is not torch.nn.Linear.forward:
        return Refusal(f"its output layer is a {kind.__name__}")
    assert isinstance(head, torch.nn.Linear)
    weight, bias = head.weight, head.bias
    if type(weight.data) is not torch.Tensor or not weight.is_floating_point():
        return Refusal(f"the weight of its output layer is a {type(weight.data).__name__}")
    return HeadParts(weight, bias)


def _read_peft(head: Any) -> HeadParts | Refusal:
    name = type(head).__name__
    if name == "ModulesToSaveWrapper":
        active = [] if head.disable_adapters else head.active_adapters
        return read_head(head.modules_to_save[active[0]] if active else head.original_module)
    if name != "Linear" or not hasattr(head, "lora_A"):
        return Refusal(f"its output layer is PEFT's {name}")
    base = read_head(head.get_base_layer())
    active = [each for each in head.active_adapters if each in head.lora_A]
    if isinstance(base, Refusal) or head.disable_adapters or head.merged or not active:
        return base
    adapter = active[0]
    down, up = head.lora_A[adapter], head.lora_B[adapter]
    if len(active) > 1 or adapter in getattr(head, "lora_variant", {}) or up.bias is not None or head.fan_in_fan_out:
        return Refusal("the adapter of its output layer is more than one plain LoRA")
    dropout, scaling = head.lora_dropout[adapter], head.scaling[adapter]

    def reduce(hidden_NH: torch.Tensor) -> torch.Tensor:
        reduced: torch.Tensor = down(dropout(hidden_NH.to(down.weight.dtype))) * scaling
        return reduced

    return HeadParts(base.weight, base.bias, LoraHead(reduce, up.weight))


def probe(model: torch.nn.Module) -> HeadSeam | Refusal:
    """Run four tokens with a head that answers with known numbers, and tell from the logits what was done to them."""
    head = output_layer(model)
    if head is None:
        return Refusal("it names no output layer")
    if "forward" in vars(head):
        return Refusal("the forward of its output layer has been replaced")
    parts = read_head(head)
    if isinstance(parts, Refusal):
        return parts
    asked: list[torch.Tensor] = []
    answer = _known_numbers(parts.weight.shape[0]).to(parts.weight.device)

    def known(hidden: torch.Tensor) -> torch.Tensor:
        asked.append(hidden)
        return answer

    try:
        with _as_in_evaluation(model), _one_dtype(model), torch.no_grad():
            ids = torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device=parts.weight.device)
            with answering(head, known):
                logits = model(input_ids=ids, use_cache=False).logits
            if [tuple(each.shape) for each in asked] != [(1, PROBE_TOKENS, parts.weight.shape[1])]:
                return Refusal("its forward does not give its output layer each token once")
            if not _computes(head, parts, asked[0].to(parts.weight.dtype)):
                return Refusal("its output layer is not the linear layer that it looks like")
    except FAILURES_OF_PROBE as error:
        return Refusal(f"its forward fails on four tokens ({type(error).__name__}: {str(error)[:120]})")
    form = _fit(answer, logits)
    return HeadSeam(head, form) if form is not None else Refusal("its logits are not those of its output layer")


def _known_numbers(vocabulary: int) -> torch.Tensor:
    """fp32[1, 4, V] of all magnitudes; the first two tell the slope at zero and the value far out."""
    numbers = torch.linspace(-3.0, 3.0, PROBE_TOKENS * vocabulary).pow(5)
    numbers = numbers[torch.arange(len(numbers)).mul_(7919).remainder_(len(numbers))]
    numbers[0], numbers[1] = 1e-3, 1e9
    return numbers.view(1, PROBE_TOKENS, vocabulary)


def _fit(given: torch.Tensor, found: Any) -> LogitForm | None:
    """The form that turns ``given`` into ``found``, or None."""
    if not isinstance(found, torch.Tensor) or found.shape != given.shape:
        return None
    if torch.equal(found, given):
        return LogitForm()
    found = found.float()
    slope, far = float(found[0, 0, 0] / given[0, 0, 0]), float(found[0, 0, 1])
    form = LogitForm(slope, None if abs(far / (slope * 1e9) - 1) < 1e-3 else far) if slope else None
    if form is None or not torch.allclose(form.apply(given), found, rtol=1e-4, atol=1e-5):
        return None
    return form


def _computes(head: torch.nn.Module, parts: HeadParts, hidden: torch.Tensor) -> bool:
    product = linear(hidden, parts.weight, parts.bias)
    if parts.lora is not None:
        product = product + linear(parts.lora.reduce(hidden).to(product.dtype), parts.lora.expand.to(product.dtype))
    difference = (head(hidden) - product).float().norm()
    return bool(difference <= (1e-5 if product.dtype == torch.float32 else 2e-2) * product.float().norm())


@contextmanager
def _as_in_evaluation(model: torch.nn.Module) -> Iterator[None]:
    """No dropout and no noise, so that no random number is drawn; every module is left in the mode it came in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _one_dtype(model: torch.nn.Module) -> torch.autocast:
    """Autocast for a model whose parts are of several dtypes, which only runs under it."""
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    half = [parameter.dtype for parameter in parameters if parameter.dtype in (torch.bfloat16, torch.float16)]
    device_type = parameters[0].device.type if parameters else "cpu"
    mixed = 0 < len(half) < len(parameters)
    return torch.autocast(device_type, dtype=half[0] if mixed else torch.bfloat16, enabled=mixed)
