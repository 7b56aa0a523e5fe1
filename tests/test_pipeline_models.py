"""The registry's networks against the libraries' own forward passes and the published figures."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from pytorchvideo.models import hub
from torch import Tensor, nn
from torchvision.models import get_model_weights, video
from torchvision.models.video import MViT_V2_S_Weights

from pipeline.counting import ShapesOnly, feature_shapes
from pipeline.model_names import MODEL_NAMES, UnknownModelError
from pipeline.models import (
    REGISTRY,
    ClipSizeError,
    VideoModel,
    count_flops,
    count_parameters,
    create_model,
    model_entry,
)
from pipeline.pytorchvideo_models import create_x3d
from pipeline.timm_models import UnfitModelError

HEADS = {"verb": 5, "noun": 3}
MVIT, NANO = "torchvision/mvit_tiny", "pytorchvideo/x3d_nano"

# Name → (C_pooled, shape of the map of one clip), counted by hand: MViT halves the frames and ends
# at a 32nd of the size (mvit_tiny at a 12th); X3D keeps the frames and ends at a 32nd, rounded up.
# Swin halves the frames (patches of two) and ends at a 32nd, S3D at an 8th of the frames, R3D and
# R(2+1)D at an 8th and MC3 at all of them, at a 16th of the size; Slow and SlowFast at a 32nd.
OUTPUTS = {
    "torchvision/mvit_v2_s": (768, (768, 8, 7, 7)),
    "torchvision/mvit_v1_b": (768, (768, 8, 7, 7)),
    "torchvision/mvit_tiny": (128, (128, 4, 4, 4)),
    "torchvision/swin3d_t": (768, (768, 16, 7, 7)),
    "torchvision/swin3d_s": (768, (768, 16, 7, 7)),
    "torchvision/swin3d_b": (1024, (1024, 16, 7, 7)),
    "torchvision/s3d": (1024, (1024, 16, 7, 7)),
    "torchvision/r3d_18": (512, (512, 2, 7, 7)),
    "torchvision/mc3_18": (512, (512, 16, 7, 7)),
    "torchvision/r2plus1d_18": (512, (512, 2, 7, 7)),
    "pytorchvideo/x3d_xs": (2048, (192, 4, 6, 6)),
    "pytorchvideo/x3d_s": (2048, (192, 13, 6, 6)),
    "pytorchvideo/x3d_m": (2048, (192, 16, 7, 7)),
    "pytorchvideo/x3d_l": (2048, (192, 16, 10, 10)),
    "pytorchvideo/x3d_tiny": (512, (96, 8, 2, 2)),
    "pytorchvideo/x3d_nano": (256, (64, 8, 2, 2)),
    "pytorchvideo/slow_r50": (2048, (2048, 8, 7, 7)),
    "pytorchvideo/slowfast_r50": (2304, (2304, 8, 7, 7)),
    "pytorchvideo/slowfast_r101": (2304, (2304, 8, 7, 7)),
    "pytorchvideo/mvit_base_16x4": (768, (768, 8, 7, 7)),
}
VITS = {name for name in REGISTRY if "mvit" in name or "swin" in name}
CNNS = [name for name in REGISTRY if name not in VITS]
ONE_SIZE = {name for name in REGISTRY if "mvit" in name}
DEMO = [MVIT, "pytorchvideo/x3d_tiny", NANO]
SMALL = DEMO
ALL = [n if n in DEMO else pytest.param(n, marks=pytest.mark.slow) for n in REGISTRY]
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
    """Clips of the model's own size, (B, 3, T, H, W); of a small one for big networks that can."""
    clip = model.clip
    if model.name not in ONE_SIZE and model.name not in DEMO:
        clip = replace(clip, frames=8, size=64)
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


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if "swin" in n or "s3d" in n else n for n in REGISTRY],
)
def test_every_name_builds(name: str) -> None:
    with ShapesOnly():
        model = create_model(name, 400)
    assert model.name == name
    assert model.heads == {"action": 400}
    assert model.family == REGISTRY[name].family == ("vit" if name in VITS else "cnn")
    assert model.clip == REGISTRY[name].clip
    assert (model.pooled_channels, model.map_channels) == (OUTPUTS[name][0], OUTPUTS[name][1][0])
    if name not in ("torchvision/swin3d_s", "torchvision/swin3d_b"):  # as swin3d_t, and slow
        assert feature_shapes(model.eval()) == OUTPUTS[name]


