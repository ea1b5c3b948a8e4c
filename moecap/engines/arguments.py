"""Which arguments an engine, or lm-eval's model of it, takes: read from its source, without loading it.

To import vLLM or Transformers takes seconds, and an environment that only plans has neither. A class's fields and
parameters stand in its source, which is parsed. What is not installed is not known, and nothing is then refused.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

Place = tuple[str, str, str, str | None]
_VLLM: tuple[Place, ...] = (
    ("vllm", "engine/arg_utils.py", "EngineArgs", None),
    ("vllm", "entrypoints/llm.py", "LLM", "__init__"),
)
#: ``from_pretrained`` lays what it does not know itself over the model's config.
_TRANSFORMERS: tuple[Place, ...] = (
    ("transformers", "modeling_utils.py", "PreTrainedModel", "from_pretrained"),
    ("transformers", "configuration_utils.py", "PreTrainedConfig", None),
)
#: lm-eval's name of a model -> where arguments go that it does not know itself. Of other models only those are known
#: that take no further ones.
_BEYOND = {"vllm": _VLLM, "hf": _TRANSFORMERS, "hf-auto": _TRANSFORMERS, "huggingface": _TRANSFORMERS}


def vllm_arguments() -> frozenset[str]:
    """Names that vLLM's ``EngineArgs`` take; empty: vLLM is not installed here."""
    return _declared(*_VLLM[0])[0]


def lm_eval_models() -> dict[str, str]:
    """lm-eval's names of models, each with the class that it means (``module:Class``); empty: it is not installed."""
    tree = _parsed("lm_eval", "models/__init__.py")
    for node in tree.body if tree else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODEL_MAPPING":
            return dict(ast.literal_eval(node.value))
    return {}


def lm_eval_arguments(model: str) -> frozenset[str]:
    """Names that an lm-eval model takes as ``model_args``; empty: what it takes cannot be told."""
    module, _, name = lm_eval_models().get(model, "").partition(":")
    package, _, path = module.partition(".")
    if not path:
        return frozenset()
    own, open_ended = _declared(package, f"{path.replace('.', '/')}.py", name, "__init__")
    further = [_declared(*place)[0] for place in _BEYOND.get(model, ())]
    if not own or (open_ended and not (further and all(further))):
        return frozenset()
    return own.union(*further)


@cache
def _declared(package: str, file: str, owner: str, method: str | None) -> tuple[frozenset[str], bool]:
    """Fields of a class, or the parameters of its method and what that takes out of its ``kwargs`` by name; and
    whether it takes others."""
    tree = _parsed(package, file)
    found = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == owner), None) if tree else None
    if found is None:
        return frozenset(), False
    if method is None:
        fields = (n.target for n in found.body if isinstance(n, ast.AnnAssign))
        return frozenset(n.id for n in fields if isinstance(n, ast.Name) and not n.id.startswith("_")), False
    function = next((n for n in found.body if isinstance(n, ast.FunctionDef) and n.name == method), None)
    if function is None:
        return frozenset(), False
    names = {a.arg for a in (*function.args.args, *function.args.kwonlyargs)} - {"self", "cls"}
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"kwargs.pop", "kwargs.get"}:
            names |= {str(first.value) for first in node.args[:1] if isinstance(first, ast.Constant)}
    return frozenset(names), function.args.kwarg is not None


def _parsed(package: str, file: str) -> ast.Module | None:
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        try:
            return ast.parse((Path(folder) / file).read_text(encoding="utf-8"))
        except (OSError, SyntaxError):
            continue
    return None
