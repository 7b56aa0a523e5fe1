"""`dualkd models`: the table of the registry, what each network takes, gives and costs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from rich import box
from rich.table import Table

from pipeline.counting import ShapesOnly, feature_shapes
from pipeline.models import REGISTRY, count_flops, count_parameters, create_model, model_entry
from stages.progress import PlainConsole, track

CLASSES = 400  # Kinetics-400: the published figures are of this many
_WIDTH = 100  # columns where no terminal says how many there are


def models(names: Sequence[str], versus: str | None) -> list[dict[str, Any]]:
    """The facts of some networks of the registry, or of all.

    Args:
        names: of the registry, or `timm/<model>`; none asks for the whole registry.
        versus: another network, for `parameters_saved` and `flops_saved`: shares of its own.

    Raises:
        UnknownModelError: a name is unknown; the message lists the nearest names.
    """
    wanted = list(dict.fromkeys(names or REGISTRY))
    for name in [*wanted, *([versus] if versus else [])]:
        model_entry(name)  # before the first is counted
    counted = list(dict.fromkeys([*wanted, *([versus] if versus else [])]))
    facts = {
        name: _facts(name)
        for name in track(counted, total=len(counted), what="counting", unit="models")
    }
    if versus:
        other = facts[versus]
        for one in facts.values():
            one["versus"] = versus
            one["parameters_saved"] = 1 - one["parameters"] / other["parameters"]
            one["flops_saved"] = 1 - one["flops"] / other["flops"]
    return [facts[name] for name in wanted]


def _facts(name: str) -> dict[str, Any]:
    entry = model_entry(name)
    with ShapesOnly():
        model = create_model(name, CLASSES).eval()
    clip, published = model.clip, entry.published
    pooled, feature_map = feature_shapes(model)
    with torch.inference_mode():
        flops = count_flops(model)
    return {
        "name": name,
        "family": model.family,
        "clip": {"frames": clip.frames, "stride": clip.stride, "size": clip.size},
        "mean": list(clip.mean),
        "std": list(clip.std),
        "test_share": clip.test_share,
        "parameters": count_parameters(model),
        "flops": flops,
        "pooled": pooled,
        "map": list(feature_map),
        "k400_top1": published.top1 if published else None,
    }


def show(facts: Sequence[dict[str, Any]]) -> None:
    """Print the facts, for people."""
    console = PlainConsole(**({} if sys.stdout.isatty() else {"width": _WIDTH}))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    versus = facts[0].get("versus") if facts else None
    table.add_column("model", overflow="fold")
    table.add_column("")  # vit or cnn
    for heading in ("clip", "M par", "GFLOPs", "pooled", "map", "K400"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("par", "FLOPs") if versus else ():
        table.add_column(heading, justify="right", no_wrap=True)
    for one in facts:
        clip, top1 = one["clip"], one["k400_top1"]
        saved = [_change(one[what]) for what in ("parameters_saved", "flops_saved") if versus]
        table.add_row(
            one["name"],
            one["family"],
            f"{clip['frames']}×{clip['stride']} {clip['size']}",
            f"{one['parameters'] / 1e6:.2f}",
            f"{one['flops'] / 1e9:.2f}",
            str(one["pooled"]),
            "×".join(str(size) for size in one["map"]),
            "–" if top1 is None else f"{100 * top1:.1f}",
            *saved,
        )
    console.print(table)
    console.print(
        "clip: frames × stride at 30 fps, pixels. GFLOPs: 10⁹ multiply-adds of one clip, by fvcore."
        f"\nWith {CLASSES} classes. map: channels × T × H × W. K400: published top-1 in %, of the "
        "makers' several views."
    )
    if versus:
        console.print(f"The last two columns: parameters and FLOPs against {versus}.")


def _change(saved: float) -> str:
    """A share saved as a change in percent: −89, +12."""
    return f"{-100 * saved:+.0f}%".replace("-", "−").replace("+0%", "0%").replace("−0%", "0%")
