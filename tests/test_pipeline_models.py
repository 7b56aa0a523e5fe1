"""The registry's networks against the libraries' own forward passes and the published figures."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.video import MViT_V2_S_Weights

from pipeline.model_names import MODEL_NAMES, UnknownModelError
from pipeline.models import (
    REGISTRY,
    VideoModel,
    count_flops,
    count_parameters,
    create_model,
    create_x3d,
    model_entry,
)

HEADS = {"verb": 5, "noun": 3}
MVIT, NANO = "torchvision/mvit_tiny", "pytorchvideo/x3d_nano"

# Name → (C_pooled, shape of the map of one clip), counted by hand: MViT halves the frames and ends
# at a 32nd of the size (mvit_tiny at a 12th); X3D keeps the frames and ends at a 32nd, rounded up.
OUTPUTS = {
    "torchvision/mvit_v2_s": (768, (768, 8, 7, 7)),
    "torchvision/mvit_tiny": (128, (128, 4, 4, 4)),
    "pytorchvideo/x3d_xs": (2048, (192, 4, 6, 6)),
    "pytorchvideo/x3d_s": (2048, (192, 13, 6, 6)),
    "pytorchvideo/x3d_m": (2048, (192, 16, 7, 7)),
    "pytorchvideo/x3d_tiny": (512, (96, 8, 2, 2)),
    "pytorchvideo/x3d_nano": (256, (64, 8, 2, 2)),
}
FULL_SIZE = {"torchvision/mvit_v2_s", "pytorchvideo/x3d_s", "pytorchvideo/x3d_m"}
NAMES = [pytest.param(n, marks=pytest.mark.slow) if n in FULL_SIZE else n for n in REGISTRY]
SMALL = [MVIT, "pytorchvideo/x3d_tiny", NANO]
X3D_ARGUMENTS: dict[str, dict[str, Any]] = {
    "pytorchvideo/x3d_tiny": {"width_factor": 1.0, "depth_factor": 1.0, "head_dim_out": 512},
    NANO: {"width_factor": 1.0, "depth_factor": 0.5, "stem_dim_in": 6, "head_dim_out": 256},
}


@functools.cache
def shared(name: str) -> VideoModel:
    """One network per name with two heads, in evaluation mode; not to be changed."""
    torch.manual_seed(0)
    model = create_model(name, HEADS).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm3d):  # X3D's last ones start at 0: most of it is silent
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return model


def random_clips(model: VideoModel, batch: int = 2) -> Tensor:
    """Clips of the model's own size, (B, 3, T, H, W)."""
    clip = model.clip
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, clip.frames, clip.size, clip.size, generator=generator)


def last_linear(model: VideoModel) -> nn.Linear:
    """The layer that holds all heads, found as the last linear one among the modules."""
    return [module for module in model.net.modules() if isinstance(module, nn.Linear)][-1]


