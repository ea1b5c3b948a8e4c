"""What a config file states, held against the model that was built from it.

transformers keeps a key that its class does not take and goes on with the class's own default: a misspelt
``num_expert`` so gives another model than the file describes. Two checks find
it: the facts of :mod:`moecap.model.keys` are read off the built model, and every other key must be one that the class
takes, that changes something else in the config, or that is known to shape nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moecap.errors import MoecapError
from moecap.model.built import declared, quiet, text_key
from moecap.model.keys import config_keys
from moecap.model.skeleton import Skeleton
from moecap.model.words import EXPERTS_WORDS, FUSED_QKV_WORDS, KEY_WORDS, MOE_FLAGS, TOP_K_WORDS

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def states_experts(stated: Mapping[str, Any], config: PretrainedConfig) -> int:
    """Routed experts that the file itself speaks of; 0 if it does not, or switches them off."""
    text = config.get_text_config(decoder=True)
    if any(getattr(text, flag, None) is False for flag in MOE_FLAGS):
        return 0
    own = text_level(stated, config)
    experts = next((own[word] for word in EXPERTS_WORDS if isinstance(own.get(word), int)), 0)
    uses = any(isinstance(own.get(word), int) and own[word] > 1 for word in TOP_K_WORDS)
    return experts if experts > 1 and uses else 0


def text_level(stated: Mapping[str, Any], config: PretrainedConfig) -> Mapping[str, Any]:
    """The part of a file that describes the text model."""
    key = text_key(config)
    inner = stated.get(key) if key else None
    return inner if isinstance(inner, Mapping) else stated


def check_stated(found: Skeleton, stated: Mapping[str, Any], config: PretrainedConfig, where: str) -> Skeleton:
    """The skeleton, with notes on keys that shape nothing, if the built model is the one that the file states.

    Raises:
        MoecapError: a fact of the built model is another than the file's, or a key that speaks of shapes is read by
            nobody; all of them are named.
    """
    own = text_level(stated, config)
    text = config.get_text_config(decoder=True)
    switches = {key: value for key, value in stated.items() if config_keys().flag(key)}
    wrong = [
        *_other_facts(found, own, text),
        *_other_flags(found, {**switches, **own}, text),
        *_other_patterns(found, own, text),
    ]
    unread = [key for key in own if _is_unread(key, own, text)]
    known = declared(type(text)) | {word for words in config_keys().facts.values() for word in words}
    shaping = [key for key in unread if config_keys().speaks_of_shapes(key) or _close(key, known)]
    if wrong or shaping:
        raise MoecapError(
            f"{where}: the model that transformers builds is not the one that the file states. "
            + " ".join([*wrong, *(_unread_sentence(key, own[key], text, known) for key in shaping)])
        )
    notes = []
    if rest := sorted(set(unread) - set(shaping)):
        notes.append(f"Keys of the config that nothing reads: {', '.join(rest)}.")
    if idle := _idle_facts(found, own):
        notes.append(f"Stated, but nothing of the built model has it: {', '.join(idle)}.")
    return replace(found, notes=(*found.notes, *notes))


# -- facts


#: Facts that say nothing of a latent or linear attention; configs state them all the same.
_OF_PLAIN_ATTENTION = ("head_dim", "kv_heads")


def built_facts(found: Skeleton) -> dict[str, set[int]]:
    """What the built model shows for each fact, over its layers; no entry: it shows nothing for it."""
    decoder = [layer for layer in found.layers if layer.stack == "decoder"]
    facts: dict[str, set[int]] = {
        "hidden_size": {found.hidden_size},
        "vocab_size": {found.vocab_size},
        "layers": {len(decoder)},
        "experts": {layer.experts for layer in decoder if layer.experts},
        "top_k": {layer.top_k for layer in decoder if layer.experts},
        "heads": {m.query_heads // m.blocks for m in (layer.memory for layer in decoder) if m.query_heads},
        "kv_heads": {m.kv_heads for m in (layer.memory for layer in decoder) if m.kv_heads and m.attention != "latent"},
        "head_dim": {
            n
            for m in (x.memory for x in decoder)
            if m.attention != "latent"
            for n in (m.qk_head_dim, m.v_head_dim)
            if n
        },
        "window": {c.window for layer in decoder for c in layer.memory.caches if c.window},
        "expert_width": _widths(found, "routed_experts"),
        "shared_width": _widths(found, "shared_experts"),
        "dense_width": _widths(found, "dense_mlp"),
    }
    if facts["experts"]:
        facts["leading_dense_layers"] = {next(i for i, layer in enumerate(decoder) if layer.experts)}
    return {fact: values for fact, values in facts.items() if values}


def _widths(found: Skeleton, component: str) -> set[int]:
    """The sizes of a component's matrices other than the hidden size."""
    shapes = [
        size
        for part in found.parts
        if part.component == component
        for size in ([n for m in part.matrices for n in (m.rows, m.columns)] or part.shape[-2:])
    ]
    return (set(shapes) - {found.hidden_size, 1}) or set(shapes)


