"""What the lint says and how it judges a value: one finding, the kinds of values, the nearest right key."""

import difflib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from model.engines.kinds import AUTO, KINDS

INT_MAX = 2**31 - 1
LONG_MAX = 2**63 - 1
ADDRESS = re.compile(r"(https?)://([^:/]+)(?::([0-9]+))?|unix:(/.*)", re.IGNORECASE)  # ConfigManager.ADDRESS_PATTERN
HIGHEST_PORT = 65534  # TorchServe refuses 65535

Status = Literal["error", "warning"]
Check = Callable[[Any], str | None]  # what was expected, where the value is not that


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a configuration: `line` is 0 where it is about what is not there."""

    where: str
    line: int
    key: str
    status: Status
    problem: str
    fix: str

    def __str__(self) -> str:
        """Returns it as one line, in the form that editors and CI systems know: FILE:LINE: error: …"""
        return f"{self.place}: {self.status}: {self.problem}; {self.fix}"

    @property
    def place(self) -> str:
        """The file, and the line where it is about one."""
        return f"{self.where}:{self.line}" if self.line else self.where


def number_text(least: int, most: int = INT_MAX) -> Check:
    """A whole number, written out; Java takes no blanks around it."""
    expected = f"a whole number from {least} to {most}"
    return lambda text: None if re.fullmatch(r"[+-]?[0-9]+", text) and least <= int(text) <= most else expected


def real_text(text: str) -> str | None:
    """A number of minutes, with a fraction or without."""
    return None if re.fullmatch(r"[0-9]+(\.[0-9]*)?", text) else "a number of minutes"


def boolean_text(text: str) -> str | None:
    """True or false in any case; TorchServe takes everything else for false, and says nothing."""
    return None if text.lower() in ("true", "false") else "true or false; TorchServe takes anything else for false"


def lower_boolean_text(text: str) -> str | None:
    """True or false, for the workers, which compare with small letters."""
    return None if text in ("true", "false") else "true or false in small letters; workers take anything else for false"


def address_text(text: str) -> str | None:
    """Where an API listens."""
    expected = f"http://HOST:PORT, https://HOST:PORT with a port up to {HIGHEST_PORT} (no IPv6), or unix:/PATH"
    match = ADDRESS.fullmatch(text)
    return None if match and 0 < int(match[3] or 80) <= HIGHEST_PORT else expected


def host_text(text: str) -> str | None:
    """Where a gRPC API listens, without its port."""
    return (
        None if re.fullmatch(r"[\w.-]+|[0-9a-fA-F:.]+", text) else "a host name or IP address, without scheme or port"
    )


def options_text(text: str) -> str | None:
    """Java's options."""
    return None if all(word.startswith(("-", "@")) for word in text.split()) else "Java's options, each from a '-' on"


def patterns_text(text: str) -> str | None:
    """Regular expressions, one a comma."""
    try:
        for pattern in text.split(","):
            re.compile(pattern)
    except re.error as err:
        return f"regular expressions ({err})"
    return None


def json_text(text: str) -> str | None:
    """A JSON object."""
    try:
        return None if isinstance(json.loads(text), dict) else "a JSON object"
    except ValueError as err:
        return f"a JSON object ({err})"


def filled_text(text: str) -> str | None:
    """A path, a name, a list: anything but nothing."""
    return None if text else "something; leave the line out for the default"


def any_text(text: str) -> str | None:
    """Anything."""


def one_of_text(*values: str) -> Check:
    """One of a few words, in any case."""
    return lambda text: None if text.lower() in values else f"one of {', '.join(values)}"


def integer(least: int, most: int = INT_MAX) -> Check:
    """YAML's whole number: Java's Integer, which a text, a float or a larger number is not."""
    expected = f"a whole number from {least} to {most}"
    return lambda value: None if type(value) is int and least <= value <= most else expected


def boolean(value: Any) -> str | None:
    """YAML's true or false, not a text that reads so."""
    return None if isinstance(value, bool) else "true or false, without quotes"


def string(value: Any) -> str | None:
    """A text."""
    return None if isinstance(value, str) else "a text"


def one_of(*values: str) -> Check:
    """One of a few texts, in any case."""
    expected = f"one of {', '.join(values)}"
    return lambda value: None if isinstance(value, str) and value.lower() in values else expected


def exactly(*values: str) -> Check:
    """One of a few texts, as they are written."""
    expected = f"one of {', '.join(values)}"
    return lambda value: None if isinstance(value, str) and value in values else expected


def lax_integer(least: int, most: int | None = None, *, or_word: str | None = None) -> Check:
    """A whole number as our handler takes it, through pydantic: 5, "5" and 5.0 are one, true is none; or a word."""
    expected = f"a whole number from {least}" + (f" to {most}" if most else "") + (f", or {or_word}" if or_word else "")
    numbers = TypeAdapter(Annotated[int, Field(ge=least, le=most)])

    def check(value: Any) -> str | None:
        if or_word and value == or_word:
            return None
        if isinstance(value, bool):  # of model.written
            return expected
        try:
            numbers.validate_python(value)
        except ValidationError:
            return expected
        return None

    return check


def engine(value: Any) -> str | None:
    """An engine's name, or auto."""
    if isinstance(value, str) and (value == AUTO or value in KINDS):
        return None
    near = find_nearest(value, KINDS) if isinstance(value, str) else None
    return f"{AUTO} or one of {', '.join(KINDS)}" + (f" (did you mean {near}?)" if near else "")


def integers(value: Any) -> str | None:
    """A list of whole numbers; one that is none makes TorchServe drop the list."""
    is_right = isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
    return None if is_right else "a list of whole numbers from 0 on"


def mapping(value: Any) -> str | None:
    """A section."""
    return None if isinstance(value, dict) else "a section of keys"


def mapping_or_string(value: Any) -> str | None:
    """A section, or one word for it."""
    return None if isinstance(value, dict | str) else "a section of keys or a text"


def find_nearest(key: str, known: Iterable[str], *, cutoff: float = 0.75) -> str | None:
    """Returns the known key that was most likely meant, whatever way words are parted in either."""
    plain = {_plain(name): name for name in known}
    found = difflib.get_close_matches(_plain(key), plain, n=1, cutoff=cutoff)
    return plain[found[0]] if found else None


def _plain(key: str) -> str:
    """batchSize, batch_size, TS_BATCH-SIZE -> batchsize."""
    return re.sub(r"[^a-z0-9]", "", key.lower().removeprefix("ts_"))
