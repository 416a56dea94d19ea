"""The study in CONTRIBUTING.md runs as it is printed."""

import re
from pathlib import Path

import experiments
from experiments.lab.store import Store


def test_the_example_of_a_study_trains_and_compares(tmp_path):
    text = (Path(experiments.__file__).parents[1] / "CONTRIBUTING.md").read_text()
    (example,) = re.findall(r"```py\n(.*?)```", text, re.DOTALL)
    study = {"__name__": "decay"}
    exec(example, study)
    # One program is enough: compiling takes most of the time.
    study["PROBLEMS"] = {"net": ("depth-nested", 1e-3)}
    study["METHODS"] = {"sgd": {}}
    config = study["Config"](train_size=200, epochs=1, seeds=1, output=tmp_path / "rows.jsonl.gz")
    (table,) = study["work"](config, lambda line: None)
    rows = Store(config.output).of("net", "sgd")
    assert [row["stage"] for row in rows] == ["tune"] * 4 + ["test"] * 4
    assert table.rows == [("net", table.rows[0][1])]
