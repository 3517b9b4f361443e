"""The loss of the output head in chunks is the loss of all logits at once, in value and in every gradient."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from whet.model.head_loss import CHUNK_BYTES, HeadWeights, head_loss, reference_head_loss, rows_of_chunk
from whet.model.loss_terms import LogitForm, LossTerms, normalised_entropy

HIDDEN, VOCABULARY, RANK = 13, 101, 3
FORMS = {
    "plain": LogitForm(),
    "scaled": LogitForm(0.0625),
    "capped": LogitForm(softcap=2.5),
    "scaled and capped": LogitForm(1.7, 3.0),
}
TERMS = {
    "plain": LossTerms(),
    "smoothed": LossTerms(label_smoothing=0.1),
    "z": LossTerms(z_loss=1e-2),
    "dft": LossTerms(weighting="dft"),
    "eaft": LossTerms(weighting="eaft", eaft_alpha=0.5, eaft_k=7),
    "all": LossTerms(label_smoothing=0.2, z_loss=1e-2, weighting="eaft"),
}
NAMES = ("hidden", "weight", "bias", "low_rank_in", "low_rank_out")


def random_head(num: int, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, torch.Tensor]:
    """Hidden states and a head with everything that one may have, wide enough for probabilities near 0 and 1."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(dtype).requires_grad_()

    shapes = ((num, HIDDEN), (VOCABULARY, HIDDEN), (VOCABULARY,), (num, RANK), (VOCABULARY, RANK))
    return {name: normal(*shape) for name, shape in zip(NAMES, shapes, strict=True)}


def random_targets(num: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (num,), generator=torch.Generator().manual_seed(1))


def outcome(
    loss: Any, given: dict[str, torch.Tensor], targets: torch.Tensor, upstream: float = 0.37, **how: Any
) -> Any:
    """The total, each token's cross-entropy, and the gradient of each tensor when the total is worth ``upstream``."""
    rest = {name: given.get(name) for name in NAMES[1:]}
    total, per_token = loss(given["hidden"], HeadWeights(**rest), targets, **how)
    leaves = [tensor for tensor in given.values() if tensor.requires_grad]
    found = torch.autograd.grad(total * upstream, leaves)
    gradients = dict(zip([name for name, tensor in given.items() if tensor.requires_grad], found, strict=True))
    return {"total": total.detach(), "per_token": per_token, **gradients}


@pytest.mark.parametrize("chunk_rows", [None, 1, 5, 12])
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_chunks_are_the_whole(form: LogitForm, terms: LossTerms, chunk_rows: int | None) -> None:
    """12 positions: one chunk, chunks of one, a last chunk that is short, one chunk exactly."""
    given, targets = random_head(12), random_targets(12)
    expected = outcome(reference_head_loss, given, targets, form=form, terms=terms)
    found = outcome(head_loss, given, targets, form=form, terms=terms, chunk_rows=chunk_rows)
    assert found.keys() == expected.keys() == {"total", "per_token", *NAMES}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-5, msg=lambda text, of=name: f"{of}: {text}")


@pytest.mark.parametrize("terms", [TERMS["plain"], TERMS["all"]], ids=["plain", "all"])
def test_gradients_are_those_of_differences(terms: LossTerms) -> None:
    """Not one formula of ours against another: the value's own slope, in float64-like steps, for the plain loss."""
    given, targets = random_head(4, seed=3), random_targets(4)
    smooth = LossTerms(label_smoothing=terms.label_smoothing, z_loss=terms.z_loss)  # weights carry no gradient
    found = outcome(head_loss, given, targets, 1.0, form=FORMS["scaled and capped"], terms=smooth, chunk_rows=3)
    for name, tensor in given.items():
        direction = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(5)).double()

        def total_at(step: float, name: str = name, direction: torch.Tensor = direction) -> float:
            moved = {other: each.detach().double() for other, each in given.items()}
            moved[name] = moved[name] + step * direction
            product = moved["hidden"] @ moved["weight"].T + moved["bias"]
            logits = (product + moved["low_rank_in"] @ moved["low_rank_out"].T) * 1.7
            log_p = (3.0 * (logits / 3.0).tanh()).log_softmax(-1)
            ce = -log_p.gather(1, targets[:, None]).sum()
            z = ((3.0 * (logits / 3.0).tanh()).logsumexp(-1) ** 2).sum()
            e = smooth.label_smoothing
            return float((1 - e) * ce - e * log_p.mean(-1).sum() + smooth.z_loss * z)

        slope = (total_at(1e-4) - total_at(-1e-4)) / 2e-4
        assert float((found[name].double() * direction).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-3)


