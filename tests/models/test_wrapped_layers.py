"""Every layer with weights is called, so that hooks, wrappers and replaced layers work."""

from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from helpers.assertions import assert_close, assert_same
from helpers.contracts import draw, randomize_
from helpers.fields import SMALLEST_DECODER
from helpers.tiers import mostly_exhaustive
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from tmapdiff import DECODERS, PRESETS
from tmapdiff.layers import GatedConv2d, MapTransformerLayer, StylizationBlock
from tmapdiff.layers.stylization import NoStylization
from tmapdiff.models import MapDiffusionDecoder, MomentLocalizer
from tmapdiff.models.map_localizer import MapLocalizer

SMALL: dict[str, Any] = {"channels": 16, "num_heads": 2, "num_layers": 1, "time_channels": 8}
FIELDS = {**SMALLEST_DECODER, "feature_channels": 16, **SMALL}
VARIANTS: dict[str, dict[str, Any]] = {
    "conv": {},
    "no stylization": {"stylization": "none"},
    "multiply": {"conditioning": "multiply-gated"},
    "transformer": {"architecture": "transformer"},
    "cross-attention": {
        "architecture": "transformer",
        "conditioning": "cross-attention",
        "joint_scales": True,
    },
}
variants = mostly_exhaustive("fields", VARIANTS, "conv", "cross-attention")


def make(**fields: Any) -> MapDiffusionDecoder:
    decoder = randomize_(MapDiffusionDecoder(**{**FIELDS, **fields})).eval()
    assert isinstance(decoder, MapDiffusionDecoder)
    return decoder


def features_of(model: MapDiffusionDecoder, batch: int = 2) -> list[Tensor]:
    channels = model.config.feature_channels
    return [draw(batch, channels, *shape, seed=shape[0]) for shape in model.grid.shapes]


def called(model: MapDiffusionDecoder) -> Tensor:
    return model(draw(2, model.grid.num_cells), torch.tensor([900, 10]), features_of(model))


@torch.no_grad()
def denoised(model: MapDiffusionDecoder) -> Tensor:
    prepared = model.prepare(features_of(model, 1), torch.tensor([900, 10]))
    noisy = draw(1, model.grid.num_cells)
    return torch.cat([prepared.denoise(noisy, step) for step in (0, 1)])


def localizer(preset: str = "nano", **decoder: Any) -> MomentLocalizer:
    model = PRESETS[preset].build(**sizes_of(preset), decoder={**SMALL, **decoder})
    return randomize_(model)  # type: ignore[return-value]


def sizes_of(preset: str) -> dict[str, Any]:
    encoder = {"channels": 16, "word_channels": 4}
    words = None if "aligned" in PRESETS[preset].encoder else 9
    return {"vocabulary_size": words, "clip_channels": 6, "encoder": encoder}


def words_of(model: MapLocalizer) -> tuple[Tensor, Tensor]:
    words = torch.tensor([[1, 2, 3], [4, 5, 0]])
    features = draw(2, 3, 6, seed=1)
    is_aligned = model.encoder.config.vocabulary_size is None
    return features if is_aligned else words, torch.tensor([3, 2])


def clips_of(model: MapLocalizer) -> Tensor:
    return draw(2, model.grid.num_clips * model.encoder.config.features_per_clip, 6)


def loss_of(model: MapLocalizer) -> Tensor:
    ends = torch.tensor([[1.0, 5.0], [2.0, 6.0]])
    words, num_words = words_of(model)
    seed = torch.Generator().manual_seed(0)
    features = clips_of(model)
    return model.loss(features, words, num_words, ends, torch.ones(2), generator=seed)


def maps_of(model: MapLocalizer) -> Tensor:
    words, num_words = words_of(model)
    seed = {"generator": torch.Generator().manual_seed(0)} if model.is_generative else {}
    return model.predict_maps(clips_of(model), words, num_words, **seed)


def assert_all_are_called(model: MapLocalizer, what: str) -> None:
    seen: set[str] = set()
    leaves = {n: one for n, one in model.named_modules() if list(one.parameters(recurse=False))}
    for name, leaf in leaves.items():
        leaf.register_forward_hook(lambda *_, name=name: seen.add(name))  # type: ignore[misc]
    for call in (loss_of, maps_of):
        model.train(call is loss_of)
        seen.clear()
        call(model)
        assert set(leaves) - seen == set(), f"{what}, {call.__name__}"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_hook_fires_on_every_layer_with_weights(preset: str) -> None:
    assert_all_are_called(localizer(preset), preset)
    baseline = PRESETS[preset].build_ms2dtan(**sizes_of(preset))
    assert_all_are_called(baseline, f"{preset}, MS2DTAN")


def test_a_hook_fires_in_every_decoder() -> None:
    for name, fields in {**DECODERS, **VARIANTS}.items():
        assert_all_are_called(localizer(**fields), name)


