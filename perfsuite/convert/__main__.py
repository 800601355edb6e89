"""`python -m perfsuite.convert`: the gains of the conversions for known models with random weights, as a table.

The gain that the paper (arXiv 2305.14858) claims is 1 to 10 %. What norms take is their share of a model: about
tokens x width against the tokens x width^2 of its products, so that narrow models and 16-bit products show them best.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from torch import nn

from perfsuite import detect
from perfsuite.convert import gain
from perfsuite.op import torch_dtype

# What a model's layers gain hardly depends on their number; compiling them takes time in proportion to it.
_LAYERS = 4
_MODELS = "gpt2, vit-b or vit-ti"


@dataclass(frozen=True)
class Case:
    """A model and the input of one call of it; `about` says its sizes."""

    about: str
    make: Callable[[torch.dtype], tuple[nn.Module, dict[str, Any]]]


def _gpt2(dtype: torch.dtype) -> tuple[nn.Module, dict[str, Any]]:
    import transformers

    config = transformers.GPT2Config(n_layer=_LAYERS)
    tokens = torch.randint(config.vocab_size, (1, 64))
    model: nn.Module = transformers.GPT2Model(config)
    return model.to(dtype), {"input_ids": tokens, "use_cache": False, "return_dict": False}


def _vit(width: int, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Any]]:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=width, intermediate_size=4 * width, num_attention_heads=width // 64, num_hidden_layers=_LAYERS
    )
    images = torch.randn(1, 3, 224, 224, dtype=dtype)
    model: nn.Module = transformers.ViTForImageClassification(config)
    return model.to(dtype), {"pixel_values": images, "return_dict": False}


CASES = {
    "gpt2": Case("GPT-2, width 768, 64 tokens", _gpt2),
    "vit-b": Case("ViT-B/16, width 768, 1 image", lambda dtype: _vit(768, dtype)),
    "vit-ti": Case("ViT-Ti/16, width 192, 1 image", lambda dtype: _vit(192, dtype)),
}


def main(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help=f"{_MODELS}; all by default.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="f32 or bf16.")] = "f32",
    rounds: Annotated[int, typer.Option(min=3, help="Interleaved rounds.")] = 200,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    eager: Annotated[bool, typer.Option("--eager", help="Do not compile the models.")] = False,
) -> None:
    """Time each model as Pre-LN, converted to Pre-RMSNorm and Pre-CRMSNorm, and without norms; print a table."""
    for name in models or CASES:
        if name not in CASES:
            raise ValueError(f"{name} is none of {_MODELS}")
    if dtype not in ("f32", "bf16"):
        raise ValueError(f"--dtype {dtype} is neither f32 nor bf16")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    print(f"{detect.machine().cpu}, {dtype}, threads: {threads}, {'eager' if eager else 'compiled'}, {rounds} rounds\n")
    print("| model | made | largest difference | gain in inference | gain in training |")
    print("|---|---|---|---|---|")
    for name in models or CASES:
        case = CASES[name]
        model, inputs = case.make(torch_dtype(dtype))
        for one in gain.measure(model, inputs, rounds, compiled=not eager):
            difference = "" if one.name == gain.BARE else f"{one.difference:.1e}"
            cells = (case.about, one.name, difference, _percents(one.inference), _percents(one.training))
            print(f"| {' | '.join(cells)} |", flush=True)


def _percents(ends: tuple[float, float]) -> str:
    """`+1.2 to +3.4 %`; of a few rounds nothing can be said."""
    if math.isinf(ends[1]):
        return "unknown"
    low, high = (100.0 * (end - 1.0) for end in ends)
    return f"{low:+.1f} to {high:+.1f} %"


if __name__ == "__main__":
    try:
        typer.run(main)
    except ModuleNotFoundError as missing:
        raise SystemExit(f"perfsuite: {missing}: pip install 'perfsuite[convert]'") from None
    except ValueError as wrong:
        raise SystemExit(f"perfsuite: {wrong}") from None
