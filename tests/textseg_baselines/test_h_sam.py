from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from textseg.contracts import Atlas, Structure, Task
from textseg.errors import RecipeError, RunError
from textseg.evaluation.evaluate import load_segmenter
from textseg.models.cost import META, usual_task
from textseg.models.segmenter import Segmenter
from textseg.recipe.loading import load_recipe
from textseg.registry.discovery import installed_registry
from textseg.reports.run_evaluation import evaluate_run
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder
from textseg.training.loop import Training
from textseg.training.run import run
from textseg_baselines.h_sam import HSAM
from textseg_baselines.h_sam_decoders import FirstDecoder, MaskGuidedSelfAttention, TwoWayTransformer
from textseg_baselines.sam import LowRankAdapted, SamEncoder, fitting

SMALL: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "output_channels": 32,
    "global_attn_indexes": [1],
    "window_size": 3,
}


def task(sides: tuple[int, int] = (48, 40), structures: int = 3, channels: int = 1) -> Task:
    names = [f"s{index}" for index in range(1, structures + 1)]
    atlas = Atlas("row", tuple(Structure(name, "part", index) for index, name in enumerate(names, start=1)))
    return Task(channels, sides, structures + 1, atlas)


def save_sam(folder: Path, seed: int = 0, image_size: int = 64) -> Path:
    """A folder with a small random SAM, in the form of the hub."""
    transformers = importlib.import_module("transformers")
    config = transformers.SamConfig(
        vision_config={**SMALL, "image_size": image_size, "initializer_range": 0.2, "num_pos_feats": 16},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
        prompt_encoder_config={"hidden_size": 32, "image_size": image_size, "mask_input_channels": 8},
    )
    torch.manual_seed(seed)
    model = transformers.SamModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos" in name:  # zero in the beginning, which would hide mistakes
                parameter.normal_(generator=torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sam(tmp_path_factory.mktemp("sam"))


def whole_sam(folder: Path) -> Any:
    return importlib.import_module("transformers").SamModel.from_pretrained(folder).eval()


def built(sam: Path, **settings: Any) -> HSAM:
    torch.manual_seed(1)
    settings = {"model": str(sam), "image_size": 64, **settings}
    network = installed_registry().build("network", "h_sam", task(), settings=settings)
    assert isinstance(network, HSAM)
    return network


def test_the_encoder_is_that_of_sam(sam: Path) -> None:
    """Before training, adapters change nothing."""
    network, whole = built(sam).eval(), whole_sam(sam)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.encoder(image), whole.get_image_embeddings(image))


def test_the_first_decoder_is_that_of_sam(sam: Path) -> None:
    """Load SAM's class networks, for two masks of its four tokens."""
    whole = whole_sam(sam)
    network = built(sam).eval()
    theirs, ours = whole.mask_decoder, network.first
    ours.mask_tokens.load_state_dict(theirs.mask_tokens.state_dict())
    for own_network, reference in zip(ours.class_networks, theirs.output_hypernetworks_mlps, strict=True):
        for layer, source in zip(
            own_network[::2], [reference.proj_in, *reference.layers, reference.proj_out], strict=True
        ):
            layer.load_state_dict(source.state_dict())
    embedding = torch.randn(2, 32, 4, 4)
    positions = whole.get_image_wide_positional_embeddings()
    with torch.no_grad():
        expected = theirs(
            image_embeddings=embedding,
            image_positional_embeddings=positions.repeat(2, 1, 1, 1),
            sparse_prompt_embeddings=None,
            dense_prompt_embeddings=whole.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1),
            multimask_output=True,
        )[0][:, 0]
        torch.testing.assert_close(network._positions(embedding), positions)
        logits, maps, _ = ours(embedding + network.no_mask, network._positions(embedding))
    torch.testing.assert_close(logits[:, 1:], expected)
    assert maps.shape == (2, 4, 16)


