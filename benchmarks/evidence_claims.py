"""What words claim of the method, as differences that rows answer.

Those of `datw_centred` and of a CPU's `datw` were added after DATW's result was seen, those of λ 8
after SDD's with it; after all of these the residual's and what follows it, those of plain KD for
the larger student and half the videos, those of 1 and 2 views beside labels only, of λ 8 with 4
views beside fresh ones of labels only, and that labels only gain by twice the epochs. Last of all,
when their rows stood: those of 4, 8 and 20 views beside teachers online, and of SDD with uniform
and the ViT alone over labels only.
"""

from __future__ import annotations

from dataclasses import dataclass

AGAIN = "again-"
"""Before the name of a setting that was trained again on another device."""


@dataclass(frozen=True)
class Claim:
    """Something that words claim, as a difference of two settings on the same seeds."""

    words: str
    setting: str
    against: str


CLAIMS = (
    *(
        Claim(f"{words}{where}", f"{group}-{one}", f"{group}-{other}")
        for group, where in (
            ("main", ""),
            ("student", ", the larger student"),
            ("size", ", half the videos"),
        )
        for words, one, other in (
            ("the method helps: all − labels", "all", "labels"),
            ("two teachers help: uniform − labels", "uniform", "labels"),
            ("DATW over uniform: datw − uniform", "datw", "uniform"),
            ("SDD and RKD add: all − datw", "all", "datw"),
        )
    ),
    Claim("the method helps with twice the epochs: all − labels", "longer-all", "longer-labels"),
    Claim("twice the epochs help labels only", "longer-labels", "main-labels"),
    Claim("the method beats plain KD: all − uniform", "main-all", "main-uniform"),
    Claim(
        "the method beats plain KD: all − uniform, the larger student",
        "student-all",
        "student-uniform",
    ),
    Claim("the method beats plain KD: all − uniform, half the videos", "size-all", "size-uniform"),
    Claim("the method beats one teacher: all − kd_cnn", "main-all", "main-kd_cnn"),
    Claim("DATW and SDD beat plain KD: datw_sdd − uniform", "main-datw_sdd", "main-uniform"),
    Claim("a second teacher helps: uniform − kd_cnn", "main-uniform", "main-kd_cnn"),
    Claim("SDD adds: datw_sdd − datw", "main-datw_sdd", "main-datw"),
    Claim("SDD adds beside RKD: all − datw_rkd", "main-all", "main-datw_rkd"),
    Claim("RKD adds: datw_rkd − datw", "main-datw_rkd", "main-datw"),
    Claim("RKD adds beside SDD: all − datw_sdd", "main-all", "main-datw_sdd"),
    Claim("the CNN, like the student, helps most: kd_cnn − kd_vit", "main-kd_cnn", "main-kd_vit"),
    Claim(
        "SDD without DATW: SDD with uniform − uniform", "weighting-uniform-datw_sdd", "main-uniform"
    ),
    Claim("a fixed φ is better: datw_sdd − learned_sdd", "main-datw_sdd", "main-learned_sdd"),
    Claim("the usual weights: entropy − uniform", "main-entropy", "main-uniform"),
    Claim("DATW over the usual weights: datw − entropy", "main-datw", "main-entropy"),
    Claim("a better KD: dkd − uniform", "main-dkd", "main-uniform"),
    Claim("the method beats a better KD: all − dkd", "main-all", "main-dkd"),
    Claim("features without logits: mimic − labels", "main-mimic", "main-labels"),
    Claim("SDD beats features as such: datw_sdd − mimic", "main-datw_sdd", "main-mimic"),
    Claim("the student is above the ViT teacher: all − ViT", "main-all", "vit"),
    Claim("the student is above the CNN teacher: all − CNN", "main-all", "cnn"),
    Claim("the method helps with fresh views: all − labels", "fresh-all", "fresh-labels"),
    *(
        Claim(f"{views} of the method − fresh ones of labels", f"{prefix}-all", "fresh-labels")
        for views, prefix in (
            ("1 cached view", "views-1"),
            ("2 cached views", "views-2"),
            ("4 cached views", "main"),
            ("λ_sdd 8, 4 cached views", "stronger"),
        )
    ),
    *(
        Claim(f"the method helps with {views}: all − labels", f"{prefix}-all", f"{prefix}-labels")
        for views, prefix in (
            ("1 cached view", "views-1"),
            ("2 cached views", "views-2"),
            ("8 cached views", "views-8"),
        )
    ),
    Claim("fresh views help labels only", "fresh-labels", "main-labels"),
    *(
        Claim(f"{views} cached views − {others}: all", f"{prefix}-all", against)
        for others, against in (("fresh ones", "fresh-all"), ("teachers online", "online-all"))
        for views, prefix in ((4, "main"), (8, "views-8"), (20, "views-20"))
    ),
    Claim("fresh views from a cache − teachers online", "fresh-all", "online-all"),
    Claim("SDD adds: datw_sdd − datw of a CPU", "main-datw_sdd", f"{AGAIN}main-datw"),
    Claim("DATW over uniform: datw of a CPU − uniform", f"{AGAIN}main-datw", "main-uniform"),
    Claim("centring mends DATW: both on a CPU", "weighting-centred-datw", f"{AGAIN}main-datw"),
    Claim("it mends it beside SDD too", "weighting-centred-datw_sdd", "main-datw_sdd"),
    Claim("centred DATW and SDD: − uniform", "weighting-centred-datw_sdd", "main-uniform"),
    Claim("centred DATW and SDD: − labels", "weighting-centred-datw_sdd", "main-labels"),
    Claim("SDD beside centred DATW", "weighting-centred-datw_sdd", "weighting-centred-datw"),
    Claim("centred DATW over uniform", "weighting-centred-datw", "main-uniform"),
    Claim("8-bit fields: fixed8 − float16", "fields-fixed8-all", "main-all"),
    Claim("λ_sdd 8, the method helps: all − labels", "stronger-all", "main-labels"),
    Claim("λ_sdd 8, the method beats plain KD: all − uniform", "stronger-all", "main-uniform"),
    Claim(
        "λ_sdd 8, SDD adds to plain KD: SDD with uniform − uniform",
        "stronger-uniform-datw_sdd",
        "main-uniform",
    ),
    Claim(
        "λ_sdd 8, DATW beside SDD: datw_sdd − SDD with uniform",
        "weight-sdd8-datw_sdd",
        "stronger-uniform-datw_sdd",
    ),
    Claim("λ 8, SDD beats mimicry: datw_sdd − mimic", "weight-sdd8-datw_sdd", "stronger-mimic"),
    Claim(
        "λ_sdd 8, the residual beats the ViT's own features: datw_sdd, aligned − vit",
        f"{AGAIN}weight-sdd8-datw_sdd",
        "stronger-vit-datw_sdd",
    ),
    Claim(
        "λ_sdd 8, a CNN teacher helps beside the ViT's own features: KD of both − of the ViT",
        "stronger-vit-datw_sdd",
        "stronger-vit_alone-datw_sdd",
    ),
    *(
        Claim(f"λ_sdd 8, {words} − labels", setting, "main-labels")
        for words, setting in (
            ("SDD with uniform", "stronger-uniform-datw_sdd"),
            ("the ViT alone", "stronger-vit_alone-datw_sdd"),
        )
    ),
    *(
        Claim(f"λ_sdd 8, {words}: all − {other}{where}", f"{group}-sdd8-all", f"{group}-{other}")
        for group, where in (("student", ", the larger student"), ("size", ", half the videos"))
        for words, other in (
            ("the method helps", "labels"),
            ("the method beats plain KD", "uniform"),
        )
    ),
    Claim(
        "λ_sdd 8, the method helps with fresh views: all − labels",
        "fresh-sdd8-all",
        "fresh-labels",
    ),
    Claim("λ_sdd 8, 4 cached views − fresh ones: all", "stronger-all", "fresh-sdd8-all"),
    Claim(
        "λ_sdd 8, the method helps with twice the epochs: all − labels",
        "longer-sdd8-all",
        "longer-labels",
    ),
    Claim("λ_sdd 8: all − labels with twice the epochs", "stronger-all", "longer-labels"),
    *(
        Claim(f"λ_sdd 8, {student} is above the {shown} teacher: all", setting, teacher)
        for student, setting in (
            ("the student", "stronger-all"),
            ("the larger student", "student-sdd8-all"),
        )
        for teacher, shown in (("vit", "ViT"), ("cnn", "CNN"))
    ),
)
