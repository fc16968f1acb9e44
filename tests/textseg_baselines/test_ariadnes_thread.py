from __future__ import annotations

import torch

from textseg.contracts import Atlas, Task, TextFeatures
from textseg_baselines.ariadnes_thread import AriadnesThread


def test_each_level_is_guided_by_the_text_and_met_by_its_skip(small_atlas: Atlas) -> None:
    task = Task(1, (64, 96), small_atlas.class_count, small_atlas, text_size=10, text_length=6)
    network = AriadnesThread(task, widths=(4, 8, 12, 16), depths=(1, 1, 1, 1)).eval()
    assert network.size_multiple == 32
    seen: list[tuple[tuple[int, ...], ...]] = []
    for decoder in network.decoders:
        decoder.register_forward_pre_hook(
            lambda module, inputs: seen.append(tuple(tuple(tensor.shape[1:]) for tensor in inputs))
        )
    mask = torch.ones(1, 6, dtype=torch.bool)
    text = TextFeatures(torch.randn(1, 6, 10), mask, None, torch.ones(1, 4, dtype=torch.bool))
    network(torch.randn(1, 1, 64, 96), text)  # needs no text of single structures
    assert seen == [  # the map of the level, the next finer one, the text: 24, 12 and 9 tokens at 1/32, 1/16 and 1/8
        ((16, 2, 3), (12, 4, 6), (24, 16)),
        ((12, 4, 6), (8, 8, 12), (12, 12)),
        ((8, 8, 12), (4, 16, 24), (9, 8)),
    ]
