"""Configs: the ones that come with the project, and every mistake reported at once."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from pipeline.config import Run
from pipeline.config_file import ConfigError, config_path, dump_config, load_config

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = [
    "demo",
    "epic100",
    "figures_hard",
    "folder",
    "hmdb51",
    "k400",
    "k400_slowfast",
]  # written down, so that a config which is not found is noticed
Change = Callable[[dict[str, Any]], object]


def changed(tmp_path: Path, *changes: Change, base: str = "demo") -> Path:
    """The demo's config, or another one, after some changes of its content."""
    yaml = YAML(typ="safe", pure=True)
    content = yaml.load((CONFIGS / f"{base}.yaml").read_text(encoding="utf-8"))
    for change in changes:
        change(content)
    text = io.StringIO()
    yaml.dump(content, text)
    path = tmp_path / "demo.yaml"
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


def setting(dotted: str, value: object) -> Change:
    """Set one field."""
    *sections, name = dotted.split(".")

    def change(content: dict[str, Any]) -> None:
        for section in sections:
            content = content[section]
        content[name] = value

    return change


def mistakes(path: Path) -> list[str]:
    """The lines of the message, without the first, which counts them."""
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{len(lines)} mistake{'s' if len(lines) > 1 else ''} in {path}:"
    return [line.strip() for line in lines]


# --- the project's own configs -----------------------------------------------------------------