def library_logits(model: VideoModel, clips: Tensor) -> Tensor:
    """What the library's own forward pass says."""
    logits: Tensor = model.net(model.pathways(clips) if "slowfast" in model.name else clips)
    return logits


@torch.inference_mode()
@pytest.mark.parametrize("name", ALL)
def test_outputs_agree_with_the_library_and_are_of_the_last_linear_layer(name: str) -> None:
    model = shared(name) if name in DEMO else create_model(name, HEADS).eval()
    batch = 2 if name in DEMO else 1
    clips = random_clips(model, batch)
    answer = model.features(clips)
    assert {head: tuple(z.shape) for head, z in answer.logits.items()} == {
        "verb": (batch, 5),
        "noun": (batch, 3),
    }
    assert answer.pooled.shape == (batch, model.pooled_channels)
    assert answer.map.shape[:2] == (batch, model.map_channels)
    side_by_side = torch.cat([answer.logits["verb"], answer.logits["noun"]], dim=1)
    plain = library_logits(model, clips)
    torch.testing.assert_close(side_by_side, plain)
    if name in DEMO or name not in ONE_SIZE:  # MViT's `forward` is the library's
        torch.testing.assert_close(model(clips), plain)
    torch.testing.assert_close(answer.logits, model.split_heads(plain))
    kinds = nn.Linear | nn.Conv3d  # S3D's last layer is a convolution of 1x1x1
    layers = [m for m in model.net.modules() if isinstance(m, kinds)]
    layer = next(m for m in reversed(layers) if m.weight.shape[0] == 8)
    weight = layer.weight.flatten(1)
    torch.testing.assert_close(answer.pooled @ weight.T + layer.bias, plain)
    if name in CNNS and "x3d" not in name and "s3d" not in name:
        torch.testing.assert_close(answer.map.mean(dim=(2, 3, 4)), answer.pooled)
    assert not are_probabilities(plain)  # nor in training:
    trained = model.train() if name not in DEMO else create_model(name, HEADS).train()
    assert not are_probabilities(trained(random_clips(model, 2 if name in CNNS else 1)))


@torch.inference_mode()
def test_slowfast_picks_the_frames_of_the_library() -> None:
    model = create_model("pytorchvideo/slowfast_r50", 4)
    clips = torch.arange(32.0).view(1, 1, 32, 1, 1)
    slow, fast = model.pathways(clips)
    picked = torch.linspace(0, 31, 8).long()  # PackPathway of pytorchvideo's torch hub tutorial
    assert slow.flatten().tolist() == picked.tolist()
    assert fast is clips
    with pytest.raises(ClipSizeError, match="multiple of 4, got 10"):
        model(torch.zeros(1, 3, 10, 32, 32))


@pytest.mark.parametrize(
    "name", [MVIT, pytest.param("pytorchvideo/mvit_base_16x4", marks=pytest.mark.slow)]
)
def test_a_network_of_one_size_says_which_it_takes(name: str) -> None:
    model = create_model(name, 4)
    clip = model.clip
    for given in (
        torch.zeros(1, 3, clip.frames, 32, 32),
        torch.zeros(1, 3, 3, clip.size, clip.size),
    ):
        frames, size = given.shape[2:4]
        with pytest.raises(ClipSizeError) as caught:
            model(given)
        with pytest.raises(ClipSizeError):
            model.features(given)
        message = str(caught.value)
        assert f"{clip.frames} frames of {clip.size}x{clip.size}" in message
        assert f"got {frames} frames of {size}x{size}" in message
        assert "any size" in message