@variants
def test_hooks_change_what_a_layer_returns(fields: dict[str, Any]) -> None:
    decoder = make(**fields)
    expected, run = called(decoder), denoised(decoder)
    for name, layer in list(decoder.named_modules())[1:]:
        if not isinstance(layer, nn.ModuleList | NoStylization):
            hook = layer.register_forward_hook(lambda *given: given[-1].sin())  # type: ignore[misc]
            for found, other in ((called(decoder), expected), (denoised(decoder), run)):
                assert float((found - other).detach().abs().max()) > 1e-5, name
            hook.remove()
    assert_same(called(decoder), expected)
    everywhere = nn.modules.module.register_module_forward_hook(
        lambda layer, _, result: result.sin() if isinstance(layer, nn.Conv2d) else None
    )
    changed = denoised(decoder)
    everywhere.remove()
    for layer in decoder.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda *given: given[-1].sin())
    assert_close(changed, denoised(decoder))


@pytest.mark.parametrize("place", ["", ".condition", ".fusion_style", ".convs.0", ".layers.0"])
@pytest.mark.parametrize("kind", ["subclass", "forward", "wrapper"])
def test_a_part_with_a_forward_of_its_own_is_called_at_each_step(place: str, kind: str) -> None:
    decoder = make(**VARIANTS["transformer" if "layers" in place else "conv"])
    expected, name = called_once(decoder, 900), f"decoders.0{place}"
    part = decoder.get_submodule(name)
    parent = type(part)

    def forward(self: Any, *given: Any, **named: Any) -> Tensor:
        return parent.forward(self, *given, **named).sin()

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = part

        def forward(self, *given: Any, **named: Any) -> Tensor:
            return self.part(*given, **named).sin()

    if kind == "subclass":
        part.__class__ = type("Own", (parent,), {"forward": forward})
    elif kind == "forward":
        part.forward = MethodType(forward, part)
    else:
        holder, _, own = name.rpartition(".")
        setattr(decoder.get_submodule(holder), own, Wrapper())
    found = called_once(decoder, 900)
    assert float((found - expected).abs().max()) > 1e-3
    assert_close(denoised(decoder)[:1], found)


def test_dropout_that_alone_is_in_training_mode_drops() -> None:
    block, x = randomize_(StylizationBlock(8, 4, dropout=0.5)).eval(), draw(2, 8, 4, 3)
    block.dropout.train()
    style = block.project_time(draw(2, 4))
    assert not torch.equal(block.residual(x, style), block.residual(x, style))


@pytest.mark.compile
def test_a_compiled_part_is_called() -> None:
    decoder, compiled = make(num_scales=1, stylization="none", kernel_sizes=(3,)), []
    expected = denoised(decoder)
    decoder.decoders[0].compile(backend=lambda graph, _: compiled.append(graph) or graph.forward)
    assert_close(denoised(decoder), expected)
    assert compiled


