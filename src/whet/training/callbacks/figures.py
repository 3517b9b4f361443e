"""The figures of a run as words for a person."""

from __future__ import annotations

from collections.abc import Mapping

_NAMES = {
    "loss": "loss",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens/s",
    "supervised_tokens_per_second": "supervised tokens/s",
    "data_wait_share": "waiting for data",
    "peak_memory_bytes": "memory",
    "rewards/margins": "reward margin",
    "rewards/accuracies": "reward accuracy",
}


def named_figures(logs: Mapping[str, float]) -> dict[str, str]:
    """Names and values of what was logged for a training step, in a fixed order.

    >>> named_figures({"learning_rate": 1e-4, "loss": 2.34567, "tokens_per_second": 12345.6, "epoch": 0.5})
    {'loss': '2.346', 'learning rate': '1.00e-04', 'tokens/s': '12,346'}
    """
    return {name: format_figure(key, logs[key]) for key, name in _NAMES.items() if key in logs}


def evaluation_figures(logs: Mapping[str, float]) -> dict[str, str]:
    """Names and values of what an evaluation found.

    >>> evaluation_figures({"eval_loss": 1.23456, "eval_chat_loss": 1.5, "epoch": 1.0})
    {'loss': '1.235', 'chat loss': '1.500'}
    """
    return {
        key.removeprefix("eval_").replace("_", " "): f"{value:.4g}" if "/" in key else f"{value:.3f}"
        for key, value in logs.items()
        if key.startswith("eval_") and (key.endswith("_loss") or "rewards/" in key)
    }


def format_figure(key: str, value: float) -> str:
    """One value with the precision that its kind needs."""
    if key == "learning_rate":
        return f"{value:.2e}"
    if key.endswith("_per_second"):
        return f"{value:,.0f}"
    if key.endswith("_share"):
        return f"{value:.1%}"
    if key.endswith("_bytes"):
        return format_bytes(value)
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


def format_bytes(count: float) -> str:
    """
    >>> format_bytes(1536 * 2**20), format_bytes(300 * 2**20)
    ('1.5 GiB', '300 MiB')
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def format_seconds(seconds: float) -> str:
    """
    >>> format_seconds(59.6), format_seconds(3725)
    ('1:00', '1:02:05')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
