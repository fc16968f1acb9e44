import torch

from textseg_baselines.bisenet import AttentionRefinement, FeatureFusion, ResidualBlock, UpBlock


def test_refinement_weighs_each_channel_by_the_mean_of_all() -> None:
    refine = AttentionRefinement(3)
    feature = torch.randn(2, 3, 5, 7)
    weights = (feature.mean((2, 3)) @ refine.weigh.weight[..., 0, 0].T + refine.weigh.bias).sigmoid()
    torch.testing.assert_close(refine(feature), feature * weights[..., None, None])


def test_fusion_adds_what_the_weights_let_through() -> None:
    fuse = FeatureFusion(5, 4).eval()
    spatial, context = torch.randn(2, 2, 6, 8), torch.randn(2, 3, 6, 8)
    joined = fuse.join(torch.cat([spatial, context], 1))
    last = fuse.weigh[2]
    torch.nn.init.zeros_(last.weight)  # type: ignore[arg-type]
    for bias, factor in ((-30.0, 1.0), (30.0, 2.0), (0.0, 1.5)):
        torch.nn.init.constant_(last.bias, bias)  # type: ignore[arg-type]
        torch.testing.assert_close(fuse(spatial, context), factor * joined)


def test_a_block_without_change_of_shape_has_no_convolution_in_its_short_cut() -> None:
    assert not list(ResidualBlock(4, 4).short_cut.parameters())
    assert list(ResidualBlock(4, 4, stride=2).short_cut.parameters())
    assert list(ResidualBlock(3, 4).short_cut.parameters())


def test_the_short_cut_carries_the_image() -> None:
    block = ResidualBlock(4, 4).eval()
    torch.nn.init.zeros_(block.second[1].weight)  # type: ignore[arg-type]
    image = torch.randn(2, 4, 6, 8)
    torch.testing.assert_close(block(image), image.relu())


def test_a_coarse_map_is_brought_to_the_size_of_the_skip() -> None:
    assert UpBlock(8, 4)(torch.randn(2, 8, 3, 5), torch.randn(2, 4, 6, 10)).shape == (2, 4, 6, 10)
