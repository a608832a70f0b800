"""Names of the two public hazard taxonomies that a policy's categories may be mapped onto.

The S-codes number the MLCommons hazards as Llama Guard 3 does (its model card; S14 is its own addition). The moderation
names are those of OpenAI's moderation endpoint; it judges images by six of its thirteen categories and only text by the
other seven.
"""

from __future__ import annotations

MLCOMMONS: dict[str, str] = {
    "S1": "violent crimes",
    "S2": "non-violent crimes",
    "S3": "sex-related crimes",
    "S4": "child sexual exploitation",
    "S5": "defamation",
    "S6": "specialized advice",
    "S7": "privacy",
    "S8": "intellectual property",
    "S9": "indiscriminate weapons",
    "S10": "hate",
    "S11": "suicide and self-harm",
    "S12": "sexual content",
    "S13": "elections",
    "S14": "code interpreter abuse",
}

OPENAI_IMAGE: tuple[str, ...] = (
    "sexual",
    "violence",
    "violence/graphic",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
)

OPENAI_TEXT_ONLY: tuple[str, ...] = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "sexual/minors",
)