def test_sam_is_used_at_another_size_by_interpolation_of_its_tables(sam: Path) -> None:
    whole = whole_sam(sam).vision_encoder
    network = built(sam, image_size=96)
    encoder = network.encoder.layers
    expected = nn.functional.interpolate(whole.pos_embed.permute(0, 3, 1, 2), (6, 6), mode="bilinear")
    torch.testing.assert_close(encoder.pos_embed.permute(0, 3, 1, 2), expected)
    sizes = [(len(layer.attn.rel_pos_h), layer.window_size) for layer in encoder.layers]
    assert sizes == [(2 * 3 - 1, 3), (2 * 6 - 1, 0)]
    assert torch.equal(encoder.layers[0].attn.rel_pos_w, whole.layers[0].attn.rel_pos_w)
    with torch.no_grad():
        assert network.eval()(torch.rand(1, 1, 48, 40), None).logits.shape == (1, 4, 48, 40)


def test_queries_and_values_are_adapted_and_keys_are_not() -> None:
    torch.manual_seed(0)
    projection = nn.Linear(6, 18)
    adapted = LowRankAdapted(projection, 2)
    hidden = torch.randn(5, 6)
    torch.testing.assert_close(adapted(hidden), projection(hidden))
    for adapter in (adapted.query, adapted.value):
        nn.init.normal_(adapter[1].weight)
    weight = projection.weight.detach().clone()
    weight[:6] += adapted.query[1].weight @ adapted.query[0].weight
    weight[12:] += adapted.value[1].weight @ adapted.value[0].weight
    torch.testing.assert_close(adapted(hidden), nn.functional.linear(hidden, weight, projection.bias))
    assert torch.linalg.matrix_rank((weight - projection.weight)[:6]) == 2


def test_only_adapters_and_decoders_are_trained(sam: Path) -> None:
    network = built(sam)
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    base = {f"encoder.layers.{name}" for name, _ in whole_sam(sam).vision_encoder.named_parameters()}
    assert frozen == {name.replace("qkv.", "qkv.projection.") for name in base}
    assert not {name for name, parameter in built(sam, frozen=False).named_parameters() if not parameter.requires_grad}


def train(network: HSAM, steps: int, **settings: Any) -> list[float]:
    mask = torch.zeros(2, 48, 40, dtype=torch.long)
    mask[0, 10:30, 5:30], mask[1, 20:44, 10:30], mask[1, 4:12, 4:12] = 1, 2, 3
    torch.manual_seed(4)
    image = (mask.float() / 3 + 0.02 * torch.randn(mask.shape))[:, None]
    segmenter = Segmenter(network).train()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.1)
    batch: Any = type("Batch", (), {"mask": mask})
    values = []
    for _ in range(steps):
        terms = network.losses(segmenter(image), batch, lambda x, y: {"ce": nn.functional.cross_entropy(x, y)})
        optimizer.zero_grad()
        terms["ce"].backward()
        optimizer.step()
        values.append(terms["ce"].item())
    return values


def test_a_frozen_part_stays_frozen_while_the_rest_learns(sam: Path) -> None:
    network = built(sam)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    losses = train(network, 40)
    assert losses[-1] < 0.5 * losses[0]
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in trained), name


