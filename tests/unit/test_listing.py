"""``moecap list``: rows of the catalogue, filtered."""

from __future__ import annotations

import json

import pytest

from moecap.campaign.catalogue import Catalogue
from moecap.campaign.listing import dataset_rows, engine_rows, hardware_rows, select
from moecap.cli import main
from moecap.errors import MoecapError


@pytest.mark.parametrize("rows", [hardware_rows, engine_rows, dataset_rows])
def test_every_row_has_a_name_and_the_same_columns(rows) -> None:
    found = rows(Catalogue())
    assert found and len({row["name"] for row in found}) == len(found)


def test_conditions_compare_numbers_and_words_and_leave_out_what_is_not_known() -> None:
    rows = hardware_rows(Catalogue())
    large = select(rows, ["memory_bytes>=100G", "vendor=nvidia"])
    assert large and all(row["memory_bytes"] >= 100e9 and row["vendor"] == "nvidia" for row in large)
    assert not select(rows, ["fp8_flops>0", "name~A100"])
    assert {row["name"] for row in select(rows, ["name~h20-"])} == {"H20-96GB"}


@pytest.mark.parametrize(
    ("condition", "said"),
    [("memory", "is no condition"), ("vender=amd", "no column 'vender'.*vendor"), ("tdp_w>much", "not a number")],
)
def test_a_condition_that_cannot_be_read_is_explained(condition: str, said: str) -> None:
    with pytest.raises(MoecapError, match=said):
        select(hardware_rows(Catalogue()), [condition])


def test_json_is_one_object(capsys) -> None:
    assert main(["list", "hardware", "--where", "vendor=apple", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["hardware"]
    assert {row["vendor"] for row in found} == {"apple"} and "source" in found[0]


def test_a_table_for_people(capsys) -> None:
    assert main(["list", "datasets"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("name")
