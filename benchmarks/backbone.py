"""Time of Swin UNETR with fused window attention relative to MONAI's own, with the same weights, timed in pairs.

    OMP_NUM_THREADS=1 python benchmarks/backbone.py [--sides 384,512] [--pairs 5] [--feature-size 48]

One slice at a time (batch 1), processor time of one thread. Each pair has a ratio; the table shows the median with the
lowest and the highest. The last column is the largest difference of a logit, beside the largest logit.
"""

from __future__ import annotations

import torch
from fusion import both, forward, paired, read_options
from monai.networks.nets import swin_unetr
from torch import Tensor, nn

from textseg.contracts import Atlas, SegmenterOutput, Structure, Task, TextFeatures
from textseg.registry.discovery import installed_registry

CLASSES = 20


class MonaisOwn(nn.Module):
    """MONAI's network behind the interface of a textseg network."""

    def __init__(self, task: Task, feature_size: int) -> None:
        super().__init__()
        self.network = swin_unetr.SwinUNETR(
            in_channels=1, out_channels=task.class_count, feature_size=feature_size, spatial_dims=2
        )

    def forward(self, image: Tensor, text: TextFeatures | None) -> SegmenterOutput:
        return SegmenterOutput(self.network(image))


def main() -> None:
    options = read_options(__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    registry = installed_registry()
    print("| side | forward | forward and backward | difference |\n|---|---|---|---|")
    for side in map(int, options.sides.split(",")):
        structures = tuple(Structure(f"S{index}", "structure", index) for index in range(1, CLASSES))
        task = Task(1, (side, side), CLASSES, Atlas("benchmark", structures))
        theirs = MonaisOwn(task, options.feature_size)
        ours = registry.build("network", "swin_unetr", task, settings={"feature_size": options.feature_size})
        ours.load_state_dict(theirs.state_dict())
        image = torch.rand(1, 1, side, side)
        with torch.no_grad():
            own, fused = theirs.eval()(image, None).logits, ours.eval()(image, None).logits
        difference = f"{(own - fused).abs().max():.1e} of {own.abs().max():.1f}"
        cells = [paired(step, theirs.train(), ours.train(), image, options.pairs) for step in (forward, both)]
        print(f"| {side} | {' | '.join(cells)} | {difference} |", flush=True)


if __name__ == "__main__":
    main()