def captured(model: VideoModel, module: nn.Module, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of a module during the library's own forward pass."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
    model.net(clips)
    handle.remove()
    return seen[0]


def are_probabilities(rows: Tensor) -> bool:
    """Whether rows are what a Softmax makes: none negative, each summing to 1."""
    return bool((rows >= 0).all() and torch.allclose(rows.sum(1), torch.ones(len(rows))))


@pytest.mark.parametrize("name", REGISTRY)
def test_every_name_builds(name: str) -> None:
    model = create_model(name, 400)
    assert model.name == name
    assert model.heads == {"action": 400}
    assert model.family == ("vit" if "mvit" in name else "cnn")
    assert model.clip == REGISTRY[name].clip
    assert (model.pooled_channels, model.map_channels) == (OUTPUTS[name][0], OUTPUTS[name][1][0])
    assert last_linear(model).out_features == 400


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
def test_outputs_have_the_documented_shapes_and_agree_with_the_library(name: str) -> None:
    model = shared(name)
    batch = 1 if name in FULL_SIZE else 2
    clips = random_clips(model, batch)
    answer = model.features(clips)
    assert list(answer.logits) == ["verb", "noun"]
    assert {head: tuple(z.shape) for head, z in answer.logits.items()} == {
        "verb": (batch, 5),
        "noun": (batch, 3),
    }
    assert answer.pooled.shape == (batch, OUTPUTS[name][0])
    assert answer.map.shape == (batch, *OUTPUTS[name][1])
    side_by_side = torch.cat([answer.logits["verb"], answer.logits["noun"]], dim=1)
    plain = model.net(clips)
    torch.testing.assert_close(side_by_side, plain)
    torch.testing.assert_close(model(clips), plain)
    torch.testing.assert_close(answer.logits, model.split_heads(plain))


@torch.inference_mode()
@pytest.mark.parametrize("name", SMALL)
def test_pooled_is_what_the_last_linear_layer_reads(name: str) -> None:
    model = shared(name)
    clips = random_clips(model)
    answer, layer = model.features(clips), last_linear(model)
    read, _ = captured(model, layer, clips)
    torch.testing.assert_close(answer.pooled, read.flatten(1))
    weight, bias = layer.weight.double(), layer.bias.double()
    logits = answer.pooled.double() @ weight.T + bias
    torch.testing.assert_close(answer.logits["verb"].double(), logits[:, :5], atol=1e-5, rtol=0)
    torch.testing.assert_close(answer.logits["noun"].double(), logits[:, 5:], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_map_of_mvit_is_its_normed_tokens_without_the_class_token() -> None:
    model = shared(MVIT)
    clips = random_clips(model)
    _, tokens = captured(model, model.net.norm, clips)  # (B, 1 + T·H·W, C)
    answer = model.features(clips)
    _, frames, height, width = OUTPUTS[MVIT][1]
    assert tokens.shape == (2, 1 + frames * height * width, OUTPUTS[MVIT][0])
    for t in range(frames):
        for y in range(height):
            for x in range(width):
                token = tokens[:, 1 + (t * height + y) * width + x]
                torch.testing.assert_close(answer.map[:, :, t, y, x], token)
    torch.testing.assert_close(answer.pooled, tokens[:, 0])


@torch.inference_mode()
@pytest.mark.parametrize("name", X3D_ARGUMENTS)
def test_the_map_of_x3d_is_what_its_head_takes(name: str) -> None:
    model = shared(name)
    clips = random_clips(model)
    taken, _ = captured(model, model.net.blocks[-1], clips)
    torch.testing.assert_close(model.features(clips).map, taken)


@torch.inference_mode()
@pytest.mark.parametrize("name", X3D_ARGUMENTS)
def test_x3d_is_the_library_network_without_its_softmax(name: str) -> None:
    model = shared(name)
    clips = random_clips(model)
    plain = create_x3d(
        input_clip_length=8,
        input_crop_size=model.clip.size,
        model_num_class=8,
        **X3D_ARGUMENTS[name],
    )
    plain.load_state_dict(model.net.state_dict())  # strict: the same names and shapes
    torch.testing.assert_close(plain.eval()(clips), torch.softmax(model(clips), dim=1))


@torch.inference_mode()
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", SMALL)
def test_logits_are_not_probabilities(name: str, training: bool) -> None:
    model = create_model(name, 6).train(training)
    clips = random_clips(model)
    assert not are_probabilities(model(clips))
    assert not are_probabilities(model.features(clips).logits["action"])


@torch.inference_mode()
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_the_check_for_probabilities_finds_the_library_default(training: bool) -> None:
    default = create_x3d(
        input_clip_length=8, input_crop_size=40, model_num_class=6, **X3D_ARGUMENTS[NANO]
    )
    assert are_probabilities(default.train(training)(random_clips(shared(NANO))))


@torch.inference_mode()
@pytest.mark.parametrize("name", SMALL)
def test_features_and_forward_agree_in_training_too(name: str) -> None:
    model = create_model(name, HEADS, dropout=0.5).train()
    clips = random_clips(model)
    torch.manual_seed(3)
    answer = model.features(clips)
    torch.manual_seed(3)  # the same units drop out
    torch.testing.assert_close(answer.logits, model.split_heads(model.net(clips)))


@pytest.mark.parametrize("name", SMALL)
def test_dropout_is_the_one_asked_for_and_only_before_the_heads(name: str) -> None:
    model = create_model(name, 4, dropout=0.3)
    shares = [m.p for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    assert shares == [0.3]
    without = create_model(name, 4, dropout=0.0).train()
    clips = random_clips(without)
    answer = without.features(clips)
    torch.testing.assert_close(answer.logits["action"], last_linear(without)(answer.pooled))


@torch.inference_mode()
def test_x3d_takes_other_sizes() -> None:
    model = shared(NANO)
    clips = torch.randn(2, 3, 5, 64, 64)
    answer = model.features(clips)
    assert answer.map.shape == (2, 64, 5, 2, 2)
    built_for_it = create_x3d(
        input_clip_length=5, input_crop_size=64, model_num_class=8, **X3D_ARGUMENTS[NANO]
    )
    built_for_it.load_state_dict(model.net.state_dict())
    torch.testing.assert_close(built_for_it.eval()(clips), torch.softmax(model(clips), dim=1))
    assert model.features(torch.randn(1, 3, 3, 48, 96)).map.shape == (1, 64, 3, 2, 3)


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("torchvision/mvit_v2", "torchvision/mvit_v2_s"),
        ("x3d_m", "pytorchvideo/x3d_m"),
        ("pytorchvideo/x3d_l", "pytorchvideo/x3d_"),
    ],
)
def test_an_unknown_name_lists_the_nearest(asked: str, nearest: str) -> None:
    with pytest.raises(UnknownModelError, match=nearest) as caught:
        create_model(asked, 4)
    assert repr(asked) in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_name_like_no_other_lists_all() -> None:
    with pytest.raises(UnknownModelError) as caught:
        model_entry("??")
    assert all(name in str(caught.value) for name in REGISTRY)


@pytest.mark.parametrize("name", ["pytorchvideo/x3d_s", "pytorchvideo/x3d_m"])
def test_x3d_has_the_published_number_of_parameters(name: str) -> None:
    assert round(count_parameters(create_model(name, 400)) / 1e6, 2) == 3.79


def test_mvit_v2_s_has_the_published_number_of_parameters() -> None:
    parameters = count_parameters(create_model("torchvision/mvit_v2_s", 400))
    assert round(parameters / 1e6, 1) == 34.5
    assert parameters == MViT_V2_S_Weights.KINETICS400_V1.meta["num_params"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gflops"),
    [
        ("torchvision/mvit_v2_s", 64.5),
        ("pytorchvideo/x3d_s", 2.8),
        ("pytorchvideo/x3d_m", 4.9),
    ],
)
def test_full_size_networks_have_the_published_flops(name: str, gflops: float) -> None:
    assert round(count_flops(create_model(name, 400)) / 1e9, 1) == gflops


def test_flops_of_a_layer_by_hand() -> None:
    class OneLayer(VideoModel):
        """Nothing but a linear layer over a frame's pixels."""

        def forward(self, clips: Tensor) -> Tensor:
            logits: Tensor = self.net(clips[:, 0, 0].flatten(1))
            return logits

    size = REGISTRY[NANO].clip.size
    net = nn.Linear(size * size, 7)
    assert count_flops(OneLayer(NANO, REGISTRY[NANO].clip, {"action": 7}, net)) == size * size * 7


@pytest.mark.parametrize("name", [MVIT, NANO])
def test_count_flops_leaves_the_model_as_it_was(name: str) -> None:
    model = create_model(name, 4).train()
    frozen = next(m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm3d))
    frozen.eval()
    modes = [module.training for module in model.modules()]
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    in_training = count_flops(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert count_flops(model.eval()) == in_training
    assert not any(module.training for module in model.modules())


def test_count_flops_leaves_the_mode_as_it_was_when_it_fails() -> None:
    model = create_model(NANO, 4).train()

    def stumble(*_: object) -> None:
        raise RuntimeError("stumbled")

    model.net.blocks[2].register_forward_pre_hook(stumble)
    with pytest.raises(RuntimeError, match="stumbled"):
        count_flops(model)
    assert all(module.training for module in model.modules())


def test_the_names_without_torch_are_those_of_the_registry() -> None:
    assert tuple(REGISTRY) == MODEL_NAMES