def test_every_config_is_counted() -> None:
    assert sorted(path.stem for path in CONFIGS.rglob("*.y*ml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_valid_and_says_what_it_is(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    run = load_config(path)
    assert run.name == name  # `dvc.yaml` names configs and outputs by it
    assert (CONFIGS / name).is_dir()  # on whose weights its stage `teach` depends
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any("command:" in line for line in head)
    assert any("cost:" in line or "time:" in line for line in head)


def test_the_chosen_dataset_has_a_config() -> None:
    params = YAML(typ="safe", pure=True).load(CONFIGS.parent / "params.yaml")
    assert params["dataset"] in NAMES


def test_values_arrive_typed() -> None:
    run = load_config(CONFIGS / "demo.yaml")
    assert run.extract.projection.grid == (4, 2, 2)
    assert isinstance(run.teach.vit.train.learning_rate, float)
    assert run.extract.views.flip is False
    assert run.samples_path == Path("outputs/demo/samples.parquet")
    assert run.cache_path == Path("outputs/demo/cache")


def test_a_run_is_frozen() -> None:
    run = load_config(CONFIGS / "demo.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        run.dataset = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        run.distill.weights.kd = 0.0  # type: ignore[misc]


def test_a_dataset_is_found_below_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    assert config_path("demo").read_bytes() == (CONFIGS / "demo.yaml").read_bytes()
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"dataset 'k400': .*k400\.yaml\. Configs here: none$"):
        config_path("k400")
    for name in ("two", "one"):
        (tmp_path / "configs" / f"{name}.yaml").touch()
    with pytest.raises(ConfigError, match=r"Configs here: one, two$"):
        config_path("k400")


# --- mistakes ----------------------------------------------------------------------------------


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    path = changed(
        tmp_path,
        setting("distill.temprature", 2.0),
        setting("teach.vit.train.epochs", "twelve"),
        setting("extract.views.scale", [1.0, 0.6]),
        setting("evaluate.split", "val"),
        lambda content: content["prepare"].pop("seed"),
    )
    assert sorted(mistakes(path)) == [
        "distill.temprature: got 2.0, expected no such field (misspelt?)",
        "evaluate.split: got 'val', expected a split of prepare.splits (test, train)",
        "extract.views.scale: got [1.0, 0.6], expected least area before greatest area",
        "prepare.seed: got nothing, expected a value",
        "teach.vit.train.epochs: got 'twelve', expected a valid integer",
    ]


@pytest.mark.parametrize(
    ("field", "value", "mistake"),
    [
        ("teach.vit.train.epochs", "12", "got '12', expected a valid integer"),
        ("teach.vit.train.epochs", 12.0, "got 12.0, expected a valid integer"),
        ("teach.vit.train.epochs", True, "got True, expected a valid integer"),
        ("teach.vit.train.epochs", 0, "got 0, expected greater than 0"),
        ("teach.vit.train.learning_rate", "1e-3", "got '1e-3', expected a valid number"),
        ("teach.vit.train.learning_rate", float("nan"), "got nan, expected a finite number"),
        ("teach.vit.train.learning_rate", float("inf"), "got inf, expected a finite number"),
        ("teach.vit.train.label_smoothing", 1.5, "got 1.5, expected less than or equal to 1"),
        ("teach.vit.new_head", "yes", "got 'yes', expected a valid boolean"),
        ("teach.vit.weights", "", "got '', expected a value that should have at least 1 character"),
        ("teach.seed", -1, "got -1, expected greater than or equal to 0"),
        ("teach.scale", [1.0, 0.6], "got [1.0, 0.6], expected least area before greatest area"),
        ("teach.vit.train.layer_decay", 0.0, "got 0.0, expected greater than 0"),
        ("teach.vit.train.layer_decay", 1.5, "got 1.5, expected less than or equal to 1"),
        ("teach.cnn.train.ema_decay", 1.0, "got 1.0, expected less than 1"),
        ("teach.cnn.train.mixup", -0.2, "got -0.2, expected greater than or equal to 0"),
        ("teach.cnn.train.precision", "fp16", "got 'fp16', expected 'fp32', 'bf16' or 'auto'"),
        ("distill.train.mixup", 0.2, "got 0.2, expected no such field (misspelt?)"),
        ("teach.validation", "val", "got 'val', expected a split of prepare.splits (test, train)"),
        ("extract.views.flip", "no", "got 'no', expected a valid boolean"),
        ("extract.views.flip", 1, "got 1, expected a valid boolean"),
        (
            "extract.projection.kind",
            "fancy",
            "got 'fancy', expected 'aligned', 'pca', 'random', 'identity' or 'vit'",
        ),
        (
            "prepare.source",
            None,
            "got None, expected one of 'figures', 'k400', 'hmdb51', 'epic100', 'folder'",
        ),
        ("prepare.splits", ["train"], "got ['train'], expected a mapping"),
        ("distill.weights", 1.0, "got 1.0, expected a section with fields of its own"),
        ("distill.weights", None, "got None, expected a section with fields of its own"),
        ("distill.weights.sdd", -0.5, "got -0.5, expected greater than or equal to 0"),
        ("extract.clips", "x3d", "got 'x3d', expected a valid list"),
        (
            "distill.student",
            "x3d_nan",
            "got 'x3d_nan', expected the name of a model; the nearest"
            " are pytorchvideo/x3d_nano, pytorchvideo/x3d_tiny, pytorchvideo/x3d_s",
        ),
        ("name", "other", "got 'other', expected nothing: it is the file's own"),
        ("extract.codecs", "zstd", "got 'zstd', expected a mapping"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(
    field: str, value: object, mistake: str, tmp_path: Path
) -> None:
    assert mistakes(changed(tmp_path, setting(field, value))) == [f"{field}: {mistake}"]


def test_mistakes_inside_lists_and_names_are_placed(tmp_path: Path) -> None:
    assert mistakes(changed(tmp_path, setting("extract.projection.grid", [4, "2", 2]))) == [
        "extract.projection.grid.1: got '2', expected a valid integer"
    ]
    assert mistakes(changed(tmp_path, setting("extract.projection.grid", [4, 2]))) == [
        "extract.projection.grid.2: got nothing, expected a value"
    ]
    (long,) = mistakes(changed(tmp_path, setting("extract.projection.grid", [4, 2, 2, 2])))
    assert long.startswith("extract.projection.grid: got [4, 2, 2, 2], expected a value that")
    (name,) = mistakes(changed(tmp_path, setting("dataset", "../demo")))
    assert name.startswith("dataset: got '../demo', expected a value that should match pattern")
    escaping = changed(tmp_path, lambda content: content["prepare"]["splits"].update({"../x": 3}))
    (split,) = mistakes(escaping)
    assert split.startswith("prepare.splits.../x: got '../x', expected a value that should match")


@pytest.mark.parametrize(
    ("codec", "mistake"),
    [
        (
            {"codec": "gzip"},
            "residual.codec: got 'gzip', expected one of 'blosc_zstd', 'bitround', 'fixed8'",
        ),
        (
            {"keepbits": 3},
            "residual: got {'keepbits': 3}, expected a section with the field 'codec'",
        ),
        ("blosc_zstd", "residual: got 'blosc_zstd', expected a section with fields of its own"),
        ({"codec": "bitround"}, "residual.bitround.keepbits: got nothing, expected a value"),
        (
            {"codec": "bitround", "keepbits": 0},
            "residual.bitround.keepbits: got 0, expected greater than 0",
        ),
        (
            {"codec": "fixed8", "high": 1, "low": 1},
            "residual.fixed8: got {'codec': 'fixed8', 'high': 1, 'low': 1}, expected low below ",
        ),
    ],
)
def test_a_wrong_codec_is_named(codec: object, mistake: str, tmp_path: Path) -> None:
    path = changed(tmp_path, setting("extract.codecs", {"residual": codec}))
    (found,) = mistakes(path)
    assert found.startswith(f"extract.codecs.{mistake}")


def test_splits_must_be_made_to_be_used(tmp_path: Path) -> None:
    assert mistakes(changed(tmp_path, setting("extract.splits", ["train", "val", "dev"]))) == [
        "extract.splits: got 'val', expected a split of prepare.splits (test, train)",
        "extract.splits: got 'dev', expected a split of prepare.splits (test, train)",
    ]
    (empty,) = mistakes(changed(tmp_path, setting("extract.splits", [])))
    assert empty.startswith("extract.splits: got [], expected a value that should have at least 1")
    no_train = mistakes(changed(tmp_path, setting("prepare.splits", {"test": 3})))
    assert no_train == [
        "prepare.splits: got {'test': 3}, expected a split named 'train'",
        "extract.splits: got 'train', expected a split of prepare.splits (test)",
    ]


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("k400", "train, val, test"),
        ("hmdb51", "train, test"),
        ("epic100", "train, validation, test"),
    ],
)
def test_the_splits_of_a_dataset_are_known_before_it_is_read(
    name: str, splits: str, tmp_path: Path
) -> None:
    path = changed(tmp_path, setting("evaluate.split", "dev"), base=name)
    assert mistakes(path) == [
        f"evaluate.split: got 'dev', expected a split of the source '{name}' ({splits})"
    ]
    assert load_config(
        changed(tmp_path, setting("evaluate.split", splits.split(", ")[1]), base=name)
    )
    own = changed(tmp_path, setting("evaluate.split", "dev"), base="folder")
    assert load_config(own).evaluate.split == "dev"  # prepare looks, and checks


def test_each_source_has_fields_of_its_own(tmp_path: Path) -> None:
    assert sorted(
        mistakes(
            changed(
                tmp_path,
                setting("prepare.official_split", 4),
                setting("prepare.prefer", "frames"),
                setting("prepare.root", ""),
                base="hmdb51",
            )
        )
    ) == [
        "prepare.official_split: got 4, expected 1, 2 or 3",
        "prepare.prefer: got 'frames', expected no such field (misspelt?)",
        "prepare.root: got '', expected a value that should have at least 1 character",
    ]
    (none,) = mistakes(changed(tmp_path, lambda c: c["prepare"].pop("source"), base="k400"))
    assert none.endswith("expected a section with the field 'source'")


def test_what_teachers_learn_from_is_one_thing_and_goes_with_the_dataset(tmp_path: Path) -> None:
    assert mistakes(changed(tmp_path, setting("teach.splits", ["train"]))) == [
        "teach.pool: got 6000 beside teach.splits, expected one of the two"
    ]
    assert sorted(mistakes(changed(tmp_path, setting("prepare.source", "folder"))))[-1] == (
        "teach.pool: got 6000, expected nothing: only the source 'figures' renders videos; "
        "teach.splits names splits to train on"
    )
    own = (lambda c: c["teach"].pop("pool"), setting("teach.splits", ["train"]))
    assert load_config(changed(tmp_path, *own)).teach.splits == ["train"]
    assert mistakes(changed(tmp_path, *own, setting("teach.validation", "train"))) == [
        "teach.validation: got 'train', expected a split that is not in teach.splits"
    ]
    assert mistakes(changed(tmp_path, own[0], setting("teach.splits", ["dev"]))) == [
        "teach.splits: got 'dev', expected a split of prepare.splits (test, train)"
    ]


def test_the_best_epoch_needs_a_split_to_tell_it_by(tmp_path: Path) -> None:
    best = setting("teach.cnn.train.keep", "best")
    assert mistakes(changed(tmp_path, best)) == [
        "teach.cnn.train.keep: got 'best', expected 'last', or a split in teach.validation to tell "
        "the best epoch by"
    ]
    run = load_config(changed(tmp_path, best, setting("teach.validation", "test")))
    assert (run.teach.cnn.train.keep, run.teach.vit.train.keep) == ("best", "last")


def test_options_of_the_training_are_off_by_default() -> None:
    recipe = load_config(CONFIGS / "demo.yaml").teach.vit.train
    assert recipe.precision == "fp32"
    assert (recipe.layer_decay, recipe.decay_positions) == (1.0, True)
    assert (recipe.mixup, recipe.cutmix, recipe.ema_decay, recipe.keep) == (0.0, 0.0, None, "last")


def test_a_config_of_before_there_were_exports_is_valid(tmp_path: Path) -> None:
    run = load_config(changed(tmp_path, lambda content: content.pop("export")))
    assert (run.export.calibration, run.export.max_loss) == (128, 1.0)
    assert mistakes(changed(tmp_path, setting("export.max_loss", -1.0))) == [
        "export.max_loss: got -1.0, expected greater than or equal to 0"
    ]


def test_fields_that_are_missing_or_unknown(tmp_path: Path) -> None:
    (missing,) = mistakes(changed(tmp_path, lambda content: content.pop("evaluate")))
    assert missing == "evaluate: got nothing, expected a value"
    (unknown,) = mistakes(changed(tmp_path, setting("exported", {"opset": 18})))
    assert unknown == "exported: got {'opset': 18}, expected no such field (misspelt?)"
    (number,) = mistakes(changed(tmp_path, lambda content: content.update({3: 4})))
    assert number == "3: got 3, expected a name"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"dataset: [", "is not valid YAML: while parsing"),
        (b"dataset: demo\ndataset: other\n", 'found duplicate key "dataset" with value "other"'),
        (b"dataset: *demo\n", "found undefined alias 'demo'"),
        (b"dataset: demo\n---\ndataset: other\n", "expected a single document"),
        (b"dataset: \xe9\n", "is not valid YAML: 'utf-8' codec can't decode byte 0xe9"),
        (b"dataset: !!python/object:os.system [ls]\n", "could not determine a constructor"),
        (b"", "expected a mapping of sections, got NoneType"),
        (b"- demo\n", "expected a mapping of sections, got list"),
        (b"demo\n", "expected a mapping of sections, got str"),
    ],
)
def test_what_is_no_yaml_mapping_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "suppress" not in str(caught.value)  # ruamel's advice on duplicate keys is no way out


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the config .*none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)


def test_a_changed_config_without_mistakes_is_a_run(tmp_path: Path) -> None:
    run = load_config(changed(tmp_path, setting("distill.weights.kd", 2)))  # an int is a number
    assert isinstance(run, Run)
    assert run.distill.weights.kd == 2.0


def test_a_new_head_is_asked_for(tmp_path: Path) -> None:
    assert (
        load_config(changed(tmp_path, setting("teach.cnn.weights", "x"))).teach.cnn.new_head
        is False
    )
    run = load_config(changed(tmp_path, setting("teach.cnn.new_head", True)))
    assert (run.teach.cnn.new_head, run.teach.vit.new_head) == (True, False)


@pytest.mark.parametrize("name", ["demo", "k400", "hmdb51", "epic100", "folder"])
def test_a_run_that_is_written_out_reads_back_the_same(name: str, tmp_path: Path) -> None:
    run = load_config(Path(__file__).parents[1] / "configs" / f"{name}.yaml")
    text = dump_config(run)
    (tmp_path / f"{name}.yaml").write_text(text)
    assert load_config(tmp_path / f"{name}.yaml") == run
    assert "precise_bn: 0" in text  # defaults too
    assert text.index("prepare:") < text.index("teach:") < text.index("distill:")
