"""A fast part of the coverage table: networks of torchvision, timm and transformers, cut by half, proved, saved, loaded."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

import penjing as pj
from penjing.graph import channel_groups, prove_removal, remove_channels, trace

TOOLS = Path(__file__).parents[2] / "tools" / "coverage"
SUBSET = {
    "torchvision": ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t"),
    "timm": ("ghostnet_100", "levit_128"),
    "transformers": ("BERT", "ViT", "GPT-2", "Llama", "T5", "Whisper", "ALBERT", "Wav2Vec2"),
}


@pytest.fixture(scope="module")
def networks() -> Iterator[object]:
    """The list of networks that the table is made of."""
    sys.path.insert(0, str(TOOLS))
    try:
        import networks as found

        found.shim()
        yield found
    finally:
        sys.path.remove(str(TOOLS))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("library", "name"), [(lib, name) for lib, names in SUBSET.items() for name in names])
def test_it_is_cut_by_half_proved_saved_and_loaded(library: str, name: str, networks: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    try:
        entry = next(e for e in networks.entries((library,)) if e.name == name)  # type: ignore[attr-defined]
        model, inputs = entry.make()
    except (ImportError, RuntimeError) as error:  # torchvision's operations may not fit this torch
        pytest.skip(f"{library} cannot be imported: {error}. PENJING_TORCHVISION_SHIM may name a file that helps.")
    network = trace(model, inputs)
    grouping = channel_groups(network)
    removal = grouping.removal({g.name: list(range(g.n_channels // 2)) for g in grouping.groups})
    proof = prove_removal(network, removal)
    assert proof.error <= 1e-9
    assert proof.effect > 1e-3
    small = remove_channels(network, removal).eval()
    before, after = (sum(p.numel() for p in m.parameters()) for m in (network, small))
    assert after <= 0.6 * before
    pj.save(small, tmp_path / "a.pj")
    loaded = pj.load(tmp_path / "a.pj")
    drawn = small.random_inputs(1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        answers = [pytree.tree_leaves(m(*drawn)) for m in (small, loaded)]
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))
