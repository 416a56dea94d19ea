from experiments.benchmark import serving
from experiments.benchmark.predictor import Config


def test_the_benchmark_measures_and_shows_a_net():
    sizes = Config(
        nets=("width-nested",),
        outputs=2,
        widths=(4, 8),
        blocks=(1, 1),
        epochs=1,
        batch_size=16,
        rounds=3,
        deadlines=20,
        bins=2,
    )
    reported = []
    config = serving.Config(("predictor",), sizes)
    results = serving.measure(config, reported.append)
    (row,) = results["predictor"]["rows"]
    assert reported == ["width-nested"]
    assert len(row["output_ms"]) == len(row["output_over_subnetwork"]) == 2
    assert row["predict_over_forward"] > 0
    assert 0 <= row["more_than_10_percent_late_share"] <= row["late_share"] <= 1
    assert sum(each["answers"] for each in row["by_deadline"]) == 20
    assert [table.rows[0][0] for table in serving.tables(results)] == ["width-nested"] * 2
