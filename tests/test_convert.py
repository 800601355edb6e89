"""Pre-LN transformers converted to Pre-RMSNorm and Pre-CRMSNorm: equal outputs, and words for what cannot be."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from perfsuite.convert import CRMSNorm, RMSNorm, gain, pre_ln_to_crms, pre_ln_to_rms
from perfsuite.convert import __main__ as table
from perfsuite.convert.layers import Whole

Convert = Callable[[nn.Module], nn.Module]
Tensor = torch.Tensor
WIDTH = 24
# Allowed difference of outputs near 1: in float64 what the folding rounds, in float32 what either model rounds.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
both = pytest.mark.parametrize("convert", [pre_ln_to_rms, pre_ln_to_crms])
precisions = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads have nothing to do in models this small but to wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shaken(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with random numbers for all its weights: gains, offsets and means that a fresh model has not."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.1)
    return model.to(dtype).eval()


def encoder(layers: int = 2, batch_first: bool = True, dropout: float = 0.0, **changes: Any) -> nn.TransformerEncoder:
    options: dict[str, Any] = {
        "norm_first": True,
        "dropout": dropout,
        "batch_first": batch_first,
        "activation": "gelu",
    } | changes
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 40, **options)
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(WIDTH), enable_nested_tensor=False)


def difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).detach().abs().max())


def norms(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


@both
@precisions
@pytest.mark.parametrize("batch_first", [True, False])
def test_an_encoder_computes_the_same(convert: Convert, dtype: torch.dtype, batch_first: bool) -> None:
    model = shaken(encoder(batch_first=batch_first), dtype)
    before = copy.deepcopy(model.state_dict())
    made = convert(model)
    assert norms(made, nn.LayerNorm) == 0
    assert norms(made, RMSNorm if convert is pre_ln_to_rms else CRMSNorm) == 5
    assert all(map(torch.equal, model.state_dict().values(), before.values())), "the given model stays as it was"
    x = torch.randn(5, 7, WIDTH, dtype=dtype) + 2.0  # a branch that does not begin with mean zero
    rows, length = (5, 7) if batch_first else (7, 5)
    padding = torch.zeros(rows, length, dtype=dtype)
    padding[1, -2:] = -torch.inf
    causal = nn.Transformer.generate_square_subsequent_mask(length, dtype=dtype)
    own = torch.randn(4 * rows, length, length, dtype=dtype)
    for masks in (
        {},
        {"mask": causal, "is_causal": True},
        {"src_key_padding_mask": padding},
        {"mask": own, "src_key_padding_mask": padding},
    ):
        assert difference(made(x, **masks), model(x, **masks)) < TOLERANCE[dtype]
    assert difference(made(src=x[0]), model(src=x[0])) < TOLERANCE[dtype]
    again = pickle.loads(pickle.dumps(made))
    assert torch.equal(again(x), made(x))


@both
def test_gradients_are_the_same_while_nothing_is_trained(convert: Convert) -> None:
    model = shaken(encoder(), torch.float64).train()
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    gradients = []
    for each in (model, convert(model)):
        given_x = x.clone().requires_grad_()
        each(given_x).square().sum().backward()
        assert given_x.grad is not None
        gradients.append(given_x.grad)
    assert difference(*gradients) < 1e-10


def test_the_branch_has_mean_zero_and_is_one_narrower() -> None:
    model = shaken(encoder(), torch.float64)
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    seen: dict[str, list[Tensor]] = {"rms": [], "crms": []}
    for name, made in (("rms", pre_ln_to_rms(model)), ("crms", pre_ln_to_crms(model))):
        stack: Any = made.layers
        for layer in stack:
            layer.register_forward_hook(lambda module, inputs, output, name=name: seen[name].append(output))
        made(x)
    for wide, narrow in zip(seen["rms"], seen["crms"], strict=True):
        assert float(wide.detach().mean(-1).abs().max()) < 1e-13
        assert difference(narrow, wide[..., :-1]) < 1e-12


@given(
    layers=st.integers(1, 3),
    activation=st.sampled_from(["relu", "gelu"]),
    bias=st.booleans(),
    eps=st.sampled_from([1e-12, 1e-5, 0.1]),
)
@settings(max_examples=12)
def test_any_pre_ln_encoder_in_any_model(layers: int, activation: str, bias: bool, eps: float) -> None:
    inner = encoder(layers, activation=activation, bias=bias, layer_norm_eps=eps)
    inner.norm = nn.LayerNorm(WIDTH, eps, elementwise_affine=bias)
    model = shaken(nn.Sequential(nn.Embedding(50, WIDTH), inner, nn.Linear(WIDTH, 3)), torch.float64)
    tokens = torch.randint(0, 50, (2, 6))
    for convert in (pre_ln_to_rms, pre_ln_to_crms):
        assert difference(convert(model)(tokens), model(tokens)) < 1e-11


@given(st.integers(2, 40), st.floats(0.01, 100.0), st.booleans())
def test_crms_norm_is_rms_norm_of_the_row_with_its_last(width: int, scale: float, affine: bool) -> None:
    x = torch.randn(3, width - 1, dtype=torch.float64) * scale
    row = torch.cat([x, -x.sum(-1, keepdim=True)], -1)
    wide = RMSNorm(width, 1e-5)(row)
    assert difference(CRMSNorm(width, 1e-5)(x), wide[:, :-1]) < 1e-12
    scales, offset = (torch.randn(width, dtype=torch.float64) for _ in range(2)) if affine else (None, None)
    want = nn.functional.layer_norm(row, (width,), scales, offset, 1e-5)
    assert difference(RMSNorm(width, 1e-5, scales, offset)(row), want) < 1e-11
    assert difference(Whole(scales, offset)(CRMSNorm(width, 1e-5)(x)), want) < 1e-11


@both
def test_what_cannot_be_converted_is_told(convert: Convert) -> None:
    with pytest.raises(
        ValueError, match=r"Linear has no main branch that is known here \(TransformerEncoder, GPT2Model"
    ):
        convert(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="Post-LN"):
        convert(encoder(norm_first=False))
    headless = encoder()
    headless.norm = None
    with pytest.raises(ValueError, match="no final norm"):
        convert(headless)
    with pytest.raises(ValueError, match=r"call eval\(\) on the model"):
        convert(encoder(dropout=0.1).train())
    convert(encoder(dropout=0.1).eval())
    shared = encoder()
    shared.layers[1] = shared.layers[0]
    with pytest.raises(ValueError, match="a layer occurs twice in TransformerEncoder"):
        convert(shared)
    other = encoder()
    other.layers[0].norm2 = nn.RMSNorm(WIDTH)
    with pytest.raises(ValueError, match="norm2 of TransformerEncoderLayer is RMSNorm"):
        convert(other)
    wrapped = encoder()
    wrapped.layers[0].linear2 = nn.Sequential(nn.Linear(40, WIDTH))
    with pytest.raises(ValueError, match="only Linear, Conv2d and Conv1D"):
        convert(wrapped)
    with pytest.raises(ValueError, match="is RMSNorm"):
        convert(pre_ln_to_rms(encoder()))


@pytest.mark.quiet
def test_the_gain_is_measured_round_by_round() -> None:
    model = shaken(encoder(), torch.float32)
    rms, crms, bare = gain.measure(model, {"src": torch.randn(2, 5, WIDTH)}, rounds=12)
    assert (rms.name, crms.name, bare.name) == ("Pre-RMSNorm", "Pre-CRMSNorm", "no norms")
    assert 0.0 < max(rms.difference, crms.difference) < 1e-5 < bare.difference
    for found in (rms, crms, bare):
        for low, high in (found.inference, found.training):
            assert 0.0 < low < high < math.inf
    one, *_ = gain.measure(model, {"src": torch.randn(2, 5, WIDTH)}, rounds=2)
    assert one.inference == (0.0, math.inf), "two rounds say nothing"


def test_the_table_of_gains_names_every_model_and_what_is_unknown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(dtype: torch.dtype) -> tuple[nn.Module, dict[str, Tensor]]:
        return encoder().to(dtype), {"src": torch.randn(2, 5, WIDTH, dtype=dtype)}

    monkeypatch.setattr(table, "CASES", {"tiny": table.Case("an encoder", make)})
    table.main(["tiny"], dtype="bf16", rounds=12, threads=torch.get_num_threads(), eager=True)
    rows = [line for line in capsys.readouterr().out.splitlines() if "an encoder" in line]
    assert [row.split(" | ")[1] for row in rows] == ["Pre-RMSNorm", "Pre-CRMSNorm", "no norms"]
    assert all(row.count("%") == 2 and " to " in row for row in rows)
    with pytest.raises(ValueError, match="large is none of gpt2, vit-b or vit-ti"):
        table.main(["large"])


def gpt2() -> tuple[nn.Module, dict[str, Tensor]]:
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'perfsuite[convert]'")
    config = transformers.GPT2Config(vocab_size=101, n_positions=32, n_embd=48, n_layer=3, n_head=4)
    return transformers.GPT2LMHeadModel(config), {"input_ids": torch.randint(0, 101, (2, 17))}


def vit() -> tuple[nn.Module, dict[str, Tensor]]:
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'perfsuite[convert]'")
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=5)
    return transformers.ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


@both
@precisions
@pytest.mark.parametrize("make", [gpt2, vit])
def test_models_of_transformers_compute_the_same(
    make: Callable[[], tuple[nn.Module, dict[str, Tensor]]], convert: Convert, dtype: torch.dtype
) -> None:
    fresh, inputs = make()
    model: Any = shaken(fresh, dtype)
    inputs = {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs.items()}
    made: Any = convert(model)
    assert norms(made, nn.LayerNorm) == 0
    with torch.no_grad():
        want, got = model(**inputs).logits, made(**inputs).logits
        assert difference(made(**inputs, return_dict=False)[0], got) == 0.0
    assert difference(got, want) < TOLERANCE[dtype] * float(want.abs().max())


@both
def test_gpt2_keeps_its_head_and_generates_the_same(convert: Convert) -> None:
    fresh, inputs = gpt2()
    model: Any = shaken(fresh, torch.float64)
    assert model.lm_head.weight is model.transformer.wte.weight
    made: Any = convert(model)
    assert torch.equal(made.lm_head.weight, model.lm_head.weight)
    assert made.lm_head.weight is not made.transformer.wte.weight
    made.tie_weights()
    assert made.lm_head.weight is not made.transformer.wte.weight
    assert model.config.tie_word_embeddings, "the given model stays as it was"
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(made.generate(**inputs, **options), model.generate(**inputs, **options))
