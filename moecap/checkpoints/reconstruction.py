"""Where a variant loses accuracy: the error of each attention block, expert and MLP, alone; and who saw how much text.

Runs in the environment that has llmcompressor, on the model in memory before and after it is quantized. Errors do not
add up over layers: while the variant runs, every normalization that feeds a block reads what it read in the reference.
An expert is judged on the tokens that the reference's router sends to it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def expert_tokens(model: torch.nn.Module, sequences: Iterable[list[int]]) -> dict[str, int]:
    """Expert -> tokens of the text that the router sends to it; one that gets none is there with 0."""
    import torch
    from llmcompressor.modeling.moe.linearize import get_linearized_moes

    found: Counter[str] = Counter()

    def count(name: str) -> Callable[..., None]:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.update(f"{name}.{expert}" for expert in _chosen(args, kwargs).flatten().tolist())

        return hook

    handles = []
    for name, module in get_linearized_moes(model):
        found.update({f"{name}.{expert}": 0 for expert in range(module.num_experts)})
        handles.append(module.register_forward_pre_hook(count(name), with_kwargs=True))
    try:
        for ids in sequences:
            with torch.no_grad():
                model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return dict(found)


def too_few(model: torch.nn.Module, tokens: dict[str, int]) -> dict[str, int]:
    """Experts with fewer tokens of their own than their matrices have inputs.

    What is estimated from so few (GPTQ's Hessian, AWQ's scales) is not determined by them: the rest comes from tokens
    that the router sends elsewhere, since llmcompressor calibrates every expert on all of them.
    """
    import torch

    widest = {
        name: max(m.in_features for m in model.get_submodule(name).modules() if isinstance(m, torch.nn.Linear))
        for name in tokens
    }
    return {name: count for name, count in tokens.items() if count < widest[name]}


class Reference:
    """What the model computes before it is quantized, for :meth:`errors` afterwards.

    Args:
        sequences: token ids of a held-out text.
        blocks: module -> component, of whose outputs the errors are wanted.
        norms: normalizations that feed them.
    """

    def __init__(
        self, model: Any, sequences: Sequence[list[int]], blocks: dict[str, str], norms: Sequence[str]
    ) -> None:
        self.model, self.sequences, self.blocks, self.norms = model, sequences, blocks, norms
        self.norm_inputs: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.chosen: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.outputs: dict[str, list[torch.Tensor]] = defaultdict(list)
        for _ in self._runs(self._keep_norm, self._keep_output):
            pass

    def errors(self) -> list[dict[str, Any]]:
        """Per block ``relative_error`` = ‖variant - reference‖ / ‖reference‖ over ``tokens``; null without any."""
        self._difference: dict[str, float] = defaultdict(float)
        self._size: dict[str, float] = defaultdict(float)
        self._tokens: Counter[str] = Counter()
        for _ in self._runs(self._give_norm, self._compare):
            pass
        return [
            {
                "block": name,
                "component": component,
                "tokens": self._tokens[name],
                "relative_error": (self._difference[name] / self._size[name]) ** 0.5 if self._size[name] else None,
            }
            for name, component in self.blocks.items()
        ]

    def _runs(self, norm: Callable[..., Any], output: Callable[..., None]) -> Iterator[int]:
        """A pass per sequence, every expert on every token."""
        import torch
        from llmcompressor.modeling.moe.context import moe_calibration_context

        with self._hooks(norm, output), moe_calibration_context():
            for index, ids in enumerate(self.sequences):
                self._index = index
                with torch.no_grad():
                    self.model(input_ids=torch.tensor([ids], device=self.model.device), use_cache=False)
                yield index

    @contextmanager
    def _hooks(self, norm: Callable[..., Any], output: Callable[..., None]) -> Iterator[None]:
        from llmcompressor.modeling.moe.linearize import get_linearized_moes

        def bound(function: Callable[..., Any], name: str) -> Callable[..., Any]:
            return lambda *given: function(name, *given)

        modules = dict(self.model.named_modules())
        handles = [modules[n].register_forward_pre_hook(bound(norm, n)) for n in self.norms]
        handles += [modules[n].register_forward_hook(bound(output, n)) for n in self.blocks]
        for name, module in get_linearized_moes(self.model):
            handles.append(module.register_forward_pre_hook(bound(self._route, name), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _route(self, name: str, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(self.chosen[name]) == self._index:
            self.chosen[name].append(_chosen(args, kwargs))

    def _keep_norm(self, name: str, _module: Any, args: tuple[Any, ...]) -> None:
        self.norm_inputs[name].append(args[0].detach().cpu())

    def _give_norm(self, name: str, _module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.norm_inputs[name][self._index].to(args[0].device), *args[1:])

    def _rows(self, name: str, output: Any) -> torch.Tensor:
        """A block's outputs as (tokens, width); of an expert those of its own tokens."""
        tensor = output[0] if isinstance(output, tuple) else output
        rows = tensor.detach().flatten(0, -2)
        moe, _, expert = name.rpartition(".")
        if moe in self.chosen:
            rows = rows[(self.chosen[moe][self._index] == int(expert)).any(-1).to(rows.device)]
        return rows.float().cpu()

    def _keep_output(self, name: str, _module: Any, _args: Any, output: Any) -> None:
        self.outputs[name].append(self._rows(name, output))

    def _compare(self, name: str, _module: Any, _args: Any, output: Any) -> None:
        expected, found = self.outputs[name][self._index], self._rows(name, output)
        self._difference[name] += float((found - expected).square().sum())
        self._size[name] += float(expected.square().sum())
        self._tokens[name] += len(expected)


def _chosen(args: Iterable[Any], kwargs: dict[str, Any]) -> torch.Tensor:
    """(tokens, top-k) expert ids among the arguments of a block of experts."""
    import torch

    return next(
        a.detach().cpu()
        for a in (*args, *kwargs.values())
        if isinstance(a, torch.Tensor) and a.ndim == 2 and not a.is_floating_point()
    )


def blocks_of(components: dict[str, str]) -> dict[str, str]:
    """Modules that hold quantized linear layers themselves -> component."""
    return {name.rpartition(".")[0]: component for name, component in components.items()}
