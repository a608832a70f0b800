"""What each field of a policy may hold, what fields must agree on, and how a mistake is put into words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import AfterValidator, Strict
from pydantic_core import ErrorDetails

from guardcore.policy.errors import FieldPath, suggestion
from guardcore.policy.taxonomy import MLCOMMONS, OPENAI_IMAGE, OPENAI_TEXT_ONLY

MAX_PROTOTYPES = 1024  # joint transport solves one problem over all of a policy's prototypes, anchors included
MAX_CHARACTERS = 300  # CLIP-like text towers read 64 to 77 tokens and drop the rest without a word
_SLUG = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")
_ACTIONS = ("allow", "review", "block")

Found = tuple[FieldPath, str]
_Categories = list[tuple[FieldPath, Mapping[str, Any]]]


def clean_text(value: str) -> str:
    """Collapse white space; raise ValueError on text that shows nothing, is too long or can't be written as UTF-8."""
    text = " ".join(value.split())
    kinds = {unicodedata.category(character) for character in text}
    if kinds & {"Cc", "Cs"}:
        raise ValueError("holds a control character or half a surrogate pair")
    if not any(kind[0] in "LNSP" for kind in kinds):
        raise ValueError("is empty")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"has {len(text)} characters; text encoders read no more than about {MAX_CHARACTERS}")
    return text


def clean_prompt(value: str) -> str:
    """Clean a noun or sentence; raise ValueError if it holds the placeholder that belongs into templates."""
    text = clean_text(value)
    if "{}" in text:
        raise ValueError("holds {}, which only templates may; write the words out")
    return text


def clean_template(value: str) -> str:
    """Clean a template; raise ValueError unless it holds {} exactly once."""
    text = clean_text(value)
    if text.count("{}") != 1 or set(text.replace("{}", "")) & set("{}"):
        raise ValueError(f"expected {{}} exactly once, where the noun goes, and no other braces; got {text!r}")
    return text


def slug(value: str) -> str:
    """Check a name that becomes a file name and a key; raise ValueError on anything but a short lower-case word."""
    if not _SLUG.fullmatch(value) or len(value) > 64:
        got = repr(value[:80])
        raise ValueError(f"expected lower-case letters, digits, _ and -, starting with a letter, at most 64; got {got}")
    if value == "neutral":
        raise ValueError("'neutral' is the name of the anchors' own group; choose another")
    return value


def mlcommons_code(value: str) -> str:
    """Check an MLCommons hazard code, S1 to S14."""
    if value in MLCOMMONS:
        return value
    names = {code.casefold(): code for code in MLCOMMONS} | {title: code for code, title in MLCOMMONS.items()}
    close = get_close_matches(value.casefold(), names, n=1, cutoff=0.75)
    hint = f"; did you mean {names[close[0]]} ({MLCOMMONS[names[close[0]]]})?" if close else ""
    raise ValueError(f"expected an MLCommons hazard code, S1 to S14; got {value!r}" + hint)


def openai_category(value: str) -> str:
    """Check the name of an OpenAI moderation category that applies to images."""
    if value in OPENAI_IMAGE:
        return value
    if value in OPENAI_TEXT_ONLY:
        raise ValueError(f"OpenAI judges {value!r} on text only; for images there are {', '.join(OPENAI_IMAGE)}")
    raise ValueError(f"expected one of {', '.join(OPENAI_IMAGE)}; got {value!r}" + suggestion(value, OPENAI_IMAGE))


def open_unit_interval(value: float) -> float:
    """Check a rate strictly between 0 and 1 (NaN is not)."""
    if not 0 < value < 1:
        raise ValueError(f"expected a rate between 0 and 1, both excluded; got {value:g}")
    return value


Prompt = Annotated[str, Strict(), AfterValidator(clean_prompt)]
Text = Annotated[str, Strict(), AfterValidator(clean_text)]
Template = Annotated[str, Strict(), AfterValidator(clean_template)]
Slug = Annotated[str, Strict(), AfterValidator(slug)]
MLCommonsCode = Annotated[str, Strict(), AfterValidator(mlcommons_code)]
OpenAICategory = Annotated[str, Strict(), AfterValidator(openai_category)]


def is_echo(error: ErrorDetails) -> bool:
    """Tell whether one of pydantic's errors repeats another one.

    A list whose entries are all wrong is also reported as empty, and what fields disagree on also at the root.
    """
    at_root = error["type"] == "value_error" and not error["loc"]
    return at_root or (error["type"] == "too_short" and bool(error["input"]))


def describe_type_error(error: ErrorDetails, fields: Mapping[str, tuple[str, ...]]) -> Found:
    """Turn one of pydantic's errors into a field path and a message that says what was expected and what came."""
    path, kind, value = error["loc"], error["type"], error["input"]
    if kind == "value_error":
        return path, str(error["ctx"]["error"])
    if kind == "missing":
        return path, "is missing; it is required"
    if kind == "extra_forbidden":
        known = fields[_owner(path)]
        hint = suggestion(str(path[-1]), known) or f"; known are {', '.join(known)}"
        return path, f"unknown field {path[-1]!r}" + hint
    if kind == "literal_error":
        close = suggestion(value, _ACTIONS) if isinstance(value, str) else ""
        return path, f"expected one of {', '.join(_ACTIONS)}; got {in_words(value)}" + close
    if kind == "too_short":
        return path, "is empty; it needs at least one entry"
    return path, f"expected {_EXPECTED.get(kind, error['msg'])}; got {in_words(value)}" + _quote_hint(kind, value)


