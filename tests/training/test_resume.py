"""Which changes of an experiment a checkpoint allows, and what metrics.jsonl keeps."""

import json

import pytest

from configs import base
from mc_jax.errors import InputError
from mc_jax.training.metrics import JsonLines, read
from mc_jax.training.resume import check_same_run


def experiment(**changes):
    config = base.get_config()
    config.update_from_flattened_dict(changes)
    return json.loads(config.to_json())


def test_changed_model_and_data_are_refused_by_name():
    changes = {"model.memory.rule": "titans", "data.length": 64, "seed": 3, "train.steps": 9}
    with pytest.raises(InputError) as error:
        check_same_run(experiment(), experiment(**changes))
    assert error.value.found == {"data.length": 64, "model.memory.rule": "titans", "seed": 3}
    for allowed in ("data.length=512", "model.memory.rule='linear'", "seed=0"):
        assert allowed in error.value.allowed
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes", [{"train.skip_nonfinite": 3}, {"train.trainable": "score"}], ids=str
)
def test_what_changes_the_optimizer_s_state_is_refused(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        check_same_run(experiment(), experiment(**changes))
    with pytest.raises(InputError, match=next(iter(changes))):
        check_same_run(experiment(**changes), experiment())


def test_what_does_not_touch_the_state_may_change():
    assert check_same_run(experiment(), experiment()) == []
    changes = {"train.steps": 9, "model.remat": "full", "data.workers": 2, "mesh.fsdp": 4}
    before = experiment(**{"train.skip_nonfinite": 2})
    lines = check_same_run(before, experiment(**changes, **{"train.skip_nonfinite": 1}))
    assert lines == [
        "data.workers: 0 -> 2",
        "mesh.fsdp: 1 -> 4",
        "model.remat: 'none' -> 'full'",
        "train.skip_nonfinite: 2 -> 1",
        "train.steps: 1000 -> 9",
    ]


def test_a_setting_that_did_not_exist_yet_had_its_default():
    before = experiment()
    del before["model"]["memory"]["average_decay"], before["train"]["trainable"]
    assert check_same_run(before, experiment()) == []
    with pytest.raises(InputError, match=r"average_decay=0\.5"):
        check_same_run(before, experiment(**{"model.memory.average_decay": 0.25}))


def test_json_lines_go_on_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path, start=0)
    for step in range(1, 6):
        first.write(step, {"loss": 1 / step})
    first.close()
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # killed in the middle of a line
    again = JsonLines(path, start=3)
    again.write(4, {"loss": 0.5})
    again.close()
    assert [record["step"] for record in read(path)] == [1, 2, 3, 4]
    assert [record["loss"] for record in read(path)] == [1, 1 / 2, 1 / 3, 0.5]
