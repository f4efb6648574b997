"""Prompts of dynamic spatial relationships: the relations and their types, the grammar, and loading prompt sets.

One animal moves relative to one static object. One relation holds at the start, another at the end (SpatialAlign,
arXiv 2602.22745, section 3). The names below are public. They are defined in `nouns.py`, `relations.py`,
`reading.py`, `grammar.py` and `loading.py`.
"""

from spatialalign_trl.prompts.grammar import (
    GRAMMAR,
    PROMPT_COLUMNS,
    DSRPrompt,
    PromptGrammarError,
    build_prompt,
    check_one_thing,
    indefinite_article,
    parse_prompt,
)
from spatialalign_trl.prompts.loading import load_prompts
from spatialalign_trl.prompts.nouns import is_same_noun
from spatialalign_trl.prompts.relations import (
    DEPTH_RELATIONS,
    DSR_TYPES,
    END_FRAMES,
    RELATIONS,
    Relation,
    check_dsr_type,
    split_type,
)

__all__ = [
    "DEPTH_RELATIONS",
    "DSR_TYPES",
    "END_FRAMES",
    "GRAMMAR",
    "PROMPT_COLUMNS",
    "RELATIONS",
    "DSRPrompt",
    "PromptGrammarError",
    "Relation",
    "build_prompt",
    "check_dsr_type",
    "check_one_thing",
    "indefinite_article",
    "is_same_noun",
    "load_prompts",
    "parse_prompt",
    "split_type",
]
