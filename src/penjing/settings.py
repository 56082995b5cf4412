"""The base of everything a user can set: frozen, validated when it is made, unknown keys refused with the nearest one."""

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from penjing.errors import SettingError, nearest

_ADVICE = {
    "greater_than": "it must be greater than {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be less than {lt}",
    "less_than_equal": "it must be at most {le}",
    "missing": "it must be given",
}


class Settings(BaseModel):
    """Base of stages, schedules, budgets and recipes.

    Raises: SettingError, at construction: an unknown key, a wrong type, a value out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, validate_default=True)
    label: ClassVar[str] = ""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingError(explain(error, type(self))) from None

    @model_validator(mode="wrap")
    @classmethod
    def _known_keys(cls, values: Any, handler: Any) -> Self:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    raise SettingError(
                        f'{cls.where()}: there is no setting "{key}"; {nearest(str(key), cls.model_fields)}.'
                    )
        result: Self = handler(values)
        return result

    @classmethod
    def where(cls) -> str:
        """How messages name this: the recipe's word, else the class."""
        return cls.label or cls.__name__


def explain(error: ValidationError, cls: type[Settings]) -> str:
    """A validation error as sentences: where, what must hold, what was given."""
    sentences = []
    for detail in error.errors():
        own = detail.get("ctx", {}).get("error")
        if isinstance(own, SettingError):
            sentences.append(str(own).rstrip("."))
            continue
        place = ".".join(str(part) for part in detail["loc"]) or "settings"
        context = detail.get("ctx", {})
        rule = _ADVICE.get(detail["type"])
        must = rule.format(**context) if rule else detail["msg"].removeprefix("Value error, ")
        given = "" if detail["type"] == "missing" else f", got {detail['input']!r}"
        sentences.append(f"{cls.where()}: {place}: {must[0].lower() + must[1:]}{given}")
    return "; ".join(sentences) + "."
