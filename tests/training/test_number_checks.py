from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from textseg.errors import RunError
from textseg.models.attention import Attention
from textseg.models.losses import segmentation_loss
from textseg.runs.folder import RunFolder
from textseg.testing.examples import task
from textseg.training.number_checks import (
    LISTED,
    LOOK_EVERY,
    NumberCheck,
    deterministic,
    lost_numbers,
    numeric_settings,
)

CPU = torch.device("cpu")
GOOD, BAD = torch.tensor(1.0), torch.tensor(float("nan"))


def test_the_first_step_without_a_number_is_remembered() -> None:
    check = NumberCheck(CPU)
    for step, (loss, norm) in enumerate([(GOOD, GOOD), (GOOD, None), (GOOD, BAD), (BAD, BAD)]):
        check.note(step, {"dice": loss}, norm)
        assert check.first() == (None if step < 2 else (2, ["gradient"]))
    check = NumberCheck(CPU)
    check.note(7, {"dice": torch.tensor(float("inf"))}, GOOD)
    check.note(8, {"dice": BAD}, BAD)
    assert check.first() == (7, ["dice"])


def test_the_terms_that_are_no_numbers_are_named() -> None:
    check = NumberCheck(CPU)
    check.note(0, {"coarse": GOOD}, GOOD)  # of an earlier stage
    check.note(1, {"dice": GOOD, "boundary": BAD, "ccae": BAD}, BAD)
    assert check.first() == (1, ["boundary", "ccae"])
    assert check.terms == ["coarse", "dice", "boundary", "ccae"]
    check = NumberCheck(CPU)
    check.note(0, {"dice": GOOD * 3e38, "focal": GOOD * 3e38}, GOOD)
    assert check.first() == (0, ["loss"])


def test_a_processor_is_looked_at_in_every_step_a_device_rarely() -> None:
    assert all(NumberCheck(CPU).due(step) for step in range(3))
    ahead = NumberCheck(torch.device("meta"))  # runs ahead, as a GPU does; it could not even be asked
    ahead.note(0, {"dice": torch.empty((), device="meta")}, torch.empty((), device="meta"))
    assert [step for step in range(250) if ahead.due(step)] == [LOOK_EVERY - 1, 2 * LOOK_EVERY - 1]


def test_the_message_lists_what_fits(tmp_path: Path) -> None:
    batch = [(f"slice {index} of case 'a'", "word " * 300) for index in range(LISTED + 3)]
    lines = str(lost_numbers("The loss is no finite number", RunFolder(tmp_path), 4, batch)).splitlines()
    assert lines[0] == "The loss is no finite number in step 5, in a batch of"
    assert len(lines) == LISTED + 3
    assert lines[LISTED + 1] == "  and 3 more"
    assert max(map(len, lines[:-1])) < 650
    assert lines[-1].startswith("Nothing was saved yet. Lower")


def test_determinism_is_wished_for_inside_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic(False):
        assert not numeric_settings()["deterministic"]
    refused = RuntimeError("some_op does not have a deterministic implementation, but you set ...")
    with pytest.raises(RunError, match="training.deterministic: some_op does not have .* Leave the key out"):
        _raise_inside(refused)
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="another"), deterministic(True):
        raise RuntimeError("another")
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def _raise_inside(error: RuntimeError) -> None:
    with deterministic(True):
        assert numeric_settings()["deterministic"]
        assert numeric_settings()["cublas_workspace"] == ":4096:8"
        raise error


def test_losses_are_in_full_precision_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 9, 8, generator=generator).bfloat16()
    mask = torch.randint(4, (2, 9, 8), generator=generator)
    loss = segmentation_loss({"dice": 1, "focal": 1, "cross_entropy": 1}, task((9, 8)))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss(logits, mask)
    for name, full in loss(logits.float(), mask).items():
        assert mixed[name].dtype == torch.float32
        assert torch.equal(mixed[name], full)  # rounded before the loss, not in it
    torch.testing.assert_close(mixed["cross_entropy"], F.cross_entropy(logits.float(), mask))


def test_attention_sums_its_weights_to_one_under_autocast() -> None:
    """In bfloat16, 4096 weights would sum to one only within some percent."""
    torch.manual_seed(0)
    attention = Attention(8, 2)
    for layer in (attention.value, attention.output):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    tokens = torch.randn(1, 4096, 8)
    with torch.autocast("cpu", torch.bfloat16):
        attended = attention(tokens, tokens, torch.ones_like(tokens))
    torch.testing.assert_close(attended.float(), torch.ones(1, 4096, 8), rtol=0, atol=2**-8)