@torch.inference_mode()
@pytest.mark.slow
def test_s3d_at_its_own_window_is_the_published_network() -> None:
    """Its head's window is larger than the maps of the small clips of the other tests."""
    model = create_model("torchvision/s3d", 8).eval()
    plain = video.s3d(num_classes=8).eval()
    plain.load_state_dict(model.net.state_dict())
    clips = torch.randn(1, 3, 24, 224, 224)
    torch.testing.assert_close(model.features(clips).logits["action"], plain(clips))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [n for n in REGISTRY if n.startswith("pytorchvideo") and "tiny" not in n and "nano" not in n],
)
def test_published_weights_of_the_hub_fit(name: str) -> None:
    with ShapesOnly():
        ours = create_model(name, 400).net.state_dict()
        theirs = getattr(hub, name.partition("/")[2])().state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


TIMM = ["timm/resnet10t", "timm/vit_tiny_patch16_224", "timm/mobilenetv3_small_050"]


@torch.inference_mode()
@pytest.mark.slow
@pytest.mark.parametrize("name", [*TIMM, "timm/swin_tiny_patch4_window7_224", "timm/mixer_s16_224"])
def test_an_image_model_is_averaged_over_its_frames(name: str) -> None:
    model = create_model(name, HEADS).eval()
    assert model.family == model_entry(name).family
    assert model.family == ("vit" if "vit_" in name or "swin" in name else "cnn")
    clips = torch.randn(2, 3, 3, model.clip.size, model.clip.size)
    answer = model.features(clips)
    frames = [model.net(clips[:, :, t]) for t in range(3)]
    side_by_side = torch.cat(list(answer.logits.values()), dim=1)
    torch.testing.assert_close(side_by_side, torch.stack(frames).mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(clips), side_by_side)
    assert answer.pooled.shape == (2, model.pooled_channels)
    assert answer.map.shape[:3] == (2, model.map_channels, 3)
    assert not are_probabilities(side_by_side)
    if "vit_" in name:  # one token per patch, in reading order
        tokens = model.net.forward_features(clips[:, :, 1])
        torch.testing.assert_close(answer.map[:, :, 1, 2, 3], tokens[:, 1 + 2 * 14 + 3])


@pytest.mark.slow
def test_timm_says_what_it_has_and_what_it_wants() -> None:
    with pytest.raises(UnknownModelError, match=r"timm/resnet50\b"):
        create_model("timm/resnet5O", 4)
    with pytest.raises(UnknownModelError, match="timm/resnet18"):
        create_model("timm/resnet18.nobody_trained_this", 4)
    with pytest.raises(UnfitModelError, match="timm/levit_128 ends in"):
        create_model("timm/levit_128", 4)
    model = create_model("timm/vit_tiny_patch16_224", 4)
    with pytest.raises(ClipSizeError, match="224x224"):
        model(torch.zeros(1, 3, 2, 64, 64))
    cfg = timm.get_pretrained_cfg("vit_tiny_patch16_224")
    assert (model.clip.mean, model.clip.std) == (cfg.mean, cfg.std)
    assert model.clip.test_share == cfg.crop_pct


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
        ("pytorchvideo/x3d_xl", "pytorchvideo/x3d_l"),
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


