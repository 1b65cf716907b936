"""The user's settings: what they are, their bounds and help texts, and the TOML file that they live in.

A value comes from the environment (`LITE_LLAMA_<FIELD>`), else from the file, else it is the default. The
settings screen is generated from the fields of `Settings`, so a new setting needs one line here and no more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tomlkit
from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict
from tomlkit.exceptions import TOMLKitError

from ..engine.request import SamplingParams
from .files import replace_file, saving

ENV_PREFIX = "LITE_LLAMA_"
_PARAMS = tuple(field.name for field in fields(SamplingParams))
AUTO = "auto"
_APPEARANCE = "Appearance"
_SAMPLING = "Sampling · left alone, the model's own defaults count"
_HEADER = "Settings of lite-llama-tui. Comments that you add are kept."


@dataclass(frozen=True)
class Form:
    """How the settings screen shows a field: under which heading, and with what widget.

    `auto` follows the type (a list for a Literal, else one line); `text` is several lines; `theme` lists the
    app's themes and AUTO, `dark theme` and `light theme` those of a kind. A field without a Form is not
    shown.
    """

    group: str
    widget: Literal["auto", "text", "theme", "dark theme", "light theme"] = "auto"


class Settings(BaseSettings):
    """Everything that the user can set. The constructor takes values from its arguments alone; it is
    SettingsStore that adds the environment's, because it must know them apart when it saves."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True)

    temperature: Annotated[float, Form(_SAMPLING)] = Field(
        default=0.7,
        ge=0,
        le=2,
        title="Temperature",
        description="How much chance there is in a reply; 0 always takes the likeliest token.",
    )
    top_p: Annotated[float, Form(_SAMPLING)] = Field(
        default=0.9,
        gt=0,
        le=1,
        title="Top-p",
        description="Choose among the likeliest tokens that together reach this probability; 1 is off.",
    )
    top_k: Annotated[int, Form(_SAMPLING)] = Field(
        default=0,
        ge=0,
        title="Top-k",
        description="Choose among this many of the likeliest tokens; 0 is off.",
    )
    min_p: Annotated[float, Form(_SAMPLING)] = Field(
        default=0.0,
        ge=0,
        lt=1,
        title="Min-p",
        description="Drop tokens less likely than this share of the likeliest one; 0 is off.",
    )
    repetition_penalty: Annotated[float, Form(_SAMPLING)] = Field(
        default=1.0,
        ge=0.1,
        le=10,
        title="Repetition penalty",
        description="Above 1 makes tokens that were already used less likely; 1 is off.",
    )
    max_gen_len: Annotated[int, Form(_SAMPLING)] = Field(
        default=1024,
        ge=1,
        title="Max length",
        description="The most tokens that one reply may have, its thinking included.",
    )
    seed: Annotated[int | None, Form(_SAMPLING)] = Field(
        default=None,
        ge=0,
        le=2**63 - 1,
        title="Seed",
        description="The same seed gives the same reply; empty draws a new one each time.",
    )
    system_prompt: Annotated[str, Form("Conversation", "text")] = Field(
        default="",
        title="System prompt",
        description="What the model is told ahead of every conversation; may be empty.",
    )
    thinking: Annotated[Literal["auto", "on", "off"], Form("Conversation")] = Field(
        default="auto",
        title="Thinking",
        description="Whether a model that can do both thinks before it answers; auto leaves it to the model.",
    )
    device: Annotated[Literal["auto", "cpu", "cuda"], Form("Model")] = Field(
        default="auto",
        title="Device",
        description="Where the model runs; auto takes the GPU if there is one. Counts from the next load.",
    )
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Form("Model")] = Field(
        default="auto",
        title="Number format",
        description="How numbers are computed; auto suits model and device. Counts from the next load.",
    )
    checkpoint_directories: Annotated[str, Form("Model", "text")] = Field(
        default="",
        title="Checkpoint directories",
        description="Searched for checkpoints to convert, one a line; the Hugging Face cache always is.",
    )
    theme: Annotated[str, Form(_APPEARANCE, "theme")] = Field(
        default=AUTO,
        min_length=1,
        title="Theme",
        description="The colours of the app; auto goes by the terminal, dark or light.",
    )
    dark_theme: Annotated[str, Form(_APPEARANCE, "dark theme")] = Field(
        default="lite-llama-dark", min_length=1, title="Dark theme", description="For auto and Ctrl+T."
    )
    light_theme: Annotated[str, Form(_APPEARANCE, "light theme")] = Field(
        default="lite-llama-light", min_length=1, title="Light theme", description="For auto and Ctrl+T."
    )
    motion: Annotated[Literal["full", "reduced"], Form(_APPEARANCE)] = Field(
        default="full",
        title="Motion",
        description="Reduced: nothing blinks, glides or spins.",
    )
    model: str | None = Field(default=None, title="Model", description="The model that was used last.")
    keys: Annotated[dict[str, Any], NoDecode] = Field(
        default={}, title="Keys", description="Other keys for actions; see app/keymap.py."
    )
    presets: Annotated[dict[str, Any], NoDecode] = Field(
        default={}, title="Presets", description="The user's presets; see app/presets.py."
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls, init_settings, env_settings, dotenv_settings, file_secret_settings
    ):
        """See the class: arguments only."""
        return (init_settings,)

    @property
    def think(self) -> bool | None:
        """The setting `thinking` as a GenerationRequest takes it."""
        return {"auto": None, "on": True, "off": False}[self.thinking]

    @property
    def searched(self) -> tuple[Path, ...]:
        """The setting `checkpoint_directories` as paths."""
        lines = (line.strip() for line in self.checkpoint_directories.splitlines())
        return tuple(Path(line) for line in lines if line)

    def chosen_params(self) -> dict[str, Any]:
        """What the user has set for sampling, by SamplingParams' names.

        Settings that were never set are left out, so that they do not hide the model's own defaults.
        """
        chosen = self.model_dump(exclude_unset=True)
        return chosen | {"max_new_tokens": chosen.get("max_gen_len")}

    def sampling_params(self, model_defaults: Mapping[str, Any]) -> SamplingParams:
        """What one reply in the app gets: what the user has set, else the model's default, else ours."""
        return merge_params({"max_new_tokens": self.max_gen_len}, model_defaults, self.chosen_params())


