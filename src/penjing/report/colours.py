"""The page's colours: light, dark, and as names that the page's style resolves, so that charts follow the theme."""

from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class Colours:
    """What colours are for.

    Attributes:
        paper, panel: behind text, and behind a box.
        ink, soft, line: text, quiet text, thin lines.
        before, after, other: the baseline, the small network, and a second series beside them.
        good, bad, warn: a limit met, a limit missed, something to know.
    """

    paper: str
    panel: str
    ink: str
    soft: str
    line: str
    before: str
    after: str
    other: str
    good: str
    bad: str
    warn: str

    def as_css(self) -> str:
        """Declarations of custom properties."""
        return " ".join(f"--{name}: {value};" for name, value in asdict(self).items())


LIGHT = Colours(
    paper="#ffffff",
    panel="#f4f6f5",
    ink="#1a2421",
    soft="#55635e",
    line="#d3dad7",
    before="#76847f",
    after="#0f7a56",
    other="#b4540a",
    good="#116b3f",
    bad="#b3261e",
    warn="#855600",
)
DARK = Colours(
    paper="#141917",
    panel="#1d2421",
    ink="#e7edea",
    soft="#a7b5af",
    line="#3a4641",
    before="#8b9a94",
    after="#4cc596",
    other="#f2a257",
    good="#6fd39b",
    bad="#ff8d83",
    warn="#efc05c",
)
THEMED = Colours(**{field.name: f"var(--{field.name})" for field in fields(Colours)})