@pytest.mark.parametrize(("channels", "sides"), [(1, (48, 40)), (3, (30, 64)), (1, (17, 90)), (1, (64, 64))])
def test_an_image_lies_at_the_top_left_of_sams_square(sam: Path, channels: int, sides: tuple[int, int]) -> None:
    network = installed_registry().build(
        "network", "h_sam", task(sides, channels=channels), settings={"model": str(sam), "image_size": 64}
    )
    image = torch.ones(1, channels, *sides)
    rows, columns = network._content(*sides)
    square = network._square(image, (rows, columns))
    assert square.shape == (1, 3, 64, 64)
    assert max(rows, columns) == 64
    assert rows / columns == pytest.approx(sides[0] / sides[1], rel=0.15)  # by whole positions of the first decoder
    inside = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(square[0, :, :rows, :columns], inside[:, None, None].expand(-1, rows, columns))
    assert not square[..., rows:, :].any()
    assert not square[..., columns:].any()
    with torch.no_grad():
        output = network.eval()(image, None)
    assert output.logits.shape == (1, 4, *sides)
    assert output.deep_logits[0].shape == (1, 4, rows // 4, columns // 4)


def test_padding_is_cut_off_before_logits_are_brought_to_the_image(sam: Path) -> None:
    """The first decoder's logits are those of the image alone: its part of the square, resized."""
    network = built(sam).eval()
    seen: list[Tensor] = []
    network.first.register_forward_hook(lambda *given: seen.append(given[2][0]))
    network.second.register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.no_grad():
        output = network(torch.rand(1, 1, 48, 24), None)
    coarse, fine = seen[0][..., :16, :8], seen[1][..., :64, :32]
    assert torch.equal(output.deep_logits[0], coarse)
    parts = [nn.functional.interpolate(part, (48, 24), mode="bilinear") for part in (coarse, fine)]
    torch.testing.assert_close(output.logits, (parts[0] + parts[1]) / 2)


def test_the_loss_of_the_first_decoder_fades(sam: Path) -> None:
    network = built(sam)
    mask = torch.zeros(1, 48, 40, dtype=torch.long)
    mask[:, 24:] = 1
    batch: Any = type("Batch", (), {"mask": mask})
    output = network.train()(torch.rand(1, 1, 48, 40), None)
    masks: list[Tensor] = []

    def which(logits: Tensor, given: Tensor) -> dict[str, Tensor]:
        masks.append(given)
        return {"dice": torch.tensor(10.0 if logits is output.logits else 1.0)}

    shares = []
    for epoch in (0, 10, 400):
        network.start_epoch(epoch, 500)
        shares.append(float(network.losses(output, batch, which)["dice"] - 1) / 9)
    assert shares == pytest.approx([0.6, 0.6 ** (0.99**10), 0.6 ** (0.99**400)])
    assert shares == sorted(shares)
    coarse, fine = masks[:2]
    assert coarse.shape == output.deep_logits[0].shape[:1] + output.deep_logits[0].shape[2:]
    assert coarse.float().mean() == pytest.approx(0.5)
    assert torch.equal(fine, mask)


def test_noise_falls_on_rare_classes() -> None:
    torch.manual_seed(0)
    attention = MaskGuidedSelfAttention(4, 16, noise=0.5)
    classes = torch.tensor([[0] * 10 + [1] * 4 + [2] * 2])  # class 3 is nowhere
    shares = nn.functional.one_hot(classes, 4).transpose(1, 2).float()
    rarity = attention._rarity(shares)
    assert rarity[0].tolist() == [0.0] * 10 + [0.5] * 4 + [1.0] * 2
    assert attention._rarity(shares[..., :5])[0].tolist() == [1.0] * 5  # alone, it is the rarest, too
    maps = torch.randn(1, 4, 16)
    given: list[Tensor] = []
    attention.attend[0].register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    torch.manual_seed(1)
    differences = []
    for _ in range(200):
        attention.train()(maps, shares)
        differences.append(given[-1] - maps)
    spread = torch.stack(differences).std((0, 1, 2)) / maps.std()
    assert not spread[:10].any()
    assert spread[10:14].mean() == pytest.approx(0.25, rel=0.1)
    assert spread[14:].mean() == pytest.approx(0.5, rel=0.1)
    weights = attention.eval()(maps, shares)
    assert torch.equal(given[-1], maps)
    assert weights.mean().item() == pytest.approx(1.0)


def test_a_prior_hides_what_it_calls_improbable() -> None:
    """Tokens whose mask is empty take nothing from the image, and the image nothing from them."""
    torch.manual_seed(0)
    transformer = TwoWayTransformer(features=16, heads=2, width=24, depth=1, cross_features=16).eval()
    tokens, image, positions = torch.randn(1, 3, 16), torch.randn(1, 16, 2, 2), torch.randn(1, 16, 2, 2)
    prior = torch.ones(1, 3, 4)
    prior[:, 1] = 0
    block: Any = transformer.layers[0]
    places, where = image.flatten(2).transpose(1, 2), positions.flatten(2).transpose(1, 2)
    attended = block.cross_attn_token_to_image(tokens, places + where, places, prior)
    torch.testing.assert_close(attended[:, 1], block.cross_attn_token_to_image.out_proj.bias[None])
    without = block.cross_attn_token_to_image(tokens, places + where, places)
    torch.testing.assert_close(attended[:, [0, 2]], without[:, [0, 2]])
    assert not torch.equal(
        transformer(tokens, image, positions, prior)[1], transformer(tokens, image, positions, None)[1]
    )


def test_the_published_counts_and_what_ours_leave_out() -> None:
    """116.18 M parameters, 28.90 M of them trained, at 512 x 512 with 20 classes."""
    with META:
        network = installed_registry().build("network", "h_sam", usual_task((384, 384)), settings={})
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in network.parameters() if not parameter.requires_grad)

    def linear(size: int, out: int) -> int:
        return size * out + out

    token = 2 * 256 + sum(  # a 21st class: its two tokens and its two networks
        layers * linear(256, 256) + linear(256, out) for layers, out in ((2, 32), (4, 16))
    )
    qualities = 2 * (2 * linear(256, 256) + linear(256, 21))  # a head in each decoder
    prompts = 5 * 256 + (4 * 4 + 4) + 8 + (4 * 16 * 4 + 16) + 32 + linear(16, 256)  # of points, boxes and masks
    never_called = 4 * 2 * (196 + 9 + 1024)  # normalisations
    left_out = token + qualities + prompts + never_called
    assert (trained + left_out) / 1e6 == pytest.approx(28.90, abs=0.005)
    assert (trained + frozen + left_out) / 1e6 == pytest.approx(116.18, abs=0.005)
    docstring = " ".join((HSAM.__doc__ or "").split())
    assert f"{(trained + frozen) / 1e6:.2f} M parameters, of which {trained / 1e6:.2f} M are trained" in docstring
    # A checkpoint in float32, less its base.
    state = Segmenter(network).state_dict()
    size = sum(tensor.numel() * tensor.element_size() for key, tensor in state.items() if isinstance(tensor, Tensor))
    assert size < 130e6