def merge_params(*layers: Mapping[str, Any]) -> SamplingParams:
    """Sampling parameters from mappings by their names, a later one winning; None means not given.

    Raises ValueError for a value out of bounds.
    """
    chosen: dict[str, Any] = {}
    for layer in layers:
        chosen |= {name: layer[name] for name in _PARAMS if layer.get(name) is not None}
    return SamplingParams(**chosen)


def form(field: FieldInfo) -> Form | None:
    """The field's Form, None if the settings screen does not show it."""
    return next((item for item in field.metadata if isinstance(item, Form)), None)


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The values of a Literal field, () for any other."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def requirement(name: str) -> str:
    """What the field's value must be, in words that follow "must be": `a number from 0 to 2`."""
    field = Settings.model_fields[name]
    if values := choices(field):
        return f"one of {', '.join(values)}"
    types = get_args(field.annotation) or (field.annotation,)
    if get_origin(field.annotation) is dict:
        return "a table"
    if str in types:
        return "text"
    what = "a whole number" if int in types else "a number"
    bounds = {key: getattr(item, key) for item in field.metadata for key in _BOUNDS if hasattr(item, key)}
    if set(bounds) == {"ge", "le"}:
        what += f" from {bounds['ge']} to {bounds['le']}"
    else:
        what += ", " + " and ".join(f"{_BOUNDS[key]} {bound}" for key, bound in bounds.items())
    return what + (", or empty" if type(None) in types else "")


