"""Fields, the fingerprint, the differences of identities, the samples table."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import (
    ABSENT,
    CacheError,
    Field,
    FieldError,
    IdentityMismatch,
    Status,
    fingerprint,
    identity_differences,
)
from cache.identity import canonical_json, check_identity
from cache.schema import check_samples
from cache_making import IDENTITY, samples_table


def changed(**changes: object) -> dict[str, Any]:
    """IDENTITY with some values changed, by dotted field."""
    identity = copy.deepcopy(IDENTITY)
    for field, value in changes.items():
        place: Any = identity
        *outer, last = field.split("__")
        for key in outer:
            place = place[key]
        place[last] = value
    return identity


def test_status_values_are_the_formats() -> None:
    assert {status.label: int(status) for status in Status} == {
        "missing": 0,
        "valid": 1,
        "unreadable_video": 2,
        "non_finite_output": 3,
    }


def test_fingerprint_is_the_sha256_of_the_canonical_json() -> None:
    # printf '{"a":"é","b":[1,2.5,null,true]}' | sha256sum
    expected = "0c187fb652afca8017b5ef38178eeef09a9dfef844316f80ba4207cdf1995ee5"
    assert fingerprint({"b": [1, 2.5, None, True], "a": "é"}) == expected


def test_fingerprint_outlives_a_trip_through_a_file() -> None:
    # As numbers the keys sort 2, 10; as the strings that JSON makes of them 10, 2.
    identity = {"by_head": {2: "b", 10: "a"}, "sizes": (1, 2)}
    assert fingerprint(json.loads(json.dumps(identity))) == fingerprint(identity)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, Path("x"), "\ud800"])
def test_fingerprint_refuses_what_is_no_plain_json(value: object) -> None:
    with pytest.raises(CacheError, match="not plain JSON"):
        fingerprint({"value": value})


def test_equal_identities_do_not_differ() -> None:
    assert identity_differences(IDENTITY, json.loads(json.dumps(IDENTITY))) == []


def test_differences_name_the_dotted_field_and_both_values() -> None:
    wanted = changed(teachers__vit__sha256="cc", views__seed=8)
    assert identity_differences(IDENTITY, wanted) == [
        ("teachers.vit.sha256", "aa", "cc"),
        ("views.seed", 7, 8),
    ]


def test_differences_of_lists() -> None:
    one_other = changed(dataset__labels={"action": ["bow", "clap", "turn"]})
    assert identity_differences(IDENTITY, one_other) == [
        ("dataset.labels.action.2", "wave", "turn")
    ]
    longer = changed(dataset__labels={"action": ["bow"]})
    assert identity_differences(IDENTITY, longer) == [
        ("dataset.labels.action", ["bow", "clap", "wave"], ["bow"])
    ]


def test_differences_show_what_one_side_lacks() -> None:
    wanted = changed(teachers__third={"model": "r3d"})
    assert identity_differences(IDENTITY, wanted) == [("teachers.third", ABSENT, {"model": "r3d"})]


def test_one_and_true_and_one_point_zero_differ() -> None:
    assert identity_differences({"a": 1}, {"a": True}) == [("a", 1, True)]
    assert identity_differences({"a": 1}, {"a": 1.0}) == [("a", 1, 1.0)]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from([1.0, "", "a", "1"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from("ab"), JSON_VALUES), st.data())
def test_differences_are_empty_exactly_where_fingerprints_agree(
    one: dict[str, Any], data: st.DataObject
) -> None:
    other = data.draw(st.just(one) | st.dictionaries(st.sampled_from("ab"), JSON_VALUES))
    agree = fingerprint(one) == fingerprint(other)
    assert (identity_differences(one, other) == []) == agree


def test_mismatch_message_lists_fields_values_and_the_way_out() -> None:
    with pytest.raises(IdentityMismatch) as caught:
        check_identity(Path("k400.cache"), IDENTITY, changed(views__seed=8, views__rule="grid"))
    assert str(caught.value).splitlines() == [
        "k400.cache was made from other inputs; these differ:",
        '  views.rule: cache "random", wanted "grid"',
        "  views.seed: cache 7, wanted 8",
        "Bring back what it was made from, or make another cache: extract with another --out, "
        "or with --replace, which moves this one aside.",
    ]


def test_mismatch_message_stays_short() -> None:
    labels = [f"class {index}" for index in range(400)]
    with pytest.raises(IdentityMismatch) as caught:
        check_identity(Path("c"), {"labels": labels}, {"labels": labels[:-1]})
    assert "(400 values)" in str(caught.value)
    with pytest.raises(IdentityMismatch, match="and 380 more") as caught:
        check_identity(Path("c"), {"labels": labels}, {"labels": labels[::-1]})
    assert len(str(caught.value)) < 2000


def test_errors_travel_between_processes() -> None:
    mismatch = IdentityMismatch(Path("c"), [("a.b", 1, ABSENT)])
    again = pickle.loads(pickle.dumps(mismatch))
    assert str(again) == str(mismatch)
    assert again.differences == [("a.b", 1, ABSENT)]
    assert again.differences[0][2] is ABSENT


def test_a_field_errors_message_is_no_repr() -> None:
    assert str(FieldError("no field 'x'")) == "no field 'x'"


def test_field_knows_fill_and_size() -> None:
    logits = Field("vit/logits/verb", ("class",), (97,), "float16")
    assert np.isnan(logits.fill)
    assert logits.row_bytes == 194
    assert Field("clip/x3d", ("frame", "colour"), (4, 3), "uint8").fill == 0


@pytest.mark.parametrize(
    "name",
    [
        *("", "/", "a/", "/etc/passwd", "../up", "a/../b", "a//b", ".hidden", "a b", "a\\b", "é"),
        *("commits/x", "projection/x", "a/zarr.json", "a/b/c/d/e", "x" * 65, "a\n"),
    ],
)
def test_field_names_cannot_lead_elsewhere(name: str) -> None:
    with pytest.raises(CacheError, match="cannot name a field"):
        Field(name, (), (), "uint8")


@pytest.mark.parametrize(
    ("dims", "shape", "dtype", "message"),
    [
        (("class",), (3,), "object", "dtype 'object' is not one of float16"),
        (("class",), (3,), ">f2", "dtype '>f2' is not one of"),
        (("class",), (3, 4), "float16", "must name each axis"),
        (("view",), (3,), "float16", "repeat a name"),
        (("class",), (0,), "float16", "whole numbers ≥ 1"),
        (("class",), (True,), "float16", "whole numbers ≥ 1"),
    ],
)
def test_field_refuses(
    dims: tuple[str, ...], shape: tuple[int, ...], dtype: str, message: str
) -> None:
    with pytest.raises(CacheError, match=message):
        Field("vit/pooled", dims, shape, dtype)


def test_samples_table_needs_its_columns() -> None:
    with pytest.raises(CacheError, match=r"lacks path, split, .*label_<head>; it has sample_id"):
        check_samples(pa.table({"sample_id": ["a"]}))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (pa.array(["a", "b", "a"]), "sample_id 'a' has 2 rows"),
        (pa.array(["a", None, "b"]), "1 rows without sample_id"),
        (pa.array([1, 2, 3]), "sample_id is int64, needed is string"),
    ],
)
def test_samples_table_needs_its_ids(ids: pa.Array, message: str) -> None:
    table = samples_table(3)
    with pytest.raises(CacheError, match=message):
        check_samples(table.set_column(0, "sample_id", ids))


def test_samples_table_must_not_be_empty() -> None:
    with pytest.raises(CacheError, match="nothing to cache"):
        check_samples(samples_table(3).slice(0, 0))


def test_canonical_json_has_no_spaces_and_keeps_letters() -> None:
    assert canonical_json({"b": 1, "a": ["é", None]}) == '{"a":["é",null],"b":1}'.encode()