RECIPE = """format: 1
name: adapted
reference: https://example.org/adapted
dataset: {{use: lumbar_phantom, folder: {folder}, cases: 6, slices: 2, size: [96, 80], spacing_mm: 3.0}}
split: {{fractions: [0.6, 0.2, 0.2]}}
preparation: {{size: [48, 40]}}
model: {{network: {{use: h_sam, model: {sam}, image_size: 64}}}}
segmentation_loss: {{dice: 1.0, focal: 1.0}}
training: {{epochs: 2, batch_size: 2, learning_rate: 1.0e-3, precision: 32-true, threads: 1, average_decay: 0.5}}
evaluation: {{}}
"""


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, Sequence) and not isinstance(first, str):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


@pytest.mark.slow
def test_a_run_holds_what_it_trained_resumes_to_the_bit_and_notices_another_base(tmp_path: Path) -> None:
    sam = save_sam(tmp_path / "sam")
    recipe = tmp_path / "adapted.yaml"
    recipe.write_text(RECIPE.format(folder=tmp_path / "data", sam=sam))
    whole = RunFolder(run(recipe, output=tmp_path / "whole"))

    # What is saved.
    state = whole.load_checkpoint("best")["model"]
    base = whole_sam(sam).vision_encoder.state_dict()
    assert not [key for key in state if key.endswith("mlp.lin1.weight") and ".encoder." in key]
    assert [key for key in state if key.endswith("qkv.query.0.weight")]
    kept = sum(tensor.numel() for tensor in state.values() if isinstance(tensor, Tensor))
    experiment = build(load_recipe(recipe))
    network = experiment.segmenter().network
    everything = sum(tensor.numel() for tensor in network.state_dict().values())
    assert kept == everything - sum(tensor.numel() for tensor in base.values())

    # It resumes: stopped inside the second epoch, by the same request that a signal makes.
    stop_at = 4
    step = Training.training_step

    def stopping(self: Training, batch: Any) -> dict[str, Tensor]:
        terms = step(self, batch)
        if self.progression.step == stop_at:
            self.request_stop()
        return terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "training_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, output=tmp_path / "parts")
    parts = RunFolder(run(recipe, output=tmp_path / "parts"))
    for name in ("last", "best"):
        first, second = (folder.load_checkpoint(name) for folder in (whole, parts))
        for state in (first, second):
            for measured in (state, state["progression"], *state["progression"]["history"]):
                for key in ("seconds", "slices_per_second", "memory_bytes", "record"):
                    measured.pop(key, None)
        assert same(first, second), name
    assert parts.scores.read_text() == whole.scores.read_text()

    # It is evaluated again, and begun from.
    before = whole.scores.read_text()
    evaluate_run(whole.path)
    assert whole.scores.read_text() == before
    begun = build(load_recipe(recipe, [f"training.initialize_from={whole.path}"]))
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    begins = Training(begun, RunFolder(tmp_path / "begun"), fabric).segmenter.state_dict()
    assert same(begins, whole.load_checkpoint("best")["model"])

    # Other weights in the same place are noticed.
    save_sam(sam, seed=1)
    with pytest.raises(RunError, match=r"frozen part \(network\) has the fingerprint"):
        evaluate_run(whole.path)
    with pytest.raises(RunError, match=r"frozen part \(network\) has the fingerprint"):
        run(recipe, overrides=["training.epochs=3"], output=tmp_path / "whole")
    with pytest.raises(RunError, match=r"frozen part \(network\) has the fingerprint"):
        load_segmenter(build(load_recipe(recipe)), whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": None}, "frozen ones would stay so"),
        ({"configuration": {"hidden_size": 24}}, "needs random weights"),
        ({"model": None, "frozen": False, "configuration": {"hiden_size": 24}}, "hidden_size"),
        ({"model": None, "frozen": False, "configuration": {"num_attention_heads": 7}}, "must divide"),
        ({"model": None, "frozen": False, "configuration": {"output_channels": 24}}, "output_channels is 24"),
        ({"model": None, "frozen": False, "configuration": {"hidden_size": "wide"}}, "can't be used"),
        ({"model": None, "frozen": False, "image_size": 100}, "multiple of SAM's patches"),
        ({"rank": -1}, "rank is -1"),
        ({"decay": 1.5}, r"\(0, 1\]"),
        ({"model": "/nowhere"}, "no folder that holds a model"),
        ({"model": "nobody/sam"}, "textseg fetch"),
        ({}, "'facebook/sam-vit-base' at revision '70c1a07f.*textseg fetch"),
    ],
)
def test_mistakes_are_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        installed_registry().build("network", "h_sam", task(), settings=settings)