def _stated_facts(own: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Key, fact and value of what a file states as a whole number."""
    for key, value in own.items():
        fact = config_keys().fact(key)
        if fact is not None and isinstance(value, int) and not isinstance(value, bool):
            yield key, fact, value


def _every_width(built: Mapping[str, set[int]]) -> set[int]:
    return {width for fact, widths in built.items() if fact.endswith("_width") for width in widths}


def _other_facts(found: Skeleton, own: Mapping[str, Any], text: PretrainedConfig) -> Iterator[str]:
    """A sentence for every fact of which the built model shows another value than the file states."""
    built = built_facts(found)
    taken, every = declared(type(text)), _every_width(built)
    for key, fact, value in _stated_facts(own):
        shown = built.get(fact, set())
        if fact == "shared_experts":
            yield from _other_shared_experts(key, value, own, built)
            continue
        if fact.endswith("_width"):
            # One word stands for different widths in different families; a fused projection holds two of them.
            if not value or value in every or 2 * value in every or (key in taken and not shown):
                continue
            shown = shown or every
        if value in shown or (not shown and (key in taken or not value or fact in _OF_PLAIN_ATTENTION)):
            continue
        if fact == "leading_dense_layers" and key in taken:
            continue
        yield f"{key} is {value}, but the built model has {' and '.join(map(str, sorted(shown))) or 'none'}."


def _other_shared_experts(key: str, value: int, own: Mapping[str, Any], built: Mapping[str, set[int]]) -> Iterator[str]:
    """Shared experts are built as one block: as wide as all of them together, unless the file states a width."""
    wide = built.get("shared_width", set())
    if bool(value) != bool(wide):
        yield f"{key} is {value}, but the built model has {'' if wide else 'no '}shared experts."
    elif value and not any(own.get(word) for word in config_keys().facts["shared_width"]):
        together = {value * width for width in built.get("expert_width", ())}
        if together and not together & {n for width in wide for n in (width, width // 2)}:
            yield f"{key} is {value}, but the built model's shared experts are {sorted(wide)} wide together."


def _idle_facts(found: Skeleton, own: Mapping[str, Any]) -> list[str]:
    """Facts that are stated, but the built model shows nothing of their kind: a dense width without a dense layer."""
    built = built_facts(found)
    every = _every_width(built)
    return [
        f"{key} ({value})"
        for key, fact, value in _stated_facts(own)
        if value and fact != "shared_experts" and fact not in built and not (fact.endswith("_width") and value in every)
    ]


def built_flags(found: Skeleton) -> dict[str, bool]:
    """What the built model has, for each switch that configs have for it."""
    names = [(part.component, part.name) for part in found.parts]

    def any_of(component: str, *endings: str) -> bool:
        return any(own == component and name.endswith(endings) for own, name in names)

    return {
        "attention_bias": any_of("attention", *(f"{word}.bias" for word in (*KEY_WORDS, *FUSED_QKV_WORDS, "q_proj"))),
        "qk_norm": any(
            "norm" in name.split(".")[-2] and name.split(".")[-2][0] in "qk" for c, name in names if c == "norms"
        ),
        "router_bias": any_of("router", "bias"),
        "sinks": any_of("attention", "sinks", "sink", "sink_bias"),
        "tied_embeddings": found.tied_embeddings,
    }


def _other_flags(found: Skeleton, own: Mapping[str, Any], text: PretrainedConfig) -> Iterator[str]:
    built = built_flags(found)
    for key, value in own.items():
        flag = config_keys().flag(key)
        if flag is None or not isinstance(value, bool) or key in declared(type(text)) or built[flag] == value:
            continue
        has = f"{'' if built[flag] else 'no '}{flag.replace('_', ' ')}"
        yield f"{key} is {str(value).lower()}, but the built model has {has}."


def _other_patterns(found: Skeleton, own: Mapping[str, Any], text: PretrainedConfig) -> Iterator[str]:
    decoder = [layer for layer in found.layers if layer.stack == "decoder"]
    built = {
        "moe": [layer.experts > 0 for layer in decoder],
        "sliding": [layer.memory.attention == "sliding" for layer in decoder],
        "full": [layer.memory.attention == "full" for layer in decoder],
    }
    for key, value in own.items():
        pattern = config_keys().pattern(key)
        if pattern is None or not value or isinstance(value, bool) or key in declared(type(text)):
            continue
        if not isinstance(value, list) and key in config_keys().as_built:
            continue
        # A list has one truth per layer, a number says every which layer it is.
        each = value if isinstance(value, list) else [(i + 1) % value == 0 for i in range(len(decoder))]
        stated = [bool(v) for v in each]
        if stated[: len(decoder)] != built[pattern]:
            yield (
                f"{key} says that {sum(stated)} of {len(stated)} layers are {pattern}, but in the built model "
                f"{sum(built[pattern])} of {len(decoder)} are, or others."
            )


# -- keys


def _is_unread(key: str, own: Mapping[str, Any], text: PretrainedConfig) -> bool:
    """Whether nobody reads a key: no fact, not taken by the class, of no effect on it, and not known to be harmless."""
    keys, value = config_keys(), own[key]
    if key in declared(type(text)) or keys.fact(key) or keys.is_harmless(key) or _is_absence(value):
        return False
    if keys.flag(key) or (keys.pattern(key) and (isinstance(value, list) or key not in keys.as_built)):
        return False  # held against the built model
    if keys.said_again.get(key) in own:
        return False
    if key in keys.as_built:
        values = value if isinstance(value, list) else [value]
        if all(v in keys.as_built[key] for v in values):
            return False
    if isinstance(value, str) and not _close(key, declared(type(text))):
        return False
    return not _has_effect(key, own, text)


def _is_absence(value: Any) -> bool:
    return value is None or value is False or (not isinstance(value, (int, float)) and not value) or value == 0


def _has_effect(key: str, own: Mapping[str, Any], text: PretrainedConfig) -> bool:
    """Whether another value of a key changes anything else in the config that the class makes of the file."""
    rest = {k: v for k, v in own.items() if k not in ("model_type", "quantization_config")}

    def made(values: Mapping[str, Any]) -> Any:
        try:
            with quiet():
                data = type(text)(**values).to_dict()
        except Exception:  # the class checks the value, so it reads it
            return None
        data.pop(key, None)
        return data

    before = made(rest)
    return any(made(rest | {key: other}) != before for other in _others(own[key]))


def _others(value: Any) -> Iterator[Any]:
    """A few values of the same type."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield value + 1
        yield value * 2
    elif isinstance(value, list):
        yield value[::-1]
        yield value[1:] + value[:1]
        yield value[:-1]
    elif isinstance(value, dict):
        for name, inner in value.items():
            for other in _others(inner):
                yield value | {name: other}
    else:
        yield f"{value}x"


def _close(key: str, known: set[str]) -> list[str]:
    """Known keys of which this one may be a misspelling."""
    return [] if key in known else difflib.get_close_matches(key, sorted(known), n=2, cutoff=0.85)


def _unread_sentence(key: str, value: Any, text: PretrainedConfig, known: set[str]) -> str:
    shown = str(value) if len(str(value)) <= 40 else f"{str(value)[:37]}..."
    close = _close(key, known)
    hint = f" Did you mean {' or '.join(close)}?" if close else " If it shapes nothing, take it out of the file."
    return f"{key} ({shown}) is read by nobody: {type(text).__name__} does not take it.{hint}"
