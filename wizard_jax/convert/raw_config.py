"""Reading a Hugging Face `config.json`: a value of the wrong kind, or one that is not computed here, is an error."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

from wizard_jax.convert.tensors import ConversionError
from wizard_jax.model.rope import LinearScaling, Llama3Scaling, RopeError, RopeScaling, YarnScaling

_ORIGINAL = "original_max_position_embeddings"
_SCALINGS: Mapping[str, tuple[type[RopeScaling], dict[str, str]]] = {
    "linear": (LinearScaling, {"factor": "factor"}),
    "llama3": (
        Llama3Scaling,
        {
            "factor": "factor",
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
            _ORIGINAL: "original_positions",
        },
    ),
    "yarn": (
        YarnScaling,
        {
            "factor": "factor",
            "beta_fast": "beta_fast",
            "beta_slow": "beta_slow",
            "attention_factor": "attention_factor",
            _ORIGINAL: "original_positions",
        },
    ),
}
"""`rope_type` -> what it is here, and what its numbers are called there and here."""

Mlp = Literal["relu", "gelu", "gelu_tanh"]
ACTIVATIONS: Mapping[str, Mlp] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
"""Names of Hugging Face for the activations of layers without a gate."""


class RawConfig:
    """The settings of a file, and the file's name for errors. Every method raises ConversionError."""

    def __init__(self, values: Mapping[str, Any], *, path: pathlib.Path) -> None:
        self.values, self.path = values, path

    def integer(self, name: str, default: int | None = None) -> int:
        value = default if self.values.get(name) is None else self.values[name]
        if type(value) is not int:
            raise ConversionError(f"{self.path}: {name} = {value!r}: must be a whole number")
        return value

    def number(self, name: str, default: float) -> float:
        return self._number(name, self.values.get(name, default))

    def flag(self, name: str, default: bool) -> bool:
        value = default if self.values.get(name) is None else self.values[name]
        if type(value) is not bool:
            raise ConversionError(f"{self.path}: {name} = {value!r}: must be true or false")
        return value

    def activation(self, default: str) -> Mlp:
        name = self.values.get("activation_function", default)
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise ConversionError(
                f"{self.path}: not supported: activation_function = {name!r}; it may be {', '.join(ACTIVATIONS)}"
            )
        return ACTIVATIONS[name]

    def only(self, **allowed: tuple[Any, ...]) -> None:
        """Refuses settings that change what is computed and have a value that is not computed here."""
        given = {name: self.values[name] for name in allowed if name in self.values}
        wrong = [f"{name} = {value!r}" for name, value in given.items() if value not in allowed[name]]
        if wrong:
            raise ConversionError(f"{self.path}: not supported: {'; '.join(wrong)}")

    def rope(self) -> tuple[float, RopeScaling | None]:
        """The base of the frequencies, and how they are scaled: of `rope_parameters`, or of the older two settings.

        As in transformers, the original length is `max_position_embeddings` where none is told.
        """
        told = self._rope_told()
        theta = self._number("rope_theta", told.pop("rope_theta", self.values.get("rope_theta", 10_000.0)))
        kind = told.pop("rope_type", "default")
        if told.get("partial_rotary_factor", 1.0) == 1.0:
            told.pop("partial_rotary_factor", None)
        if kind == "default" and not told:
            return theta, None
        if not isinstance(kind, str) or kind not in _SCALINGS:
            wrong = told if kind == "default" else {"rope_type": kind}
        else:
            wrong = {name: value for name, value in told.items() if name not in _SCALINGS[kind][1]}
        if wrong:
            listed = "; ".join(f"{name} = {value!r}" for name, value in wrong.items())
            kinds = ", ".join(("default", *_SCALINGS))
            raise ConversionError(f"{self.path}: not supported: in rope_parameters {listed}; rope_type may be {kinds}")
        return theta, self._scaling(kind, told)

    def _scaling(self, kind: str, told: Mapping[str, Any]) -> RopeScaling:
        made, names = _SCALINGS[kind]
        numbers: dict[str, Any] = {names[name]: self._number(name, value) for name, value in told.items()}
        if _ORIGINAL in names:
            longest = self.values.get("max_position_embeddings")
            numbers["original_positions"] = RawConfig(told, path=self.path).integer(_ORIGINAL, longest)
        needed = {field.name for field in dataclasses.fields(made) if field.default is dataclasses.MISSING}
        missing = [there for there, here in names.items() if here in needed - numbers.keys()]
        if missing:
            raise ConversionError(f"{self.path}: rope_parameters of type {kind!r} lacks {', '.join(missing)}")
        try:
            return made(**numbers)
        except RopeError as error:
            raise ConversionError(f"{self.path}: {error}") from error

    def _rope_told(self) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for setting in ("rope_scaling", "rope_parameters"):
            found = {} if self.values.get(setting) is None else self.values[setting]
            if not isinstance(found, dict):
                raise ConversionError(f"{self.path}: {setting} = {found!r}: must be an object")
            given = {name: value for name, value in found.items() if value is not None}
            if "type" in given:  # as it was called first
                given.setdefault("rope_type", given.pop("type"))
            differ = [name for name, value in given.items() if told.get(name, value) != value]
            if differ:
                raise ConversionError(
                    f"{self.path}: rope_scaling and rope_parameters differ in {', '.join(differ)}: leave one out"
                )
            told |= given
        return told

    def _number(self, name: str, value: Any) -> float:
        try:
            if type(value) in (int, float):
                return float(value)
        except OverflowError:
            pass
        raise ConversionError(f"{self.path}: {name} = {value!r}: must be a number")


def rope_settings(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """What `RawConfig.rope` reads: transformers 4 takes `rope_theta` and `rope_scaling`, 5 `rope_parameters`."""
    told: dict[str, Any] = {"rope_type": "default"}
    for kind, (made, names) in _SCALINGS.items():
        if isinstance(scaling, made):
            told = {"rope_type": kind, **{there: getattr(scaling, here) for there, here in names.items()}}
    told = {name: value for name, value in told.items() if value is not None}
    return {
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, **told},
        "rope_scaling": None if scaling is None else told,
    }