@variants
def test_layers_of_a_kind_that_nobody_knows(fields: dict[str, Any]) -> None:
    """A wrapper of a layer that adds a delta to its weights, as in fine-tuning."""

    class Wrapped(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base

        @property
        def weight(self) -> Tensor:
            return self.base.weight

        bias = None

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x).sin()

    decoder = make(**fields)
    before = called(decoder), denoised(decoder)
    for name, layer in list(decoder.named_modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            parent, _, own = name.rpartition(".")
            setattr(decoder.get_submodule(parent), own, Wrapped(layer))
            after = called(decoder), denoised(decoder)
            for one, other in zip(after, before, strict=True):
                assert float((one - other).detach().abs().max()) > 1e-5, name
            before = after
    assert_close(denoised(decoder)[:1], called_once(decoder, 900))


def called_once(decoder: MapDiffusionDecoder, timestep: int) -> Tensor:
    with torch.no_grad():
        return decoder(draw(1, decoder.grid.num_cells), timestep, features_of(decoder, 1))


# Weights that are computed


@pytest.mark.parametrize("backend", ["direct", "spectral"])
@pytest.mark.parametrize("change", ["weight_norm", "prune"])
@variants
def test_weights_that_a_parametrization_computes(
    fields: dict[str, Any], change: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMAPDIFF_BACKEND", f"map_conv={backend}")
    decoder, plain = make(**fields), make(**fields)
    kinds = (nn.Conv2d, nn.Linear)
    layers = {name: one for name, one in decoder.named_modules() if isinstance(one, kinds)}
    denoised(decoder)  # cached spectra are outdated from here on
    for layer in layers.values():
        if change == "prune":
            prune.l1_unstructured(layer, "weight", amount=0.3)
        else:
            parametrizations.weight_norm(layer)
    with torch.no_grad():
        for factor in (1.0, 0.5):
            for layer in layers.values():
                for own in layer.parameters():
                    own *= factor
            called(decoder)  # prune computes weights in a call
            for name, layer in layers.items():
                twin = plain.get_submodule(name)
                twin.weight.copy_(layer.weight)
                twin.bias.copy_(layer.bias)
            assert_close(called(decoder), called(plain))
            assert_close(denoised(decoder), denoised(plain))


# diffusers and peft


@variants
def test_layerwise_casting(fields: dict[str, Any]) -> None:
    decoder = make(**fields)
    with torch.no_grad():
        expected, run = called(decoder), denoised(decoder)
        decoder.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
        kept = [one for one in decoder.parameters() if one.dtype == torch.float8_e4m3fn]
        assert len(kept) > 10
        for found, exact in ((called(decoder), expected), (denoised(decoder), run)):
            assert found.dtype == torch.float32
            assert float((found - exact).norm() / exact.norm()) < 0.15  # 3 bits per weight


def lora(decoder: MapDiffusionDecoder, name: str | None = None) -> Any:
    peft = pytest.importorskip("peft")
    kinds = (nn.Conv2d, nn.Linear)
    names = [one for one, layer in decoder.named_modules() if isinstance(layer, kinds)]
    config = peft.LoraConfig(r=4, target_modules=names if name is None else [name])
    return peft.get_peft_model(decoder, config)


@pytest.mark.parametrize("fields", [{}, VARIANTS["cross-attention"]], ids=["conv", "transformer"])
def test_lora_trains_is_sampled_saved_and_merged(fields: dict[str, Any], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = localizer(**fields).requires_grad_(False)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    maps = maps_of(model)
    tuned = lora(model.decoder)
    assert_close(maps_of(model), maps)  # a new adapter changes nothing

    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    assert all("lora_" in name for name in trained)
    optimizer = torch.optim.Adam(trained.values(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert all(bool(one.grad.any()) for one in trained.values())
    after = {name.replace(".base_layer", "").replace("base_model.model.", ""): one
             for name, one in model.state_dict().items() if "lora_" not in name}  # fmt: skip
    moving = ("running", "num_batches")  # statistics of the encoder's batch normalization
    for name, one in before.items():
        assert any(part in name for part in moving) or torch.equal(after[name], one), name

    model.eval()
    found = maps_of(model)
    assert float((found - maps).abs().max()) > 1e-3
    tuned.save_pretrained(str(tmp_path))
    twin = make(**dict(model.decoder.config))
    twin.load_state_dict({n.removeprefix("decoder."): one for n, one in before.items()
                          if n.startswith("decoder.")})  # fmt: skip
    loaded = peft.PeftModel.from_pretrained(twin, str(tmp_path)).eval()
    adapted = called(model.decoder)
    assert_close(called(twin), adapted)
    merged = loaded.merge_and_unload()
    assert type(merged) is MapDiffusionDecoder
    assert not any("lora" in name for name in merged.state_dict())
    assert_close(called(merged), adapted)
    assert_close(denoised(merged), denoised(model.decoder))


@pytest.mark.filterwarnings("ignore")  # torchao's, on some releases of torch
@variants
def test_quantised_linear_layers(fields: dict[str, Any]) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = localizer(**fields).eval()
    expected = maps_of(model)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    linear = [one.weight for one in model.modules() if type(one) is nn.Linear]
    assert len(linear) > 1
    assert all(type(one) is not nn.Parameter for one in linear)
    found = maps_of(model)
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.15


# Shards


@pytest.fixture
def one_process() -> Any:
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view")
@pytest.mark.parametrize("kind", ["layers", "leaves"])
@pytest.mark.skipif(torch.__version__ < (2, 7), reason="torch shards nothing on CPUs yet")
@variants
def test_every_layer_may_be_a_unit_of_fsdp(
    fields: dict[str, Any], kind: str, one_process: None
) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from tmapdiff.training._sharding import register_forward_methods

    mesh = init_device_mesh("cpu", (1,))
    whole, shards = make(**fields), make(**fields)
    layers = (GatedConv2d, StylizationBlock, MapTransformerLayer)
    leaves = (nn.Conv2d, nn.Linear, nn.LayerNorm)
    for layer in reversed(list(shards.modules())):
        if isinstance(layer, layers if kind == "layers" else leaves):
            fully_shard(layer, mesh=mesh)
    fully_shard(shards, mesh=mesh)
    register_forward_methods(shards)
    assert_close(called(shards), called(whole))
    called(shards).square().sum().backward()
    called(whole).square().sum().backward()
    for (name, one), other in zip(shards.named_parameters(), whole.parameters(), strict=True):
        assert one.grad is not None
        assert_close(one.grad.full_tensor(), other.grad, what=name)
    assert_close(denoised(shards), denoised(whole))
