"""What a judge is asked, and which of its five verdicts it gave: read strictly, never guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from moecap.documents import read_document
from moecap.errors import MoecapError

#: Verdict → the score of the answer shown first, and whether it counts for several battles.
VERDICTS: dict[str, tuple[float, bool]] = {
    "A>>B": (1.0, True),
    "A>B": (1.0, False),
    "A=B": (0.5, False),
    "B>A": (0.0, False),
    "B>>A": (0.0, True),
}
#: What a game ended with.
Outcome = Literal["verdict", "missing", "unknown", "contradictory", "cut", "refused"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

_LABEL = re.compile(r"\[\[([AB<>=]+)\]\]")
#: The benchmark names what a template is filled with in two ways, by version.
_NAMES = {
    "question": ("question_1", "QUESTION"),
    "first": ("answer_1", "ANSWER_A"),
    "second": ("answer_2", "ANSWER_B"),
}

_SYSTEM = """You compare two answers to the same request, one by assistant A and one by assistant B.
First solve the request yourself. Then check both answers against your own: name what is wrong in them, what is \
missing, and what is beside the point. Prefer the answer that is right, useful and no longer than it has to be. The \
order in which they are shown, their length and who wrote them count for nothing.
End with exactly one of these labels, in double square brackets:
[[A>>B]] A is much better
[[A>B]] A is a little better
[[A=B]] they are equally good
[[B>A]] B is a little better
[[B>>A]] B is much better"""
_USER = """<request>
{QUESTION}
</request>

<answer of assistant A>
{ANSWER_A}
</answer of assistant A>

<answer of assistant B>
{ANSWER_B}
</answer of assistant B>"""


@dataclass(frozen=True)
class Prompts:
    """What a judge is asked: a system message, and a template of the question with its two answers."""

    system: str
    template: str
    source: str

    def messages(self, question: str, first: str, second: str) -> list[dict[str, str]]:
        """A chat of one turn. Braces in question and answers stay as they are."""
        values = {name: text for part, text in (("question", question), ("first", first), ("second", second))
                  for name in _NAMES[part]}  # fmt: skip
        user = re.sub(r"{(\w+)}", lambda found: values.get(found.group(1), found.group()), self.template)
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]


OWN = Prompts(_SYSTEM, _USER, "MoE-CAP's own wording (not the benchmark's)")


def read_prompts(path: str | Path | None) -> Prompts:
    """The prompts of a file in the benchmark's form; ours where there is none.

    Raises:
        MoecapError: a key is missing, or the template leaves out the question or an answer.
    """
    if path is None:
        return OWN
    data = read_document(Path(path)).data
    system, template = (
        data.get(key) if isinstance(data, dict) else None for key in ("system_prompt", "prompt_template")
    )
    if isinstance(template, list):
        template = template[0] if len(template) == 1 else None
    if not isinstance(system, str) or not isinstance(template, str):
        raise MoecapError(f"{path}: `system_prompt` and `prompt_template` (one text each) are expected.")
    lacks = [names for names in _NAMES.values() if not any(f"{{{name}}}" in template for name in names)]
    if lacks:
        raise MoecapError(
            f"{path}: `prompt_template` has no {' and no '.join(f'{{{a}}} (or {{{b}}})' for a, b in lacks)}."
        )
    return Prompts(system, template, str(path))


def read_verdict(text: str) -> tuple[str | None, Outcome]:
    """The verdict of a judgment: one label, as often as the judge likes, out of the five that it may give.

    >>> [read_verdict(text) for text in ("… so [[A>>B]].", "[[A>B]] or [[A>>B]]", "[[A<<B]]", "A>B")]
    [('A>>B', 'verdict'), (None, 'contradictory'), (None, 'unknown'), (None, 'missing')]
    """
    labels = set(_LABEL.findall(text))
    if not labels:
        return None, "missing"
    if len(labels) > 1:
        return None, "contradictory"
    label = labels.pop()
    return (label, "verdict") if label in VERDICTS else (None, "unknown")


def battles(verdict: str, order: int, strong: int) -> list[float]:
    """A game as scores of the model: 1 it won, 0 it lost, 0.5 a tie; a strong verdict counts ``strong`` times.

    Args:
        order: 0: the baseline's answer was shown first (as A), 1: the model's.

    >>> battles("A>>B", 1, 3), battles("A>B", 0, 3)
    ([1.0, 1.0, 1.0], [0.0])
    """
    first, is_strong = VERDICTS[verdict]
    return [first if order else 1.0 - first] * (strong if is_strong else 1)