_EXPECTED = {
    "string_type": "text",
    "float_type": "a number",
    "tuple_type": "a list",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
    "finite_number": "a finite number",
    "greater_than_equal": "a number of at least 0",
}


def in_words(value: object) -> str:
    """Name a value's type and, if it is short, the value."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, (int, float)):
        return f"the number {value:.6g}" if isinstance(value, float) or abs(value) < 1e300 else "a huge number"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    kinds = {"list": "a list", "tuple": "a list", "dict": "a mapping", "date": f"the date {value}"}
    return kinds.get(type(value).__name__, repr(value)[:60])


def _quote_hint(kind: str, value: object) -> str:
    if kind != "string_type" or value is None or isinstance(value, (list, tuple, dict)):
        return ""
    if isinstance(value, bool):
        return " (YAML reads an unquoted yes, no, on or off as a truth value); put it in quotes"
    return "; put it in quotes"


def _owner(path: FieldPath) -> str:
    if "maps" in path[:-1]:
        return "maps"
    return "category" if len(path) > 1 and path[0] == "categories" else "policy"


def cross_field_problems(data: object) -> list[Found]:
    """Find what no single field shows: duplicates, contradictions, two bounds at once, no prompts, too many prototypes.

    Works on data of any shape and skips what has the wrong type, so that both kinds of mistakes are reported together.
    """
    if not isinstance(data, Mapping):
        return []
    entries = [(("categories", i), each) for i, each in _enumerate(data.get("categories"))]
    categories: _Categories = [(path, each) for path, each in entries if isinstance(each, Mapping)]
    found = [*_duplicate_names(categories), *_duplicates((), data, ("templates", "neutral"))]
    for path, category in categories:
        found += _category_problems(path, category)
    found += _contradictions(data, categories)
    return found + _too_many(data, categories)


def _category_problems(path: FieldPath, category: Mapping[str, Any]) -> list[Found]:
    found = list(_duplicates(path, category, ("templates", "nouns", "sentences", "safe_lookalikes")))
    maps = category.get("maps")
    if isinstance(maps, Mapping):
        found += _duplicates((*path, "maps"), maps, ("mlcommons", "openai"))
    if category.get("threshold") is not None and category.get("target_fpr") is not None:
        found.append(((*path, "threshold"), "a category has a threshold or a target_fpr, not both"))
    if not category.get("nouns") and not category.get("sentences"):
        found.append(((*path, "nouns"), "a category needs nouns or sentences; this one has neither"))
    return found


def _duplicate_names(categories: _Categories) -> Iterator[Found]:
    names = Counter[str]()
    for path, category in categories:
        name = category.get("name")
        if isinstance(name, str) and names[name]:
            yield (*path, "name"), f"another category is called {name!r} too"
        if isinstance(name, str):
            names[name] += 1


def _duplicates(path: FieldPath, owner: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[Found]:
    for key in keys:
        seen: dict[str, int] = {}
        for i, text in _texts(owner.get(key)):
            if text in seen:
                yield (*path, key, i), f"repeats {key}[{seen[text]}]"
            seen.setdefault(text, i)


def _contradictions(data: Mapping[str, Any], categories: _Categories) -> list[Found]:
    """A text is unsafe in one category, or it is safe: in two places it would compete with itself."""
    found: list[Found] = []
    unsafe: dict[str, tuple[int, object]] = {}
    safe: list[Found] = [(("neutral", i), text) for i, text in _texts(data.get("neutral"))]
    for index, (path, category) in enumerate(categories):
        safe += [((*path, "safe_lookalikes", i), text) for i, text in _texts(category.get("safe_lookalikes"))]
        for key in ("nouns", "sentences"):
            for i, text in _texts(category.get(key)):
                owner, name = unsafe.setdefault(text, (index, category.get("name")))
                if owner != index:
                    found.append(((*path, key, i), f"is in category {name!r} too; the two would share its evidence"))
    return found + [
        (path, f"is unsafe in category {unsafe[text][1]!r}; it can't be safe too")
        for path, text in safe
        if text in unsafe
    ]


def _too_many(data: Mapping[str, Any], categories: _Categories) -> list[Found]:
    keys = ("nouns", "sentences", "safe_lookalikes")
    lists = [data.get("neutral")] + [each.get(key) for _, each in categories for key in keys]
    total = sum(len(each) for each in lists if isinstance(each, (list, tuple)))
    if total <= MAX_PROTOTYPES:
        return []
    limit = f"at most {MAX_PROTOTYPES:,} fit one transport problem"
    return [(("categories",), f"{total:,} prototypes with the neutral anchors; {limit}")]


def _enumerate(value: object) -> Iterator[tuple[int, Any]]:
    if isinstance(value, (list, tuple)):
        yield from enumerate(value)


def _texts(value: object) -> Iterator[tuple[int, str]]:
    """Yield a list's texts in the form in which two are the same whatever their case, spacing and Unicode variants."""
    for i, item in _enumerate(value):
        if isinstance(item, str) and item.strip():
            yield i, " ".join(unicodedata.normalize("NFKC", item).casefold().split())