def test_only_what_needs_a_gradient_gets_one() -> None:
    """A frozen head under a LoRA: no gradient of the weight is formed, and none is asked back."""
    given, targets = random_head(9), random_targets(9)
    for name in ("weight", "bias"):
        given[name].requires_grad_(False)
    expected = outcome(reference_head_loss, given, targets)
    found = outcome(head_loss, given, targets, chunk_rows=4)
    assert found.keys() == expected.keys() == {"total", "per_token", "hidden", "low_rank_in", "low_rank_out"}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_without_targets_the_loss_is_zero_and_so_are_the_gradients() -> None:
    found = outcome(head_loss, random_head(0), random_targets(0))
    assert (float(found["total"]), found["per_token"].shape) == (0.0, (0,))
    assert all(float(found[name].abs().sum()) == 0.0 for name in NAMES)


def test_nothing_is_computed_for_gradients_that_nobody_asked_for() -> None:
    given, targets = random_head(9), random_targets(9)
    head = HeadWeights(given["weight"])
    with torch.no_grad(), CountingProducts() as products:
        total, per_token = head_loss(given["hidden"], head, targets, chunk_rows=3)
    assert not total.requires_grad
    torch.testing.assert_close(per_token, reference_head_loss(given["hidden"], head, targets)[1])
    assert products.count == 3


def test_a_second_backward_pass_is_refused_rather_than_wrong() -> None:
    given = random_head(3)
    total, _ = head_loss(given["hidden"], HeadWeights(given["weight"]), random_targets(3))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        total.backward()


@pytest.mark.parametrize("weights_dtype", [torch.bfloat16, torch.float32], ids=["bf16 weights", "autocast"])
def test_bf16_products_are_summed_in_fp32(weights_dtype: torch.dtype) -> None:
    """As close to fp32 as the eager twin in bf16 is, over many chunks too."""
    num = 257
    given, targets = random_head(num, dtype=weights_dtype), random_targets(num)
    exact = outcome(reference_head_loss, {k: v.detach().float().requires_grad_() for k, v in given.items()}, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        eager = outcome(reference_head_loss, given, targets)
        found = outcome(head_loss, given, targets, chunk_rows=16)
    assert found["total"].dtype == found["per_token"].dtype == torch.float32
    for name, value in exact.items():
        assert found[name].dtype == eager[name].dtype
        error, of_eager = (float((each[name].float() - value).norm() / value.norm()) for each in (found, eager))
        assert error <= max(2 * of_eager, 1e-3), name


def test_fp16_gradients_do_not_overflow() -> None:
    """The gradient of a sum over many positions passes what fp16 can hold before the backward pass scales it down."""
    given = {name: tensor.detach().half() for name, tensor in random_head(64).items()}
    given["hidden"] = torch.full((64, HIDDEN), 2000.0, dtype=torch.float16)
    weight = given["weight"].mul_(1e-3).float().requires_grad_()
    targets = torch.zeros(64, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.float16):
        total, _ = head_loss(given["hidden"], HeadWeights(weight), targets, chunk_rows=32)
    (total / 1000).backward()
    assert weight.grad is not None
    assert bool(weight.grad.isfinite().all())


class CountingProducts(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return func(*args, **(kwargs or {}))


class PeakBytes(TorchDispatchMode):
    """The most bytes that storages made within it held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._held = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in known | self._seen:
                self._hold(leaf.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        size, name = storage.nbytes(), storage._cdata
        self._seen.add(name)
        self._held += size
        self.peak = max(self.peak, self._held)

        def released() -> None:
            self._seen.discard(name)
            self._held -= size

        weakref.finalize(storage, released)


def test_peak_memory_does_not_depend_on_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the weight's own gradient: 32,000 against 256,000 entries, with a budget in proportion to this test."""
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 8 * 2**20)

    def peak(vocabulary: int) -> int:
        hidden = torch.randn(64, 2, requires_grad=True)
        weight = torch.randn(vocabulary, 2)
        with PeakBytes() as bytes_held:
            total, _ = head_loss(hidden, HeadWeights(weight), torch.zeros(64, dtype=torch.long))
            total.backward()
        return bytes_held.peak

    small, large = peak(32_000), peak(256_000)
    assert large <= 1.1 * small
    assert small >= 7 * 2**20, "the measure sees the chunk"
    assert large < 64 * 256_000 * 4 / 4, "a quarter of all logits"


@pytest.mark.parametrize(("num", "vocabulary"), [(1, 7), (1700, 8192), (1700, 128_000), (5000, 256_000), (0, 100)])
def test_chunks_are_within_their_budget_and_of_one_size(num: int, vocabulary: int) -> None:
    rows = rows_of_chunk(num, vocabulary, torch.float32, torch.device("cpu"))
    assert rows * vocabulary * 4 <= CHUNK_BYTES["cpu"]
    if num:
        chunks = -(-num // rows)
        assert num - (chunks - 1) * rows > rows / 2, "no chunk of a few positions at the end"


def test_entropy_is_normalised() -> None:
    """0 where one token has it all, 1 where the k likeliest are as likely."""
    logits = torch.tensor([[100.0, 0.0, 0.0, 0.0, 0.0], [3.0, 3.0, 3.0, -50.0, -50.0]])
    torch.testing.assert_close(normalised_entropy(logits, 3), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(
        normalised_entropy(logits[1:], 20), torch.tensor([3.0]).log() / torch.tensor([5.0]).log()
    )
