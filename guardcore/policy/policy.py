"""A safety policy: which concepts are unsafe, which only look like them, and what to do about an image that shows one.

A policy is plain data, written as YAML (docs/policy.md has every field). It becomes numbers only with an encoder, in a
`guardcore.prototypes.bank.PrototypeBank`. This module knows nothing of tensors and imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from guardcore.policy.checks import (
    MLCommonsCode,
    OpenAICategory,
    Prompt,
    Slug,
    Template,
    Text,
    cross_field_problems,
    describe_type_error,
    is_echo,
    open_unit_interval,
)
from guardcore.policy.errors import FieldPath, PolicyError, Problem, field_name
from guardcore.policy.file import read_policy_file

__all__ = ["BUILTIN", "Action", "Category", "Concept", "Maps", "Policy", "PolicyError", "Problem"]

Action = Literal["allow", "review", "block"]
Rate = Annotated[float, Strict(), AfterValidator(open_unit_interval)]
BUILTIN = ("default", "demo")
DEFAULT_TEMPLATES = ("a photo of {}",)
_FORMAT = 1  # part of every fingerprint: raise it when the same YAML starts to mean something else


class Concept(NamedTuple):
    """One future prototype: its label and the texts whose embeddings are averaged into it."""

    label: str
    texts: tuple[str, ...]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Maps(_Model):
    """What a category is called elsewhere: MLCommons hazard codes and OpenAI moderation categories."""

    mlcommons: tuple[MLCommonsCode, ...] = ()
    openai: tuple[OpenAICategory, ...] = ()


class Category(_Model):
    """One kind of unsafe content.

    `nouns` go through `templates` (the policy's where empty) and make one prototype each; `sentences` are taken
    literally, one prototype each. `safe_lookalikes` are nouns that become neutral anchors. The category flags an image
    when its statistic t (a cost: 0 is the concept itself) is at most `threshold`, whatever calibration says. Without a
    threshold calibration chooses the bound, for this category's own false-positive rate `target_fpr` in (0, 1), or
    within the policy's family-wise one where both are None. `maps` names the category in public taxonomies.
    """

    name: Slug
    description: Text | None = None
    templates: tuple[Template, ...] = ()
    nouns: tuple[Prompt, ...] = ()
    sentences: tuple[Prompt, ...] = ()
    safe_lookalikes: tuple[Prompt, ...] = ()
    threshold: Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)] | None = None
    target_fpr: Rate | None = None
    action: Action = "block"
    maps: Maps = Maps()

    def concepts(self) -> tuple[Concept, ...]:
        """Return the unsafe concepts: nouns first, then sentences, in file order."""
        literal = tuple(Concept(sentence, (sentence,)) for sentence in self.sentences)
        return fill(self.templates or DEFAULT_TEMPLATES, self.nouns) + literal

    def lookalike_concepts(self) -> tuple[Concept, ...]:
        """Return the safe look-alikes as concepts, in file order."""
        return fill(self.templates or DEFAULT_TEMPLATES, self.safe_lookalikes)

    def prompts(self) -> list[str]:
        """Return every unsafe text that an encoder will read: templates x nouns, then sentences."""
        return [text for concept in self.concepts() for text in concept.texts]


class Policy(_Model):
    """Categories, neutral anchors and what to do.

    `target_fpr` in (0, 1) is the family-wise false-positive rate: the share of benign images that all categories
    without a bound of their own may flag together. `on_error` is the action for an image that can't be judged; the
    default blocks, so that nothing passes unscreened. The constructor raises pydantic's ValidationError on bad fields;
    `load` and `from_data` raise PolicyError with every mistake in words.
    """

    name: Slug
    version: Text = "1"
    description: Text | None = None
    templates: Annotated[tuple[Template, ...], Field(min_length=1)] = DEFAULT_TEMPLATES
    neutral: tuple[Prompt, ...] = ()
    target_fpr: Rate = 0.01
    on_error: Action = "block"
    categories: Annotated[tuple[Category, ...], Field(min_length=1)]

    @field_validator("categories")
    @classmethod
    def _inherit_templates(cls, categories: tuple[Category, ...], info: ValidationInfo) -> tuple[Category, ...]:
        """Give categories without templates the policy's, so that a category knows its own prompts."""
        templates = info.data.get("templates", ())
        inherited = {"templates": templates}
        return tuple(each if each.templates else each.model_copy(update=inherited) for each in categories)

    @model_validator(mode="after")
    def _agree(self) -> Policy:
        """Raise on fields that are fine alone and contradict each other."""
        found = cross_field_problems(self.model_dump())
        if found:
            raise ValueError("; ".join(f"{field_name(path)}: {message}" for path, message in found))
        return self

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read a YAML file; raise PolicyError with every mistake in it, each with its line and field."""
        document = read_policy_file(path)
        return cls._checked(document.data, str(path), document.lines, document.problems)

    @classmethod
    def from_data(cls, data: object, source: str = "policy") -> Policy:
        """Build from plain data (what YAML or JSON gives); raise PolicyError with every mistake, without lines."""
        return cls._checked(data, source, {}, [])

    @classmethod
    def builtin(cls, name: str) -> Policy:
        """Return a policy of the package: `default` for CLIP-like encoders, `demo` for the built-in encoder."""
        if name not in BUILTIN:
            raise ValueError(f"name: expected one of {', '.join(BUILTIN)}; got {name!r}")
        return _builtin(name)

    @classmethod
    def default(cls) -> Policy:
        """Return the general policy for CLIP-like encoders."""
        return cls.builtin("default")

    @classmethod
    def _checked(cls, data: object, source: str, lines: Mapping[FieldPath, int], known: list[Problem]) -> Policy:
        policy, found = None, cross_field_problems(data)
        try:
            policy = cls.model_validate(data)
        except ValidationError as error:
            found += [describe_type_error(each, _FIELDS) for each in error.errors() if not is_echo(each)]
        # A value that YAML refused is None by now, and None is a second mistake that nobody made.
        refused = {(problem.line, problem.field) for problem in known}
        problems = [Problem(_line_of(path, lines), field_name(path), message) for path, message in found]
        problems = known + [each for each in problems if (each.line, each.field) not in refused]
        if problems or policy is None:
            raise PolicyError(source, problems)
        return policy

    def neutral_concepts(self) -> tuple[Concept, ...]:
        """Return the neutral anchors: the policy's own, then every category's look-alikes, each label once."""
        lookalikes = (each for category in self.categories for each in category.lookalike_concepts())
        every = (*fill(self.templates, self.neutral), *lookalikes)
        first = {concept.label.casefold(): concept for concept in reversed(every)}
        return tuple(concept for concept in every if first[concept.label.casefold()] is concept)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the whole policy in canonical JSON: equal exactly where every field is equal."""
        return _digest(self.model_dump(mode="json"))

    @property
    def texts_fingerprint(self) -> str:
        """SHA-256 (hex) of what prototypes depend on: names, labels and texts, not bounds, actions or descriptions."""
        groups = [[each.name, each.concepts()] for each in self.categories]
        return _digest([*groups, ["neutral", self.neutral_concepts()]])

    def __str__(self) -> str:
        """Give a table: one line a category with its action, bound and counts."""
        rule = f"family-wise target false-positive rate {self.target_fpr:g}, on error {self.on_error}"
        lines = [f"policy {self.name} {self.version}: {rule}"]
        width = max(len(each.name) for each in self.categories)
        for each in self.categories:
            counts = f"{len(each.concepts()):4d} prototypes, {len(each.safe_lookalikes):3d} look-alikes"
            lines.append(f"  {each.name:<{width}}  {each.action:<6}  {counts}  {_bound(each)}".rstrip())
        return "\n".join([*lines, f"  {len(self.neutral_concepts())} neutral anchors, look-alikes included"])


_FIELDS: dict[str, tuple[str, ...]] = {
    "policy": tuple(Policy.model_fields),
    "category": tuple(Category.model_fields),
    "maps": tuple(Maps.model_fields),
}


def fill(templates: tuple[str, ...], nouns: tuple[str, ...]) -> tuple[Concept, ...]:
    """Put each noun into every template."""
    return tuple(Concept(noun, tuple(template.replace("{}", noun) for template in templates)) for noun in nouns)


@cache
def _builtin(name: str) -> Policy:
    return Policy.load(Path(__file__).parents[1] / "data" / "policies" / f"{name}.yaml")


def _digest(value: Any) -> str:
    text = json.dumps([_FORMAT, value], sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _bound(category: Category) -> str:
    if category.threshold is not None:
        return f"t <= {category.threshold:g}"
    return f"own target {category.target_fpr:g}" if category.target_fpr is not None else ""


def _line_of(path: FieldPath, lines: Mapping[FieldPath, int]) -> int | None:
    """Return the line of the nearest part of the path that the file has: a missing field is reported at its parent."""
    return next((lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in lines), None)
