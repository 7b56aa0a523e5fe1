"""Published weights: the libraries' tables and downloads, with the network played by the test."""

from __future__ import annotations

import email.message
import hashlib
import io
import re
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse

import pytest
import timm
import torch
import torchvision
from pytorchvideo.models import hub

from pipeline.model_names import UnknownModelError
from pipeline.models import create_model
from pipeline.published import find_source, published_names, published_weights
from pipeline.weights import WeightsError, load_weights, weights_digest

X3D = "pytorchvideo/x3d_xs"
X3D_FILE = "X3D_XS.pyth"
MVIT = "torchvision/mvit_v2_s"
TIMM = "timm/test_vit"

Network = dict[str, bytes | Exception]


class Answer(io.BytesIO):
    """A response as urllib gives it."""

    def __init__(self, body: bytes, promised: int) -> None:
        super().__init__(body)
        self.promised = promised

    def info(self) -> email.message.Message:
        message = email.message.Message()
        message["Content-Length"] = str(self.promised)
        return message


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    """What lies at each file name; an exception is raised. Nothing is reached otherwise."""
    files: Network = {}

    def urlopen(request: object) -> Answer:
        body = files.get(Path(urlparse(request.full_url).path).name, URLError("no network"))
        if isinstance(body, Exception):
            raise body
        return Answer(body, len(body))

    monkeypatch.setattr(torch.hub, "urlopen", urlopen)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return files


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where torch.hub keeps its files."""
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def zoo() -> tuple[dict[str, torch.Tensor], bytes]:
    """A network that the library itself built, and its file as the zoo ships them."""
    torch.manual_seed(3)
    state = hub.x3d_xs().state_dict()
    state["blocks.5.proj.bias"].normal_()  # 0 in every new network
    file = io.BytesIO()
    torch.save({"model_state": state, "epoch": 1}, file)
    return state, file.getvalue()


def refusal(name: str, heads: dict[str, int] | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        load_weights(name, heads or {"action": 400}, "published")
    return str(caught.value)


# ---- what the tables say


def test_the_tables_are_the_libraries_own() -> None:
    urls = {name: find_source(name).url for name in (X3D, "pytorchvideo/slowfast_r101", MVIT)}
    assert urls == {
        X3D: hub.x3d.checkpoint_paths["x3d_xs"],
        "pytorchvideo/slowfast_r101": hub.slowfast.checkpoint_paths["slowfast_r101"],
        MVIT: torchvision.models.video.MViT_V2_S_Weights.KINETICS400_V1.url,
    }
    assert find_source(TIMM).url.endswith("timm/test_vit.r160_in1k/resolve/main/model.safetensors")
    for name in (
        "torchvision/mvit_tiny",
        "pytorchvideo/x3d_nano",
        "timm/nonsense",
        "timm/resnet18.no_tag",
    ):
        assert find_source(name) is None


def test_no_host_is_named() -> None:
    root = Path(__file__).parents[1]
    for folder in ("pipeline", "stages", "cache", "configs"):
        for path in (root / folder).rglob("*.py"):
            assert not re.search(
                r"(fbaipublicfiles|huggingface\.co|download\.pytorch\.org)", path.read_text()
            )


def test_an_unknown_name_is_refused_before_any_download(network: Network) -> None:
    with pytest.raises(UnknownModelError, match="pytorchvideo/x3d_xs"):
        load_weights("pytorchvideo/x3d_xxs", {"action": 400}, "published")


def test_a_model_without_published_weights_says_which_have_some(network: Network) -> None:
    message = refusal("pytorchvideo/x3d_nano")
    assert "pytorchvideo/x3d_nano has no published weights" in message
    assert {X3D, MVIT} <= set(published_names())
    assert ", ".join(published_names()) in message
    assert "x3d_tiny" not in message


# ---- the download


def test_a_published_file_is_downloaded_once_and_loaded_whole(
    network: Network,
    place: Path,
    zoo: tuple[dict[str, torch.Tensor], bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    state, network[X3D_FILE] = zoo
    loaded = load_weights(X3D, {"action": 400}, "published")
    assert capsys.readouterr().out == ""  # answers as JSON are printed there
    reference = hub.x3d_xs()
    reference.load_state_dict(state)
    assert weights_digest(loaded.net) == weights_digest(reference)
    network.clear()
    again = load_weights(X3D, {"action": 400}, Path("published"))
    by_path = load_weights(X3D, {"action": 400}, place / X3D_FILE)
    assert {weights_digest(each.net) for each in (again, by_path)} == {weights_digest(reference)}
    clip = torch.randn(1, 3, 4, 160, 160)
    reference.blocks[5].activation = None  # the library's own ends in a softmax
    with torch.no_grad():
        assert torch.allclose(loaded(clip), reference.eval()(clip), atol=1e-4)


def test_a_file_of_that_name_is_reached_by_its_folder(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = create_model("pytorchvideo/x3d_nano", 5)
    torch.save(model.net.state_dict(), "published")
    loaded = load_weights("pytorchvideo/x3d_nano", {"action": 5}, "./published")
    assert weights_digest(loaded.net) == weights_digest(model.net)


@pytest.mark.parametrize(
    "error",
    [URLError("no route"), TimeoutError("timed out"), HTTPError("", 404, "Not Found", None, None)],
)
def test_without_network_it_says_what_to_put_where(
    network: Network, place: Path, error: Exception
) -> None:
    network[X3D_FILE] = error
    message = refusal(X3D)
    assert f"fetch this file elsewhere: {hub.x3d.checkpoint_paths['x3d_xs']}" in message
    assert f"put it to {place / X3D_FILE}" in message
    assert "keep `published` in the teacher's section" in message
    assert "in place of `published`" in message
    assert type(error).__name__ in message
    assert list(place.iterdir()) == []


def test_what_was_put_there_by_hand_is_taken(
    network: Network, place: Path, zoo: tuple[dict[str, torch.Tensor], bytes]
) -> None:
    place.mkdir(parents=True)
    (place / X3D_FILE).write_bytes(zoo[1])
    assert published_weights(X3D).keys() == zoo[0].keys()
    (place / X3D_FILE).write_bytes(zoo[1][:-1000])
    message = refusal(X3D)
    assert str(place / X3D_FILE) in message
    assert "Remove it, and it is downloaded again" in message
    assert (place / X3D_FILE).exists()  # it is not ours to remove


@pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
def test_a_connection_that_ends_early_leaves_nothing_behind(
    network: Network, place: Path, zoo: tuple[dict[str, torch.Tensor], bytes], part: float
) -> None:
    # urllib tells of no error there, and the file's name carries no hash.
    network[X3D_FILE] = zoo[1][: int(part * len(zoo[1]))]
    message = refusal(X3D)
    assert "It was just downloaded, and is removed again" in message
    assert list(place.iterdir()) == []


def test_a_download_is_never_unpickled(network: Network, place: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.mkdir, (tmp_path / "burst",)

    file = io.BytesIO()
    torch.save({"model_state": Bomb()}, file)
    network[X3D_FILE] = file.getvalue()
    assert "without running any code" in refusal(X3D)
    assert not (tmp_path / "burst").exists()
    assert list(place.iterdir()) == []


def test_torchvision_checks_the_hash_in_the_name(network: Network, place: Path) -> None:
    name = Path(find_source(MVIT).url).name
    network[name] = b"something else"
    message = refusal(MVIT)
    assert f'invalid hash value (expected "{name[-12:-4]}"' in message
    assert hashlib.sha256(b"something else").hexdigest() in message
    assert list(place.iterdir()) == []


@pytest.mark.slow
def test_torchvisions_mvit_is_what_torchvision_loads(
    network: Network, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(4)
    state = torchvision.models.video.mvit_v2_s().state_dict()
    file = place / Path(find_source(MVIT).url).name

    def download(url: str, to: str, hash_prefix: str, **_: object) -> None:
        assert url == find_source(MVIT).url
        assert hash_prefix == file.stem[-8:]
        torch.save(state, to)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    loaded = load_weights(MVIT, {"action": 400}, "published")
    theirs = torchvision.models.video.mvit_v2_s(weights="DEFAULT")  # the file is there now
    assert weights_digest(loaded.net) == weights_digest(theirs)


def test_timms_weights_are_what_timm_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    state = timm.create_model("test_vit").state_dict()

    def from_hub(place: str, **options: object) -> dict[str, torch.Tensor]:
        assert place == "timm/test_vit.r160_in1k"
        assert options["weights_only"] is True
        return {key: tensor.clone() for key, tensor in state.items()}

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", from_hub)
    given = published_weights(TIMM)
    assert given.keys() == state.keys()
    assert all(torch.equal(given[key], state[key]) for key in state)


def test_timm_without_network_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_hub(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", from_hub)
    with pytest.raises(WeightsError, match="ConnectionError: no network") as caught:
        published_weights(TIMM)
    assert f"fetch this file elsewhere: {find_source(TIMM).url}" in str(caught.value)
    assert "in place of `published`" in str(caught.value)


# ---- the head


@pytest.mark.parametrize(
    ("heads", "told"),
    [
        ({"action": 51}, r"blocks\.5\.proj\.bias: has shape \(400,\), the model wants \(51,\)"),
        ({"verb": 100, "noun": 300}, "published weights have one"),
    ],
)
def test_a_published_head_is_one_of_400_classes(
    network: Network,
    zoo: tuple[dict[str, torch.Tensor], bytes],
    heads: dict[str, int],
    told: str,
) -> None:
    state, network[X3D_FILE] = zoo
    message = refusal(X3D, heads)
    assert re.search(told, message)
    assert "`new_head: true`" in message
    loaded = load_weights(X3D, heads, "published", replace_head=True).net.state_dict()
    same = {key for key in state if torch.equal(loaded[key], state[key])}
    assert state.keys() - same == {"blocks.5.proj.weight", "blocks.5.proj.bias"}
