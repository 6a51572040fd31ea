from __future__ import annotations

import pytest
from accelerate import PartialState
from accelerate.tracking import GeneralTracker
from tiny import unlearner

from diffusers_fdu.training.callbacks import tracked


class Kept(GeneralTracker):
    """Keeps what it is given."""

    name = "kept"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.config = [], None

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values) -> None:
        self.config = values

    def log(self, values, step=None, **kwargs) -> None:
        self.rows.append((step, values))


def test_every_step_is_logged(pipe, tmp_path) -> None:
    kept = Kept()
    worker = unlearner(pipe)
    with tracked([kept], tmp_path, vars(worker.config)) as callback:
        worker.unlearn("dog", "cat", callback=callback)
    assert [step for step, _ in kept.rows] == list(range(12))
    assert [row["loss"] for _, row in kept.rows] == [r.loss for r in worker.history]


def test_processes_go_on_after_it(tmp_path, monkeypatch) -> None:
    """Accelerate's own ending takes away the group in which they average gradients."""
    ended = []
    monkeypatch.setattr(PartialState, "destroy_process_group", lambda *_: ended.append(1))
    with tracked([Kept()], tmp_path):
        pass
    assert not ended


def test_tensorboard(pipe, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    worker = unlearner(pipe)
    with tracked(["tensorboard"], tmp_path, vars(worker.config)) as callback:
        worker.unlearn("dog", "cat", callback=callback)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in tmp_path.rglob("events.*") if path.parent.name != ""}
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(12))


def test_trackers_that_are_refused(tmp_path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="unknown tracker 'paper'"), tracked(["paper"], tmp_path):
        pass
    monkeypatch.setattr("accelerate.utils.is_wandb_available", lambda: False)
    with pytest.raises(ImportError, match="pip install wandb"), tracked(["wandb"], tmp_path):
        pass