@pytest.mark.parametrize("name", [n for n, entry in REGISTRY.items() if entry.published])
def test_parameters_and_clips_are_the_published_ones(name: str) -> None:
    entry = REGISTRY[name]
    with ShapesOnly():
        parameters = count_parameters(create_model(name, 400))
    library, _, short = name.partition("/")
    assert entry.published is not None
    if library == "pytorchvideo":  # published with two digits, or one
        assert abs(parameters / 1e6 - entry.published.parameters) < 0.05
        return
    weights = get_model_weights(short).KINETICS400_V1
    assert parameters == weights.meta["num_params"] == round(entry.published.parameters * 1e6)
    assert entry.published.gflops == weights.meta["_ops"]
    assert 100 * entry.published.top1 == pytest.approx(
        weights.meta["_metrics"]["Kinetics-400"]["acc@1"]
    )
    transforms = weights.transforms()
    assert list(entry.clip.mean) == list(transforms.mean)
    assert list(entry.clip.std) == list(transforms.std)
    assert [entry.clip.size] * 2 == list(transforms.crop_size)
    assert entry.clip.test_share == entry.clip.size / transforms.resize_size[0]
    said = weights.meta["_docs"]
    assert f"clip_len={entry.clip.frames}`" in said
    assert f"frame_rate={30 / entry.clip.stride:g}`" in said


def test_mvit_v2_s_has_the_published_number_of_parameters() -> None:
    with ShapesOnly():
        parameters = count_parameters(create_model("torchvision/mvit_v2_s", 400))
    assert round(parameters / 1e6, 1) == 34.5
    assert parameters == MViT_V2_S_Weights.KINETICS400_V1.meta["num_params"]


@functools.cache
def gflops(name: str) -> float:
    with ShapesOnly():
        model = create_model(name, 400)
    with torch.inference_mode():
        return count_flops(model) / 1e9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("torchvision/mvit_v2_s", 64.5),
        ("pytorchvideo/x3d_s", 2.8),
        ("pytorchvideo/x3d_m", 4.9),
        ("pytorchvideo/slowfast_r50", 50.6),
    ],
)
def test_full_size_networks_have_the_published_flops(name: str, published: float) -> None:
    assert round(gflops(name), 1) == published


@pytest.mark.slow
def test_the_pair_of_the_paper_saves_what_it_says() -> None:
    assert round(1 - gflops("pytorchvideo/x3d_s") / gflops("torchvision/mvit_v2_s"), 2) == 0.96
    with ShapesOnly():
        big, small = (
            count_parameters(create_model(name, 400))
            for name in ("torchvision/mvit_v2_s", "pytorchvideo/x3d_s")
        )
    assert round(1 - small / big, 2) == 0.89


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        n
        for n, entry in REGISTRY.items()
        if entry.published
        and n
        not in (
            "torchvision/swin3d_s",
            "torchvision/swin3d_b",
            "pytorchvideo/slowfast_r101",
            "torchvision/mvit_v2_s",  # the test above
        )
    ],
)
def test_flops_are_the_published_ones_at_the_size_of_publication(name: str) -> None:
    """Within 3 %: fvcore counts norms and `einsum` too, which torchvision does not.

    X3D: within 6 %. pytorchvideo's table is 5 % above what fvcore counts of pytorchvideo's own
    hub models (0.872, 2.819 and 6.400 for XS, S and M); why is not known. X3D-L's is PySlowFast's.
    """
    published = REGISTRY[name].published
    assert published is not None
    with ShapesOnly():
        model = create_model(name, 400)
    frames, size = published.measured_at
    with torch.inference_mode():
        counted = count_flops(model, replace(model.clip, frames=frames, size=size)) / 1e9
    assert counted == pytest.approx(published.gflops, rel=0.06 if "x3d" in name else 0.03)


def test_flops_of_a_layer_by_hand() -> None:
    class OneLayer(VideoModel):
        """Nothing but a linear layer over a frame's pixels."""

        def forward(self, clips: Tensor) -> Tensor:
            logits: Tensor = self.net(clips[:, 0, 0].flatten(1))
            return logits

    size = REGISTRY[NANO].clip.size
    net = nn.Linear(size * size, 7)
    model = OneLayer(NANO, "cnn", REGISTRY[NANO].clip, {"action": 7}, net)
    assert count_flops(model) == size * size * 7


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