_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def invalid(values: Mapping[str, Any]) -> list[str]:
    """The names of those fields in `values` whose value is not allowed. Unknown names are passed over."""
    known = {name: value for name, value in values.items() if name in Settings.model_fields}
    try:
        Settings(**known)
    except ValidationError as error:
        return list(dict.fromkeys(str(problem["loc"][0]) for problem in error.errors()))
    return []


class SettingsStore:
    """Reads and writes the settings file. Nothing in the file can keep the program from starting."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        """What the last `load` had to pass over, a sentence each."""
        self._loaded: Settings | None = None

    def load(self) -> Settings:
        """The settings; for what the file or the environment says wrongly, the defaults and a problem."""
        document, problem = self._read()
        self.problems = [problem] if problem else []
        values = self._without_invalid(document.unwrap(), lambda name: f"{name} in {self.path}")
        # The environment last: it counts above the file.
        environment = EnvSettingsSource(Settings)()
        values |= self._without_invalid(
            environment, lambda name: f"{ENV_PREFIX}{name.upper()} in the environment"
        )
        self._loaded = Settings(**values)
        return self._loaded

    def save(self, settings: Settings) -> None:
        """Write what changed since `load` (or the last `save`) and leave the rest of the file as it is.

        A value from the environment is thus written only if the user changed it. A file that is no TOML is
        kept beside the new one as `settings.toml.broken`. Raises UserError if the file cannot be written.
        """
        before = self._loaded or self.load()
        document, problem = self._read()  # again, because the user may have edited the file in the meantime
        changed = {name for name in Settings.model_fields if getattr(settings, name) != getattr(before, name)}
        changed |= before.model_fields_set - settings.model_fields_set  # set back to what counts without it
        # A wrong value in the file is mended by what the user has now seen and saved in its place.
        changed |= set(invalid(document.unwrap())) - set(EnvSettingsSource(Settings)())
        with saving("The settings", self.path):
            if problem:
                os.replace(self.path, self.path.with_name(self.path.name + ".broken"))
            for name in Settings.model_fields:
                if name in changed:
                    value = getattr(settings, name) if name in settings.model_fields_set else None
                    _set(document, name, value)
            if changed or problem:
                replace_file(self.path, tomlkit.dumps(document).encode())
        self._loaded = settings

    def _read(self) -> tuple[tomlkit.TOMLDocument, str | None]:
        """The file (a new document if there is none, or none that can be read) and what is wrong with it."""
        document = tomlkit.document()
        document.add(tomlkit.comment(_HEADER))
        try:
            return tomlkit.parse(self.path.read_bytes().decode("utf-8-sig")), None
        except FileNotFoundError:
            return document, None
        except OSError as error:
            why = f"cannot be read ({error.strerror})"
        except (TOMLKitError, UnicodeDecodeError) as error:
            why = f"is no valid TOML ({error})"
        kept = f"{self.path.name}.broken"
        return document, f"{self.path} {why}: the defaults are used, and saving keeps it as {kept}."

    def _without_invalid(self, values: Mapping[str, Any], label: Callable[[str], str]) -> dict[str, Any]:
        """The known and valid ones of `values`; each invalid one becomes a problem, labelled by its place."""
        bad = invalid(values)
        self.problems += [
            f"{label(name)} is {values[name]!r} but must be {requirement(name)}: it is ignored."
            for name in bad
        ]
        return {name: values[name] for name in Settings.model_fields if name in values and name not in bad}


def _set(document: MutableMapping[str, Any], name: str, value: object) -> None:
    """Set a key in place, in a table those alone that differ.

    TOML has no null: a value of None takes the key away, in a table one that is not in `value`.
    """
    if value is None:
        document.pop(name, None)
    elif isinstance(value, dict):
        if not isinstance(document.get(name), MutableMapping):
            document[name] = tomlkit.table()
        table = document[name]
        for key in {**table, **value}:
            if key not in value or key not in table or table[key] != value[key]:
                _set(table, key, value.get(key))
    elif isinstance(value, str) and "\n" in value:
        document[name] = tomlkit.string(value, multiline=True)
    else:
        document[name] = value
