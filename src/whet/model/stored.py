"""Base models that are stored quantised (GPTQ, AWQ, fp8 ...): what reading one needs, and whether it can be trained."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet.config import Config
from whet.core.errors import ModelError, Problem

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class _Format:
    """A way to store a model: the packages that transformers reads it with (import name -> pip name), and whether an
    adapter can be trained beside it, as transformers' quantizers say (5.23)."""

    packages: dict[str, str]
    takes_adapters: bool


_GPTQMODEL = {"gptqmodel": "gptqmodel"}
_FORMATS: dict[str, _Format] = {
    "gptq": _Format({**_GPTQMODEL, "optimum": "optimum"}, True),
    "awq": _Format(_GPTQMODEL, True),
    "bitsandbytes": _Format({"bitsandbytes": "bitsandbytes"}, True),
    "compressed-tensors": _Format({"compressed_tensors": "compressed-tensors"}, True),
    "fp8": _Format({}, True),
    "mxfp8": _Format({}, True),
    "mxfp4": _Format({}, False),
    "torchao": _Format({"torchao": "torchao"}, True),
    "hqq": _Format({"hqq": "hqq"}, True),
    "quanto": _Format({"optimum": "optimum-quanto"}, True),
    "eetq": _Format({"kernels": "kernels"}, True),
    "aqlm": _Format({"aqlm": "aqlm"}, True),
}


def stored_format(model_config: PretrainedConfig) -> str | None:
    """The name of the format that ``config.json`` gives; None for plain weights."""
    stored = _stored(model_config)
    return None if stored is None else str(stored.get("quant_method", "bitsandbytes"))


def refuse_untrainable_storage(config: Config, model_config: PretrainedConfig) -> None:
    """Before weights are read: what is stored quantised is trained by an adapter, by the packages of its format.

    Raises:
        ModelError: a package is missing, no adapter is asked for, or the format takes none.
    """
    key = "base_model"
    stored, name = _stored(model_config), config.model.base_model
    if config.quant.gptq and stored_format(model_config) != "gptq":
        found = f"gptq is true, and '{name}' is not stored in GPTQ"
        fix = "remove the line: config.json says how a model is stored"
        raise ModelError(Problem(config.where("gptq"), found, fix, "gptq"))
    if stored is None:
        return
    refuse_missing_packages(config, model_config)
    method = str(stored_format(model_config))
    form = _FORMATS.get(method, _Format({}, False))
    for loading in ("load_in_4bit", "load_in_8bit"):
        if config.value(loading) and method != "bitsandbytes":
            found = f"{loading} is true, and '{name}' is stored in {method} already"
            raise ModelError(Problem(config.where(loading), found, "remove the line", loading))
    if _is_read_as_floats(config):
        return
    if config.adapter.adapter is None:
        found = f"'{name}' is stored in {method}, and quantised weights cannot be trained"
        raise ModelError(Problem(config.where(key), found, "add `adapter: lora`, or name the unquantised model", key))
    if not form.takes_adapters or not _torchao_takes_adapters(stored):
        found = f"'{name}' is stored in {method}, beside which transformers trains no adapter"
        fix = "name the unquantised model"
        if method == "mxfp4":
            fix = "write model_quantization_config: Mxfp4Config, model_quantization_config_kwargs: {dequantize: true}"
        raise ModelError(Problem(config.where(key), found, fix, key))


def refuse_missing_packages(config: Config, model_config: PretrainedConfig) -> None:
    """Raises a ModelError that names the packages by which the base's format is read, where they are not installed."""
    method, name = str(stored_format(model_config)), config.model.base_model
    packages = _FORMATS.get(method, _Format({}, False)).packages
    missing = [pip for package, pip in packages.items() if importlib.util.find_spec(package) is None]
    if missing:
        needs = "the package" if len(missing) == 1 else "the packages"
        found = f"'{name}' is stored in {method}, which needs {needs} {' and '.join(missing)}"
        raise ModelError(Problem(config.where("base_model"), found, f"pip install {' '.join(missing)}", "base_model"))


def _stored(model_config: PretrainedConfig) -> dict[str, Any] | None:
    stored = getattr(model_config, "quantization_config", None)
    if stored is None or isinstance(stored, dict):
        return stored
    fields: dict[str, Any] = stored.to_dict()
    return fields


def read_as_floats(model_config: PretrainedConfig) -> PretrainedConfig | None:
    """A config by which transformers makes floats of the stored weights while it reads them, on every machine.

    fp8 and mxfp4 have this way alone; left to itself transformers takes it where no GPU can compute with such weights.

    Returns:
        None where the format has no such way.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    stored = _stored(model_config)
    kind = AUTO_QUANTIZATION_CONFIG_MAPPING.get(str(stored_format(model_config)))
    if stored is None or kind is None or "dequantize" not in inspect.signature(kind).parameters:
        return None
    floats = copy.deepcopy(model_config)
    floats.quantization_config = {**stored, "dequantize": True}
    return floats


def _is_read_as_floats(config: Config) -> bool:
    return bool((config.quant.model_quantization_config_kwargs or {}).get("dequantize"))


def _torchao_takes_adapters(stored: dict[str, Any]) -> bool:
    """Of torchao's formats those whose name says 8-bit weights, as transformers' quantizer decides."""
    if stored.get("quant_method") != "torchao":
        return True
    kind = str(stored.get("quant_type", {}).get("default", {}).get("_type", ""))
    return bool(re.search(r"8weight", kind.lower()))
