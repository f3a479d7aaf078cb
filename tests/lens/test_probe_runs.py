"""A finished probe is read whole, or refused by the name of the file that isn't what a probe writes."""

import numpy as np
import pandas as pd
import pytest

from utils.lens.probe_runs import COLUMNS, ProbeRun


@pytest.fixture
def folder(tmp_path):
    """Two prompts, two layers, two channels; one of them is called `nan`, as Min Nan's ISO code is."""
    cells = [("eng_Latn", layer, channel) for layer in (0, 1) for channel in ("eng_Latn", "nan")]
    table = pd.DataFrame(cells, columns=["prompt_lang", "layer", "channel"])
    numbers = dict.fromkeys(COLUMNS[3:], 0.5) | {"share_low": np.nan}
    table.assign(**numbers).to_csv(tmp_path / "language_probs.csv", index=False)
    prompts = pd.DataFrame({"row": [0, 1], "id": ["01", "2"], "prompt_lang": "eng_Latn"})
    prompts.to_csv(tmp_path / "prompts.csv", index=False)
    np.save(tmp_path / "influence.npy", np.arange(8.0).reshape(2, 2, 2))
    return tmp_path


def test_names_stay_names_and_empty_cells_are_no_numbers(folder):
    run = ProbeRun(folder)
    assert run.channels == ["eng_Latn", "nan"] and list(run.prompts["id"]) == ["01", "2"]
    assert run.table["share_low"].isna().all() and (run.cells("eng_Latn")["share"] == 0.5).all()
    assert run.influence[1, 0].tolist() == [4, 5]


def test_an_array_of_another_run_is_refused(folder):
    np.save(folder / "influence.npy", np.zeros((3, 2, 2)))
    with pytest.raises(ValueError, match=r"influence.npy: \(3, 2, 2\), but the tables are of \(2, 2, 2\)"):
        _ = ProbeRun(folder).influence
    with pytest.raises(ValueError, match=r"no per_prompt.npy in it"):
        _ = ProbeRun(folder).per_prompt


def test_a_table_without_a_column_is_refused(folder):
    table = pd.read_csv(folder / "language_probs.csv", keep_default_na=False)
    table.drop(columns="tokens").to_csv(folder / "language_probs.csv", index=False)
    with pytest.raises(ValueError, match=r"language_probs.csv: no column tokens"):
        _ = ProbeRun(folder).table


@pytest.mark.parametrize("column", ["prompt_lang", "channel"])
@pytest.mark.parametrize("value", ["x/../../..", "..", "/etc", "a b", "\x1b[2J", "$x_$", ""])
def test_a_code_that_would_name_another_file_is_refused(folder, column, value):
    table = pd.read_csv(folder / "language_probs.csv", keep_default_na=False)
    table[column] = table[column].replace("eng_Latn", value)
    table.to_csv(folder / "language_probs.csv", index=False)
    with pytest.raises(ValueError, match=rf"language_probs\.csv: {column} is .* not a code"):
        _ = ProbeRun(folder).table


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda table: table.assign(share=[-0.5, *table["share"][1:]]), "share is -0.5 for eng_Latn, 0, eng_Latn"),
        (lambda table: table.assign(share=[1.5, *table["share"][1:]]), "share is 1.5"),
        (lambda table: table.assign(share=[np.nan, *table["share"][1:]]), "share is nan"),
        (lambda table: table.assign(share="much"), "share is not a column of numbers"),
        (lambda table: table.iloc[:-1], "rows are missing"),
        (lambda table: pd.concat([table, table.iloc[:1]]), "a second row of eng_Latn, 0, eng_Latn"),
    ],
)
def test_a_table_that_no_probe_wrote_is_refused(folder, change, says):
    table = pd.read_csv(folder / "language_probs.csv", keep_default_na=False)
    change(table).to_csv(folder / "language_probs.csv", index=False)
    with pytest.raises(ValueError, match=says):
        _ = ProbeRun(folder).table


def test_ids_are_texts_each_once_in_the_order_of_the_arrays(folder):
    rows = pd.DataFrame({"row": range(3), "id": ["NA", "null", "None"], "prompt_lang": "eng_Latn"})
    rows.to_csv(folder / "prompts.csv", index=False)
    assert list(ProbeRun(folder).prompts["id"]) == ["NA", "null", "None"]
    rows.assign(id=["NA", "b", "NA"]).to_csv(folder / "prompts.csv", index=False)
    with pytest.raises(ValueError, match="id 'NA' in eng_Latn twice"):
        _ = ProbeRun(folder).prompts
    rows.assign(row=[0, 2, 1]).to_csv(folder / "prompts.csv", index=False)
    with pytest.raises(ValueError, match="row is not 0, 1, 2"):
        _ = ProbeRun(folder).prompts