@pytest.mark.parametrize("channels", [2, 4])
def test_for_other_channels_the_first_layer_of_sam_is_repeated(sam: Path, channels: int) -> None:
    network = installed_registry().build("network", "h_sam", task(channels=channels), settings={"model": str(sam)})
    spread = network.encoder.layers.patch_embed.projection.weight
    colour = whole_sam(sam).state_dict()["vision_encoder.patch_embed.projection.weight"]
    for channel in range(channels):
        torch.testing.assert_close(spread[:, channel], colour[:, channel % 3] * 3 / channels)
    assert network.first_layer == (
        f"pretrained weights for 3 channels are repeated over {channels} channels, times 3/{channels}"
    )
    assert network(torch.rand(1, channels, 24, 20), None).logits.shape[-2:] == (24, 20)


def test_a_model_that_is_no_sam_is_refused(tmp_path: Path) -> None:
    transformers = importlib.import_module("transformers")
    transformers.ViTModel(
        transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=r"of the kind 'vit', not sam"):
        installed_registry().build("network", "h_sam", task(), settings={"model": str(tmp_path)})


def test_weights_that_do_not_fit_are_refused(sam: Path) -> None:
    state = whole_sam(sam).state_dict()
    encoder = SamEncoder(whole_sam(sam).config.vision_config, None, frozen=True, rank=0).layers
    state["vision_encoder.neck.conv1.weight"] = state["vision_encoder.neck.conv1.weight"][:5]
    with pytest.raises(RecipeError, match="neck.conv1.weight"):
        fitting(state, "vision_encoder.", encoder)
    with pytest.raises(RecipeError, match="lack 'mask_decoder.iou_token.weight'"):
        fitting({}, "mask_decoder.", FirstDecoder(2, {"features": 32, "heads": 4, "width": 8, "depth": 1}))


def test_what_is_fetched(tmp_path: Path) -> None:
    component = installed_registry().component("network", "h_sam")
    assert "nothing to fetch" in (component.fetch({"model": None}, lambda *_: None) or "")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam"}))
    assert "is a folder" in (component.fetch({"model": str(tmp_path)}, lambda *_: None) or "")
